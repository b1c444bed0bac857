"""`fullsend runs`, `fullsend show` and `fullsend logs`."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.style import Style
from rich.text import Text

from services.cli import connection, output
from services.cli.output import AsJson, Column, RunId
from services.executor.outcome import Status
from services.executor.store import Store, StoredLogLine
from services.operations import words
from services.operations.run_records import (
    LARGE_FIELDS,
    ListedArtifact,
    Record,
    artifacts_in,
    decode,
    load_text,
    recent_runs,
    record_of,
    reference_in,
    status_of,
)
from shared.errors import ArtifactError

COLUMNS = [
    Column("RUN"), Column("STATUS"), Column("TOOL", drop=3), Column("ATTEMPT", right=True, drop=2),
    Column("TRIGGER", drop=1), Column("STARTED", drop=4), Column("TOOK", right=True), Column("OUTCOME"),
]  # fmt: skip
FACTS = {
    "tool": "tool", "entry_point": "entry point", "seed": "seed", "environment_digest": "environment",
    "run_digest": "run digest", "cached_from": "cached from", "trigger": "trigger",
    "triggered_by": "triggered by", "request_id": "request", "scheduled_for": "scheduled for",
    "attempt": "attempt", "worker": "worker", "queued_at": "queued", "started_at": "started",
    "finished_at": "finished",
}  # fmt: skip
MOMENTS = frozenset({"scheduled_for", "queued_at", "started_at", "finished_at"})
DOCUMENTS = {
    "params": "Parameters", "result_summary": "Result summary", "result": "Result",
    "partial_results": "Partial results",
}  # fmt: skip
SHOWN_OTHERWISE = frozenset({
    *FACTS, *DOCUMENTS, "run_id", "experiment_id", "status", "tool_digest", "timestamp", "duration_seconds",
    "error", "error_type", "traceback", "attempts", "exit", "lease", "retry_at", "artifacts", "cached",
    "logged",
})  # fmt: skip
ARTIFACT_COLUMNS = [Column("NAME"), Column("SIZE", right=True), Column("MEDIA TYPE"), Column("WHERE")]
SHOWN_MAX_BYTES = 1_000_000
"""`show` does not print a stored value that is larger than this."""

LOG_WAIT_MS = 500

LINE_STYLES = {"stderr": "yellow", "executor": "dim", "stacks": "dim"}


# -- runs -----------------------------------------------------------------------------


def runs(
    experiment_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="List only the runs of this experiment.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, metavar="N", help="List at most N runs.")
    ] = 20,
    as_json: AsJson = False,
) -> None:
    """List queued, running and ended runs, the newest first."""

    found = connection.with_store(lambda store: recent_runs(store, experiment_id, limit))
    if as_json:
        output.print_json([decode(record) for record in found])
        return
    out = output.console()
    if not found and out.is_terminal:
        out.print("no runs" + (f" of {experiment_id}" if experiment_id else ""))
        return
    output.table(COLUMNS, [_row(record, out) for record in found], out)


def _row(record: Record, out: Console) -> list[output.Cell]:
    started = record.get("started_at", "")
    return [
        record["run_id"],
        output.styled(status_of(record)),
        record.get("tool", ""),
        record.get("attempt", ""),
        record.get("trigger", ""),
        words.ago(started) if out.is_terminal else started,
        words.duration(record.get("duration_seconds")),
        _outcome(record),
    ]


def _outcome(record: Record) -> str:
    if "error" in record:
        return f"{record.get('error_type', 'Error')}: {record['error']}"
    summary = words.parse_json(record.get("result_summary"))
    return words.key_values(summary) if isinstance(summary, dict) else ""


# -- show -----------------------------------------------------------------------------


def show(run_id: RunId, as_json: AsJson = False) -> None:
    """Show the record of a run.

    Prints status, parameters, result, error, traceback, artifacts, and how the process ended.
    """

    async def act(store: Store) -> Record:
        return await record_of(store, run_id)

    chosen = connection.settings()
    record = connection.with_store(act, chosen)
    if as_json:
        output.print_json(decode(record))
    else:
        show_record(record, output.console(), chosen.artifacts)


def show_record(record: Record, out: Console, place: str) -> None:
    """Print everything in a record, the most important first.

    Args:
        record: the record.
        out: where to print.
        place: of the artifact store, which holds the large values.
    """
    status = status_of(record)
    head = Text(record["run_id"], "bold") + Text("  ") + output.styled(status)
    if "duration_seconds" in record:
        head += Text(f" after {words.duration(record['duration_seconds'])}")
    out.print(head)
    _facts(record, out)
    if "error" in record:
        _section("Error", f"{record.get('error_type', 'Error')}: {record['error']}", out, "red")
    _attempts(words.parse_json(record.get("attempts")), out)
    if traceback := _text(record, "traceback", place):
        _section("Traceback", traceback, out)
    _exit(words.parse_json(record.get("exit")), out)
    for name, title in DOCUMENTS.items():
        value = words.parse_json(_text(record, name, place))
        if value not in (None, {}, []):
            _section(title, _pretty(value), out)
    _artifacts(record, out)


def _text(record: Record, name: str, place: str) -> str | None:
    """Return a field's text; if it is stored and can't be loaded, say where it is and how to fetch it."""
    reference = reference_in(record, name)
    if reference is None:
        return record.get(name)
    try:
        return load_text(reference, place, SHOWN_MAX_BYTES)
    except ArtifactError as exc:
        return f"{reference}\nis not shown: {exc}\nfullsend artifacts get {reference} -o {LARGE_FIELDS[name]}"


def _artifacts(record: Record, out: Console) -> None:
    try:
        found = artifacts_in(record)
    except ArtifactError as exc:
        _section("Artifacts", str(exc), out, "red")
        return
    rows = [_artifact(one) for one in found]
    if rows:
        out.print()
        out.print(Text("Artifacts", "bold"))
        output.table(ARTIFACT_COLUMNS, rows, out)


def _artifact(one: ListedArtifact) -> list[output.Cell]:
    if one.artifact is None:
        return [one.name, "", "", output.styled("problem", one.problem)]
    artifact = one.artifact
    where = f"cas://{artifact.sha256}" if one.is_stored else "inline"
    return [one.name, words.size(artifact.size_bytes), artifact.media_type, where]


def _facts(record: Record, out: Console) -> None:
    facts = {title: _fact(name, record[name]) for name, title in FACTS.items() if record.get(name)}
    if "tool_digest" in record and "tool" in facts:
        facts["tool"] += f" ({record['tool_digest'][:12]})"
    if status_of(record) == "retrying":
        due = datetime.fromtimestamp(int(record["retry_at"]) / 1_000, UTC)
        facts["next attempt"] = due.isoformat(timespec="milliseconds")
    others = {name: value for name, value in record.items() if name not in SHOWN_OTHERWISE and value}
    for title, value in {**facts, **others}.items():
        out.print(Text(f"  {title:<14}", "dim") + Text(output.one_line(value)))


def _fact(name: str, value: str) -> str:
    if name == "environment_digest":
        return value[:12]
    return f"{value}  ({words.ago(value)})" if name in MOMENTS else value


def _attempts(attempts: Any, out: Console) -> None:
    """Print the attempts before the last one."""
    if not isinstance(attempts, list) or not attempts:
        return
    lines = [
        f"{one.get('attempt', '?')}  {one.get('at', '')}  {one.get('error_type', '')}: {one.get('error', '')}"
        for one in attempts
        if isinstance(one, dict)
    ]
    _section("Failed attempts", "\n".join(map(output.one_line, lines)), out)


def _exit(exit_: Any, out: Console) -> None:
    """Print how the process ended and what it used."""
    if not isinstance(exit_, dict) or not exit_:
        return
    shown = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in exit_.items()
        if name not in ("stacks", "last_lines")
    }
    if "peak_rss_bytes" in shown:
        shown["peak_rss"] = words.size(shown.pop("peak_rss_bytes"))
    _section("Exit", words.key_values(shown) or "unknown", out)
    if exit_.get("last_lines"):
        _section("Last lines printed", "\n".join(exit_["last_lines"]), out)
    if exit_.get("stacks"):
        _section("Stack traces at the end", exit_["stacks"].strip("\n"), out)


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _section(title: str, text: str, out: Console, style: str = "") -> None:
    out.print()
    out.print(Text(title, "bold"))
    for line in output.lines_of(text):
        out.print(Text(f"  {line}", style))


# -- logs -----------------------------------------------------------------------------


def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until the run ends.")] = False,
    times: Annotated[
        bool, typer.Option("--times", help="Print the time (UTC) and the stream before each line.")
    ] = False,
) -> None:
    """Print the output of a run's tool: stdout and stderr together."""
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
            # The log is stored before the end: after the status says so, one more read finds the rest.
            ended = ended or await store.history.status(run_id) not in (None, Status.RUNNING)

    connection.with_store(act)


def _print_line(line: StoredLogLine, out: Console, times: bool) -> None:
    head = f"{datetime.fromtimestamp(line.at, UTC):%H:%M:%S.%f}"[:-3] + f" {line.stream:<8} " if times else ""
    said = Text.from_ansi(line.text)  # keeps colours, drops other control sequences
    if not out.is_terminal:
        output.say(head + said.plain)
        return
    said.spans = [span for span in said.spans if not (isinstance(span.style, Style) and span.style.link)]
    text = Text(head, "dim") + said
    text.stylize(LINE_STYLES.get(line.stream, ""))
    out.print(text)
