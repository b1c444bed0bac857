"""`fullsend watch`; describes entries of the journal in words."""

import re
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from services.cli import connection, output
from services.cli.output import CommandError, one_line
from services.executor.store import JournalEntry, Store
from services.operations.words import duration, key_values

STYLES: Final = {
    "started": "cyan", "progress": "dim", "metric": "blue", "retrying": "yellow", "error": "red",
    "completed": "green", "partial": "yellow",
}  # fmt: skip
_CURSOR: Final = re.compile(r"\d{1,20}(-\d{1,20})?")
_COMMON_MEMBERS: Final = frozenset({"experiment_id", "run_id", "event", "timestamp"})
"""Members of every event."""


def watch(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            help="Start after this entry: the first column of the plain output, or 0 for the oldest entry. "
            "By default, show only new entries.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, with its cursor.")
    ] = False,
) -> None:
    """Show metrics and results as they arrive, until Ctrl-C.

    Entries are read from the journal in Redis, so none is missed while the command runs.
    """
    if since is not None and not _CURSOR.fullmatch(since):
        raise CommandError(f"--since {since!r} is not a cursor; expected one like 1732104000000-0, or 0")
    settings = connection.settings()
    out = output.console()

    async def act(store: Store) -> None:
        cursor = await store.journal.end() if since is None else since
        output.say(f"watching from {cursor}; press Ctrl-C to stop", file=sys.stderr)
        try:
            async for entry in connection.follow(store, cursor, settings.redis_url):
                cursor = entry.cursor
                _print_entry(entry, out, as_json)
        finally:
            output.say(f"continue with: fullsend watch --since {cursor}", file=sys.stderr)

    connection.with_store(act, settings, connection.STARTING_SECONDS)


def _print_entry(entry: JournalEntry, out: Console, as_json: bool) -> None:
    if as_json:
        line = {"cursor": entry.cursor, "kind": entry.kind, **entry.data}
        output.say(output.json_text(line))
        return
    what, details = describe(entry)
    subject = one_line(str(entry.data.get("run_id") or entry.data.get("experiment_id") or "-"))
    if not out.is_terminal:
        output.say(f"{entry.cursor}  {what:<9}  {subject}  {details}")
        return
    at = datetime.fromtimestamp(int(entry.cursor.partition("-")[0]) / 1_000)
    style = STYLES.get(what, "red" if entry.data.get("error") else "green")
    out.print(
        Text(f"{at:%H:%M:%S} ", "dim"),
        Text(f"{what:<10}", style),
        Text(subject),
        Text(one_line(details), "" if style == "dim" else style),
    )


# -- in words -------------------------------------------------------------------------


def describe(entry: JournalEntry) -> tuple[str, str]:
    """Return what an entry of the journal reports, as one word, and the details."""
    return _result(entry.data) if entry.kind == "result" else _event(entry.data)


def failure(data: Mapping[str, Any]) -> str:
    """Return the type and the message of an error, on one line."""
    text = data.get("error", data.get("message", ""))
    return one_line(f"{data.get('error_type', 'Error')}: {text}")


def _result(data: Mapping[str, Any]) -> tuple[str, str]:
    took = duration(data.get("duration"))
    if data.get("type") == "experiment_completed":
        return "result", one_line(f"success in {took} {key_values(data.get('result_summary', {}))}")
    after = f" after {took}" if took else ""
    return "result", f"{data.get('status', 'failed')}{after}, {failure(data)}"


def _event(data: Mapping[str, Any]) -> tuple[str, str]:
    match name := str(data.get("event")):
        case "run_started":
            return "started", f"{data.get('tool') or 'no tool'}, attempt {data.get('attempt')}"
        case "run_retrying":
            return "retrying", _retry(data)
        case "run_completed":
            return "completed", f"in {duration(data.get('duration'))}"
        case "error":
            return "error", failure(data)
        case "run_cancelled":
            return "cancelled", one_line(str(data.get("message", "")))
        case "progress":
            return "progress", one_line(f"{_progress(data)} {data.get('message', '')}")
        case "metric":
            return "metric", _metric(data)
        case "items_processed":
            return "items", str(data.get("count"))
        case "partial_completion":
            return "partial", f"{data.get('items_processed')} items kept"
        case _:
            return name, one_line(key_values(_without(data, _COMMON_MEMBERS)))


def _retry(data: Mapping[str, Any]) -> str:
    delay = duration(data.get("delay_seconds"))
    return f"attempt {data.get('attempt')} failed, next in {delay}: {failure(data)}"


def _metric(data: Mapping[str, Any]) -> str:
    name = data.get("name")
    tags = _without(data, _COMMON_MEMBERS | {"name", "value", name})
    return one_line(f"{name}={data.get('value')} {key_values(tags)}")


def _without(data: Mapping[str, Any], names: frozenset[Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in names}


def _progress(data: Mapping[str, Any]) -> str:
    """Return how far a run is: `9/16`, or `9` if the total is unknown."""
    done, total = data.get("done"), data.get("total")
    return _number(done) if total is None else f"{_number(done)}/{_number(total)}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
