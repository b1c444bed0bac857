"""`fullsend publish` and `fullsend trigger`."""

import asyncio
import json
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
from services.cli.output import CommandError
from services.cli.watch import describe, failure
from services.executor.scheduling.cron import Cron
from services.executor.store import Entry, Store
from shared.documents import json_object, validated
from shared.errors import ContractError, ScheduleError
from shared.messages import Experiment, Schedule, State, read_experiment_file

TAKEN_UP_SECONDS = 10.0
LONGEST_WAIT_SECONDS = 600.0


# -- publish --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publication:
    """An experiment file that was found to be good."""

    path: Path
    text: str
    experiment: Experiment
    schedule: Schedule | None
    cron: Cron | None


def publish(
    files: Annotated[list[Path], typer.Argument(metavar="FILE.yaml", help="Experiment files.")],
    state: Annotated[
        State | None, typer.Option(help="The state they get; otherwise the one in the file, or `ready`.")
    ] = None,
) -> None:
    """Check experiment files and store them, with their schedules.

    Nothing is stored unless all of them are good.
    """
    publications = read_files(files, state)

    async def act(store: Store) -> None:
        for one in publications:
            print(await _published(store, one), flush=True)

    connection.with_store(act, patience_seconds=connection.STARTING_SECONDS)


def read_files(paths: Iterable[Path], state: State | None = None) -> list[Publication]:
    """The experiments in files.

    Raises:
        CommandError: what is wrong, with all of the files that are.
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
            wrong.append(f"{twin} and {one.path} are both experiment '{one.experiment.id}'")
    if wrong:
        raise CommandError("; ".join(wrong) + ("; nothing was published" if good else ""))
    return good


def read_file(path: Path, state: State | None = None) -> Publication:
    """The experiment in a file.  Raises `ContractError` that names the file and what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ContractError(f"{path} is not a text in UTF-8") from None
    except OSError as exc:
        raise ContractError(f"{path} can't be read: {exc.strerror or exc}") from None
    experiment = read_experiment_file(str(path), text)
    if state is not None:
        experiment = msgspec.structs.replace(experiment, state=state)
    if experiment.schedule is None:
        return Publication(path, text, experiment, None, None)
    members = {"experiment_id": experiment.id, "cron": experiment.schedule, "timezone": experiment.timezone}
    schedule = validated(Schedule, f"{path} member 'execution.schedule'", members)
    try:
        cron = Cron.parse(schedule.cron, schedule.timezone, experiment.id)
    except ScheduleError as exc:
        raise ContractError(f"{path}: {exc}") from None
    return Publication(path, text, experiment, schedule, cron)


async def store_publication(store: Store, one: Publication) -> bool:
    """Store an experiment and its schedule; True when a schedule stays that the file doesn't have."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return await store.experiments.publish(one.experiment, one.text, one.schedule, now)


async def _published(store: Store, one: Publication) -> str:
    stays = await store_publication(store, one)
    experiment = one.experiment
    line = f"published {experiment.id}: {experiment.state}, tool {experiment.tool}"
    if one.cron is not None:
        line += f", schedule {one.cron.expression}: {one.cron.describe()}"
        if one.cron.warning is not None:
            line += f"; warning: {one.cron.warning}"
    if stays:
        line += f"; schedules:{experiment.id} stays, though the file has no schedule"
    return line


# -- trigger --------------------------------------------------------------------------


def trigger(
    experiment_id: Annotated[str, typer.Argument(metavar="ID", help="The experiment.")],
    param: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="A parameter for this run, over the experiment's own. A value that is JSON is taken as "
            "such, any other as text. May be repeated.",
        ),
    ] = None,
    params: Annotated[
        str, typer.Option(metavar="JSON", help="Several parameters at once, as a JSON object.")
    ] = "{}",
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; exit code 0 means that the run succeeded.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How long to wait at most.")
    ] = LONGEST_WAIT_SECONDS,
) -> None:
    """Run an experiment now.

    Fails when no executor is there to hear it.
    """
    chosen = json_object("--params", params) | dict(map(_pair, param or ()))
    message = {
        "experiment_id": experiment_id,
        "request_id": secrets.token_hex(8),
        "triggered_by": "cli",
        **({"params": chosen} if chosen else {}),
    }
    settings = connection.settings()

    async def act(store: Store) -> None:
        cursor = await store.journal.end()
        run_id = await _sent(store, settings.trigger_channels[0], message)
        if wait:
            await _await_end(store, cursor, run_id, timeout, settings.redis_url)
        else:
            print(f"queued {run_id}")

    connection.with_store(act, settings, connection.STARTING_SECONDS)


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CommandError(f"--param {text!r} is not NAME=VALUE")
    return name, output.parsed(value)


async def _sent(store: Store, channel: str, message: Mapping[str, Any]) -> str:
    """Ask for the run; returns its id once a worker has taken it up."""
    experiment_id = message["experiment_id"]
    stored = await store.experiments.read(experiment_id)
    if stored.readable().state is State.ARCHIVED:
        raise CommandError(f"experiments:{experiment_id} is archived; nothing of it is run")
    await _await_listener(store)
    if not await store.triggers.send(channel, message):
        raise CommandError(f"no executor heard it: nobody listens on {channel}; start `fullsend worker`")
    deadline = time.monotonic() + TAKEN_UP_SECONDS
    while time.monotonic() < deadline:
        run_id = await store.queue.run_of(experiment_id, message["request_id"])
        if run_id is not None:
            return run_id
        await asyncio.sleep(connection.PAUSE_SECONDS)
    raise CommandError(
        f"it was sent on {channel}, but no executor has taken it up within {TAKEN_UP_SECONDS:g} s"
    )


async def _await_listener(store: Store) -> None:
    """Be sure that an executor listens.  Raises `CommandError`."""
    deadline = time.monotonic() + connection.STARTING_SECONDS
    while not await store.workers.listening():
        if time.monotonic() >= deadline:
            raise CommandError(_nobody_listens(await store.workers.alive()))
        await asyncio.sleep(connection.PAUSE_SECONDS)


def _nobody_listens(alive: Sequence[str]) -> str:
    if not alive:
        return "no executor listens, so nothing was sent; start one with `fullsend worker`"
    return (
        f"no executor listens for triggers, so nothing was sent: alive are {', '.join(alive)}; "
        "start one whose SCHEDULE_MODE has `trigger`"
    )


async def _await_end(store: Store, cursor: str, run_id: str, timeout_seconds: float, redis_url: str) -> None:
    """Tell what happens to the run until it has ended.  Raises `CommandError` unless it succeeded."""
    print(f"queued {run_id}", flush=True)
    try:
        async with asyncio.timeout(timeout_seconds):
            async for entry in connection.follow(store, cursor, redis_url):
                if entry.data.get("run_id") != run_id:
                    continue
                if entry.kind == "result":
                    _tell_end(entry)
                    return
                print("  ".join(describe(entry)), flush=True)
    except TimeoutError:
        raise CommandError(
            f"{run_id} has not ended within {timeout_seconds:g} s; it goes on, see `fullsend show {run_id}`"
        ) from None


def _tell_end(entry: Entry) -> None:
    data = entry.data
    if data.get("type") != "experiment_completed":
        raise CommandError(f"{data['run_id']} ended as {data.get('status', 'failed')}: {failure(data)}")
    print(json.dumps(data.get("result_summary", {}), ensure_ascii=False))
