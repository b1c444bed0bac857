"""`fullsend runs`, `fullsend show`, `fullsend logs` and `fullsend cancel`."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from services.cli import connection, output
from services.cli.output import Column, CommandError
from services.cli.records.record import TEXTS, Record, show_record, status_of
from services.executor.cancellation import cancel as ask_for_the_end
from services.executor.outcome import Status
from services.executor.store import Cancelled, Claim, Line, Store, moment

COLUMNS = [
    Column("RUN"),
    Column("STATUS"),
    Column("TOOL", drop=3),
    Column("ATTEMPT", right=True, drop=2),
    Column("TRIGGER", drop=1),
    Column("STARTED", drop=4),
    Column("TOOK", right=True),
    Column("OUTCOME"),
]
LOG_WAIT_MS = 500

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="As `fullsend runs` lists it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for another program.")]
LINE_STYLES = {"stderr": "yellow", "executor": "dim", "stacks": "dim"}


# -- runs -----------------------------------------------------------------------------


def runs(
    experiment_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Only the runs of this experiment.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List what ran and what runs, newest first."""

    async def act(store: Store) -> list[Record]:
        begun = await store.history.recent(experiment_id, limit)
        known = {record["run_id"] for record in begun}
        waiting = [
            _queued(claim)
            for claim in await store.queue.waiting()
            if claim.order.run_id not in known and experiment_id in (None, claim.order.experiment_id)
        ]
        newest = sorted([*waiting, *begun], key=lambda record: moment(record["run_id"]), reverse=True)
        return newest[:limit]

    found = connection.with_store(act)
    if as_json:
        output.print_json([_decoded(record) for record in found])
        return
    out = output.console()
    if not found and out.is_terminal:
        out.print("no runs" + (f" of {experiment_id}" if experiment_id else ""))
        return
    output.table(COLUMNS, [_row(record, out) for record in found], out)


def _queued(claim: Claim) -> Record:
    order = claim.order
    return {
        "run_id": order.run_id,
        "experiment_id": order.experiment_id,
        "status": "queued",
        "attempt": str(order.attempt),
        "trigger": order.trigger,
    }


def _row(record: Record, out: Console) -> list[output.Cell]:
    started = record.get("started_at", "")
    return [
        record["run_id"],
        output.styled(status_of(record)),
        record.get("tool", ""),
        record.get("attempt", ""),
        record.get("trigger", ""),
        output.ago(started) if out.is_terminal else started,
        output.duration(record.get("duration_seconds")),
        _outcome(record),
    ]


def _outcome(record: Record) -> str:
    if "error" in record:
        return f"{record.get('error_type', 'Error')}: {record['error']}"
    summary = output.parsed(record.get("result_summary"))
    return output.members(summary) if isinstance(summary, dict) else ""


# -- show -----------------------------------------------------------------------------


def show(run_id: RunId, as_json: AsJson = False) -> None:
    """Show everything that is known about a run."""

    async def act(store: Store) -> Record:
        return await record_of(store, run_id)

    chosen = connection.settings()
    record = connection.with_store(act, chosen)
    if as_json:
        output.print_json(_decoded(record))
    else:
        show_record(record, output.console(), chosen.artifacts)


async def record_of(store: Store, run_id: str) -> Record:
    """The record of a run, or what is known of one that waits.  Raises CommandError when there is none."""
    record = await store.runs.record(run_id)
    if record:
        return {"run_id": run_id, **record}
    for claim in await store.queue.waiting():
        if claim.order.run_id == run_id:
            return _queued(claim)
    raise CommandError(f"there is no run {run_id!r}; `fullsend runs` lists those that there are")


def _decoded(record: Record) -> dict[str, Any]:
    """The record with its JSON fields as what they stand for."""
    members = {name: value if name in TEXTS else output.parsed(value) for name, value in record.items()}
    return {**members, "status": status_of(record)}


# -- logs -----------------------------------------------------------------------------


def logs(
    run_id: RunId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what it prints until it has ended.")
    ] = False,
    times: Annotated[
        bool, typer.Option("--times", help="Put the time (UTC) and the stream before each line.")
    ] = False,
) -> None:
    """Print what a run's tool printed, to stdout and stderr alike."""
    out = output.console()

    async def act(store: Store) -> None:
        await record_of(store, run_id)
        cursor, ended = "0-0", not follow
        while True:
            lines = await store.history.lines(run_id, cursor, None if ended else LOG_WAIT_MS)
            for line in lines:
                _print_line(line, out, times)
                cursor = line.cursor
            if ended and not lines:
                return
            # Asked before the last look: what was printed is stored before the end is.
            ended = ended or await store.history.status(run_id) not in (None, Status.RUNNING)

    connection.with_store(act)


def _print_line(line: Line, out: Console, times: bool) -> None:
    head = f"{datetime.fromtimestamp(line.at, UTC):%H:%M:%S.%f}"[:-3] + f" {line.stream:<8} " if times else ""
    if not out.is_terminal:
        print(head + line.text, flush=True)
        return
    text = Text(head, "dim") + Text.from_ansi(line.text)  # its colours, and nothing else that terminals obey
    text.stylize(LINE_STYLES.get(line.stream, ""))
    out.print(text)


LOOK_SECONDS = 0.1


def cancel(
    run_id: RunId,
    wait: Annotated[bool, typer.Option(help="Wait until a run under way has ended.")] = True,
) -> None:
    """End a run: one that waits never starts, one under way is ended and keeps what it had yielded."""

    async def act(store: Store) -> str:
        answer = await ask_for_the_end(store, run_id)
        if answer is Cancelled.OVER:
            raise CommandError(await _why_over(store, run_id))
        if answer is Cancelled.CANCELLING and wait:
            return f"{run_id} is {await _end_of(store, run_id)}"
        return f"{run_id} is {'being ended' if answer is Cancelled.CANCELLING else 'cancelled'}"

    output.console().print(connection.with_store(act), highlight=False, markup=False)


async def _end_of(store: Store, run_id: str) -> str:
    """The status that a run under way ends with."""
    while True:
        status = await store.history.status(run_id)
        if status not in (None, Status.RUNNING):
            return str(status)
        await asyncio.sleep(LOOK_SECONDS)


async def _why_over(store: Store, run_id: str) -> str:
    status = await store.history.status(run_id)
    if status is None:
        return f"there is no run {run_id!r}; `fullsend runs` lists those that there are"
    return f"{run_id} is {status} already"
