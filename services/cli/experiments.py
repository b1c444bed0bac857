"""`fullsend publish`, `fullsend trigger` and `fullsend cancel`."""

import asyncio
import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from services.cli import connection, output
from services.cli.output import CommandError, RunId
from services.cli.publication import Publication, read_files, tool_doubts
from services.cli.watch import describe, failure
from services.executor.outcome import Status
from services.executor.recovery import cancel as request_cancellation
from services.executor.scheduling.cron import Cron
from services.executor.store import JournalEntry, Published, RunCancellation, Store
from services.operations import words
from services.operations.run_records import no_such_run
from services.operations.schedule_rows import NO_CRON, local_time, why_not_due
from services.operations.triggering import send_trigger
from shared.documents import json_object
from shared.errors import ContractError, FullsendError
from shared.messages import State

OTHER_FIELDS_BYTES = 200
"""What the fields of an experiment may take that `publish` writes beside the file."""
LONGEST_WAIT_SECONDS = 600.0


# -- publish --------------------------------------------------------------------------


def publish(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.yaml", help="Experiment files.")],
    state: Annotated[
        State | None,
        typer.Option(
            help="Store this state. By default, `paused` and `archived` stay, and otherwise it is the state "
            "in the file, or `ready`."
        ),
    ] = None,
) -> None:
    """Check experiment files and store them with their schedules.

    If any file is invalid, nothing is stored, and all mistakes are listed. An experiment that is paused or
    archived stays so, unless --state is given. A schedule that was in the file and no longer is, is removed.
    """
    chosen = connection.settings()
    publications = read_files(files, state)
    for publication in publications:
        _check_size(publication, chosen.experiment_max_bytes)

    async def act(store: Store) -> None:
        for one in publications:
            for line in await _store_and_describe(store, one, state):
                output.say(line)

    connection.with_store(act, chosen, wait_seconds=connection.STARTING_SECONDS)


def _check_size(one: Publication, most_bytes: int) -> None:
    size_bytes = len(one.text.encode()) + OTHER_FIELDS_BYTES
    if size_bytes > most_bytes:
        raise CommandError(
            f"{one.path} is an experiment of {size_bytes:,} bytes; executors read at most {most_bytes:,} "
            "(EXPERIMENT_MAX_BYTES); store a large input where the tool can fetch it; nothing was published"
        )


async def store_publication(store: Store, one: Publication, state: State | None = None) -> Published:
    """Store an experiment and its schedule.

    Args:
        store: where to.
        one: the experiment.
        state: what its state is to be, also if it is paused or archived now.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    published = await store.experiments.publish(
        one.experiment, one.text, one.schedule, now, keeps_set_aside=state is None
    )
    if published.removed_schedule:
        await store.due_times.drop([one.experiment.id])
    return published


async def _store_and_describe(store: Store, one: Publication, state: State | None) -> list[str]:
    """Store an experiment; return a line about it, and a line for each doubt."""
    published = await store_publication(store, one, state)
    experiment = one.experiment
    line = f"published {experiment.id}: {published.state}, tool {experiment.tool}"
    if one.cron is not None and one.schedule is not None:
        is_on = one.schedule.enabled and not published.stays_off
        line += await _described(store, one.cron, published.state, is_on=is_on)
    if published.stays_off:
        line += f", as it was before, which `--state {experiment.state}` changes"
    if published.removed_schedule:
        line += f"; schedules:{experiment.id} was removed, as the file has no schedule any more"
    if published.kept_schedule:
        line += f"; the file has no schedule, but schedules:{experiment.id} still applies"
    if published.state is not experiment.state:
        line += f"; it stays {published.state}, which `--state {experiment.state}` changes"
    registered = (await store.experiments.read_tools([experiment.tool])).get(experiment.tool)
    doubts = [] if "@" in experiment.tool else tool_doubts(experiment, _parameters(registered))
    return [line, *(f"  warning: {experiment.id}: {doubt}" for doubt in [*one.notes, *doubts])]


async def _described(store: Store, cron: Cron, state: State, *, is_on: bool) -> str:
    """A schedule in words, with its next due time, and what may keep it from being run."""
    text = f", schedule {cron.expression}: {cron.describe()}"
    next_ms = cron.next_after(await store.due_times.now_ms())
    if not is_on:
        text += ", off"
    elif next_ms is not None:
        text += f", next {local_time(next_ms, cron.timezone)}"
        if not await store.workers.cron():
            text += f"; warning: {NO_CRON}"
    never = "it is never due" if next_ms is None else None
    for warning in (why_not_due(state) if is_on else None, cron.warning, never):
        text += "" if warning is None else f"; warning: {warning}"
    return text


def _parameters(registered: Mapping[str, str] | None) -> Mapping[str, Any] | None:
    """The schema of a tool's parameters; None if it is not registered, empty if nobody can read it."""
    if registered is None:
        return None
    try:
        return json_object("parameters", registered.get("parameters", "{}"))
    except ContractError:
        return {}


