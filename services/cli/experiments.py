"""`fullsend publish`, `fullsend trigger` and `fullsend cancel`."""

import asyncio
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from services.cli import connection, output
from services.cli.output import CommandError, RunId
from services.cli.records.record import no_such_run
from services.cli.watch import describe, failure
from services.executor.outcome import Status
from services.executor.recovery import cancel as request_cancellation
from services.executor.scheduling.cron import Cron
from services.executor.store import JournalEntry, RunCancellation, Store
from shared.documents import json_object, validated
from shared.errors import ContractError, ScheduleError
from shared.messages import Experiment, Schedule, State, read_experiment_file

OTHER_FIELDS_BYTES = 200
"""What the fields of an experiment may take that `publish` writes beside the file."""
QUEUED_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 600.0


# -- publish --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publication:
    """A valid experiment file."""

    path: Path
    text: str
    experiment: Experiment
    schedule: Schedule | None
    cron: Cron | None


def publish(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.yaml", help="Experiment files.")],
    state: Annotated[
        State | None, typer.Option(help="Store this state; by default the state in the file, or `ready`.")
    ] = None,
) -> None:
    """Check experiment files and store them with their schedules.

    If any file is invalid, nothing is stored.
    """
    chosen = connection.settings()
    publications = read_files(files, state)
    for publication in publications:
        _check_size(publication, chosen.experiment_max_bytes)

    async def act(store: Store) -> None:
        for one in publications:
            output.say(await _store_and_describe(store, one))

    connection.with_store(act, chosen, wait_seconds=connection.STARTING_SECONDS)


def _check_size(one: Publication, most_bytes: int) -> None:
    size_bytes = len(one.text.encode()) + OTHER_FIELDS_BYTES
    if size_bytes > most_bytes:
        raise CommandError(
            f"{one.path} is an experiment of {size_bytes:,} bytes; executors read at most {most_bytes:,} "
            "(EXPERIMENT_MAX_BYTES); store a large input where the tool can fetch it; nothing was published"
        )


def read_files(paths: Iterable[Path], state: State | None = None) -> list[Publication]:
    """Read and check experiment files.

    Args:
        paths: the files.
        state: replaces the state in each file.

    Raises:
        CommandError: every mistake in every file.
    """
    good: list[Publication] = []
    wrong: list[str] = []
    for path in paths:
        try:
            good.append(read_file(path, state))
        except ContractError as exc:
            wrong.append(str(exc))
    paths_by_id: dict[str, Path] = {}
    for one in good:
        twin = paths_by_id.setdefault(one.experiment.id, one.path)
        if twin != one.path:
            wrong.append(f"{twin} and {one.path} both define experiment '{one.experiment.id}'")
    if wrong:
        raise CommandError("; ".join(wrong) + ("; nothing was published" if good else ""))
    return good


def read_file(path: Path, state: State | None = None) -> Publication:
    """Read and check one experiment file.

    Raises:
        ContractError: the file and its mistake.
    """
    text = _read_text(path)
    experiment = read_experiment_file(str(path), text)
    if state is not None:
        experiment = msgspec.structs.replace(experiment, state=state)
    if experiment.schedule is None:
        return Publication(path, text, experiment, None, None)
    members = {
        "experiment_id": experiment.id,
        "cron": experiment.schedule,
        "timezone": experiment.timezone,
        "enabled": experiment.is_schedule_enabled,
    }
    schedule = validated(Schedule, f"{path} member 'execution.schedule'", members)
    try:
        cron = Cron.parse(schedule.cron, schedule.timezone, experiment.id)
    except ScheduleError as exc:
        raise ContractError(f"{path}: {exc}") from None
    return Publication(path, text, experiment, schedule, cron)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ContractError(f"{path} is not UTF-8 text") from None
    except OSError as exc:
        raise ContractError(f"{path} can't be read: {exc.strerror or exc}") from None


async def store_publication(store: Store, one: Publication) -> bool:
    """Store an experiment and its schedule.

    Returns:
        Whether Redis still holds a schedule for the experiment although the file has none.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return await store.experiments.publish(one.experiment, one.text, one.schedule, now)


async def _store_and_describe(store: Store, one: Publication) -> str:
    has_old_schedule = await store_publication(store, one)
    experiment = one.experiment
    line = f"published {experiment.id}: {experiment.state}, tool {experiment.tool}"
    if one.cron is not None:
        line += f", schedule {one.cron.expression}: {one.cron.describe()}"
        is_over = one.cron.next_after(round(time.time() * 1_000)) is None
        for warning in (one.cron.warning, "it is never due" if is_over else None):
            line += "" if warning is None else f"; warning: {warning}"
    if has_old_schedule:
        line += f"; the file has no schedule, but schedules:{experiment.id} still applies"
    return line


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
        run_id = await _send(store, settings.trigger_channels[0], message)
        output.say(f"queued {run_id}")
        if wait:
            await _await_end(store, cursor, run_id, timeout, settings.redis_url)

    connection.with_store(act, settings, connection.STARTING_SECONDS)


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CommandError(f"--param {text!r} is not NAME=VALUE")
    return name, output.parse_json(value)


async def _send(store: Store, channel: str, message: Mapping[str, Any]) -> str:
    """Publish the trigger, wait until a worker queues the run, and return the run's id.

    Raises:
        CommandError: the experiment is archived, or no worker reacts.
    """
    experiment_id = message["experiment_id"]
    stored = await store.experiments.read(experiment_id)
    if stored.readable().state is State.ARCHIVED:
        raise CommandError(f"experiments:{experiment_id} is archived, so it can't be run")
    await _await_listener(store)
    if not await store.triggers.send(channel, message):
        raise CommandError(f"no worker listens on {channel}, so the trigger is lost; start `fullsend worker`")
    deadline = time.monotonic() + QUEUED_SECONDS
    while time.monotonic() < deadline:
        run_id = await store.queue.run_of(experiment_id, message["request_id"])
        if run_id is not None:
            return run_id
        await asyncio.sleep(connection.PAUSE_SECONDS)
    raise CommandError(f"no worker queued the run within {QUEUED_SECONDS:g} s after the trigger on {channel}")


async def _await_listener(store: Store) -> None:
    """Wait until a worker listens.  Raises `CommandError` if none does in time."""
    deadline = time.monotonic() + connection.STARTING_SECONDS
    while not await store.workers.listening():
        if time.monotonic() >= deadline:
            raise CommandError(_no_listener(await store.workers.alive()))
        await asyncio.sleep(connection.PAUSE_SECONDS)


def _no_listener(alive: Sequence[str]) -> str:
    if not alive:
        return "no worker is running, so nothing was sent; start one with `fullsend worker`"
    return (
        f"no worker listens for triggers, so nothing was sent; running: {', '.join(alive)}; "
        "start one with `trigger` in SCHEDULE_MODE"
    )


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


async def _already_over(store: Store, run_id: str) -> CommandError:
    status = await store.history.status(run_id)
    return no_such_run(run_id) if status is None else CommandError(f"{run_id} is already {status}")
