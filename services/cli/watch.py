"""`fullsend watch`."""

import json
import re
import sys
from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from services.cli import connection, events, output
from services.cli.output import CommandError
from services.executor.store import Entry, Store

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
    what, details = events.words(entry)
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