# -- trigger --------------------------------------------------------------------------


def trigger(
    experiment_id: Annotated[str, typer.Argument(metavar="ID", help="The experiment's id.")],
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="Set a parameter for this run. It overrides the experiment's own. If VALUE is not "
            "valid JSON, it is text. May be repeated.",
        ),
    ] = None,
    params: Annotated[
        str, typer.Option(metavar="JSON", help="Set several parameters, as a JSON object.")
    ] = "{}",
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Wait until the run ends, and print its result. The exit code is 1 if it fails."
        ),
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="With --wait: wait at most this long.")
    ] = LONGEST_WAIT_SECONDS,
) -> None:
    """Run an experiment now.

    Fails if no worker listens for triggers.
    """
    chosen = json_object("--params", params) | dict(map(_parameter, param or ()))
    message = {
        "experiment_id": experiment_id,
        "request_id": secrets.token_hex(8),
        "triggered_by": "cli",
        **({"params": chosen} if chosen else {}),
    }
    settings = connection.settings()

    async def act(store: Store) -> None:
        cursor = await store.journal.end()
        run_id = await send_trigger(store, settings.trigger_channels[0], message)
        output.say(f"queued {run_id}")
        if wait:
            await _await_end(store, cursor, run_id, timeout, settings.redis_url)

    connection.with_store(act, settings, connection.STARTING_SECONDS)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CommandError(f"--param {text!r} is not NAME=VALUE")
    return name, words.parse_json(value)


async def _await_end(store: Store, cursor: str, run_id: str, timeout_seconds: float, redis_url: str) -> None:
    """Print the run's events until it ends, then its result.  Raises `CommandError` unless it succeeds."""
    try:
        async with asyncio.timeout(timeout_seconds):
            async for entry in connection.follow(store, cursor, redis_url):
                if entry.data.get("run_id") != run_id:
                    continue
                if entry.kind == "result":
                    _print_result(entry)
                    return
                output.say("  ".join(describe(entry)))
    except TimeoutError:
        raise CommandError(
            f"{run_id} did not end within {timeout_seconds:g} s and continues; see `fullsend show {run_id}`"
        ) from None


def _print_result(entry: JournalEntry) -> None:
    data = entry.data
    if data.get("type") != "experiment_completed":
        raise CommandError(f"{data['run_id']} ended as {data.get('status', 'failed')}: {failure(data)}")
    output.say(output.json_text(data.get("result_summary", {})))


# -- cancel ---------------------------------------------------------------------------


def cancel(
    run_id: RunId,
    wait: Annotated[bool, typer.Option(help="Wait until a running tool has ended.")] = True,
) -> None:
    """Cancel a run.

    A queued run never starts. A running tool is ended; its partial results are kept.
    """

    async def act(store: Store) -> str:
        answer = await request_cancellation(store, run_id)
        if answer is RunCancellation.OVER:
            raise await _already_over(store, run_id)
        if answer is RunCancellation.CANCELLING and wait:
            return f"{run_id} is {await _await_status(store, run_id)}"
        return f"{run_id} is {'being cancelled' if answer is RunCancellation.CANCELLING else 'cancelled'}"

    output.console().print(connection.with_store(act))


async def _await_status(store: Store, run_id: str) -> str:
    """Wait until a run has ended, and return its status."""
    while True:
        status = await store.history.status(run_id)
        if status not in (None, Status.RUNNING):
            return str(status)
        await asyncio.sleep(connection.PAUSE_SECONDS)


async def _already_over(store: Store, run_id: str) -> FullsendError:
    status = await store.history.status(run_id)
    return no_such_run(run_id) if status is None else CommandError(f"{run_id} is already {status}")
