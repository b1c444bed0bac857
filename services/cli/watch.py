"""`fullsend watch`, and what was said about a run, in words."""

import json
import re
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from services.cli import connection, output
from services.cli.output import CommandError, duration, members, one_line
from services.executor.store import Entry, Store

_OF_EVERY_EVENT = frozenset({"experiment_id", "run_id", "event", "timestamp"})


def describe(entry: Entry) -> tuple[str, str]:
    """An entry of the journal as a word for what happened and the details."""
    if entry.kind == "result":
        return _result(entry.data)
    return _metric(entry.data)


def failure(data: Mapping[str, Any]) -> str:
    """An error with its type, on one line."""
    text = data.get("error", data.get("message", ""))
    return one_line(f"{data.get('error_type', 'Error')}: {text}")


def _result(data: Mapping[str, Any]) -> tuple[str, str]:
    took = duration(data.get("duration"))
    if data.get("type") == "experiment_completed":
        return "result", one_line(f"success in {took} {members(data.get('result_summary', {}))}")
    after = f" after {took}" if took else ""
    return "result", f"{data.get('status', 'failed')}{after}, {failure(data)}"


def _metric(data: Mapping[str, Any]) -> tuple[str, str]:
    name = str(data.get("event"))
    match name:
        case "run_started":
            return "started", f"{data.get('tool') or 'no tool'}, attempt {data.get('attempt')}"
        case "progress":
            return "progress", one_line(f"{progress(data)} {data.get('message', '')}")
        case "metric":
            tags = {
                key: value
                for key, value in data.items()
                if key not in {*_OF_EVERY_EVENT, "name", "value", data.get("name")}
            }
            return "metric", one_line(f"{data.get('name')}={data.get('value')} {members(tags)}")
        case "items_processed":
            return "items", str(data.get("count"))
        case "partial_completion":
            return "partial", f"{data.get('items_processed')} items are kept"
        case "run_retrying":
            return (
                "retrying",
                f"attempt {data.get('attempt')} failed, next in "
                f"{duration(data.get('delay_seconds'))}: {failure(data)}",
            )
        case "error":
            return "error", failure(data)
        case "run_completed":
            return "completed", f"in {duration(data.get('duration'))}"
        case _:
            rest = {key: value for key, value in data.items() if key not in _OF_EVERY_EVENT}
            return name, one_line(members(rest))


def progress(data: Mapping[str, Any]) -> str:
    """How far a run is: `9/16`, or `9` when nobody knows of how many."""
    done, total = data.get("done"), data.get("total")
    return _number(done) if total is None else f"{_number(done)}/{_number(total)}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


_CURSOR = re.compile(r"\d{1,20}(-\d{1,20})?")
STYLES = {
    "started": "cyan", "progress": "dim", "metric": "blue", "retrying": "yellow", "error": "red",
    "completed": "green", "partial": "yellow",
}  # fmt: skip


def watch(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR",
            help="Begin after this entry: the first column of the plain output, or 0 for all that is kept. "
            "By default, now.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line, with its cursor.")] = False,
) -> None:
    """Show metrics and results as they happen, until Ctrl-C.

    Nothing is missed: what is said is also kept, and read from there.
    """
    if since is not None and not _CURSOR.fullmatch(since):
        raise CommandError(f"--since {since!r} is no cursor; it is like 1732104000000-0, or 0")
    settings = connection.settings()
    out = output.console()

    async def act(store: Store) -> None:
        cursor = await store.journal.end() if since is None else since
        print(f"watching from {cursor}; end with Ctrl-C", file=sys.stderr, flush=True)
        try:
            async for entry in connection.follow(store, cursor, settings.redis_url):
                cursor = entry.cursor
                _show(entry, out, as_json)
        finally:
            print(f"go on with: fullsend watch --since {cursor}", file=sys.stderr, flush=True)

    connection.with_store(act, settings, connection.STARTING_SECONDS)


def _show(entry: Entry, out: Console, as_json: bool) -> None:
    if as_json:
        line = {"cursor": entry.cursor, "kind": entry.kind, **entry.data}
        print(json.dumps(line, ensure_ascii=False), flush=True)
        return
    what, details = describe(entry)
    subject = str(entry.data.get("run_id") or entry.data.get("experiment_id") or "-")
    if out.is_terminal:
        at = datetime.fromtimestamp(int(entry.cursor.partition("-")[0]) / 1_000)
        style = STYLES.get(what, "red" if entry.data.get("error") else "green")
        out.print(
            Text(f"{at:%H:%M:%S} ", "dim"),
            Text(f"{what:<10}", style),
            Text(output.one_line(subject)),
            Text(output.one_line(details), "" if style == "dim" else style),
        )
    else:
        print(f"{entry.cursor}  {what:<9}  {output.one_line(subject)}  {details}", flush=True)
