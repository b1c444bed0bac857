"""How commands speak: colours and tables on a terminal, plain stable lines everywhere else."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.errors import FullsendError

STYLES = {
    "completed": "green", "success": "green", "active": "green", "ok": "green",
    "running": "cyan", "retrying": "yellow", "queued": "blue", "warning": "yellow", "off": "dim",
    "failed": "red", "invalid": "red", "problem": "bold red",
    "timeout": "magenta", "killed": "magenta", "cancelled": "yellow", "lost": "magenta",
}  # fmt: skip
"""Colours by status; whatever else there is has none."""

FLEXIBLE_WIDTH = 14
"""Less than that is no use for a column that gives way."""
GAP_WIDTH = 3

Cell = str | Text


class CommandError(FullsendError):
    """What was asked for can't be done, or came to nothing; the message is for the person who asked."""


def console() -> Console:
    """Standard output.  Nothing that comes from Redis is taken for markup."""
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def error(message: str) -> None:
    """One line on standard error."""
    print(f"error: {one_line(message)}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """A value for another program."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, and how it bears a terminal that is too narrow.

    `wraps` lets its text go over several lines.  Columns with a `drop` are left out,
    the lowest number first, until the table fits.
    """

    name: str
    right: bool = False
    wraps: bool = False
    drop: int = 0


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], out: Console) -> None:
    """Rows under a head.

    Elsewhere than on a terminal: columns padded with spaces, two between them, none left out, no
    line cut, `-` for an empty cell.
    """
    if out.is_terminal:
        out.print(rich_table(columns, rows, out.width), soft_wrap=False)
        return
    head = [column.name for column in columns]
    lines = [head, *([one_line(str(cell)) or "-" for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def rich_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> Table:
    """The table for a terminal of that width; the last column takes what is left, and is cut there."""
    kept = _kept(columns, rows, width)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for at in kept:
        column = columns[at]
        shown.add_column(
            column.name,
            justify="right" if column.right else "left",
            no_wrap=not column.wraps and at != kept[-1],
            overflow="fold" if column.wraps else "ellipsis",
        )
    for row in rows:
        shown.add_row(*(_cell(row[at], columns[at].wraps) for at in kept))
    return shown


def _kept(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[int]:
    """Which columns hold anything and have room."""
    needs = [
        FLEXIBLE_WIDTH
        if column.wraps or column is columns[-1]
        else max([len(column.name), *(len(str(row[at])) for row in rows)])
        for at, column in enumerate(columns)
    ]
    kept = [at for at in range(len(columns)) if not rows or any(str(row[at]) for row in rows)]
    for at in sorted(kept, key=lambda at: columns[at].drop):
        if columns[at].drop and sum(needs[one] + GAP_WIDTH for one in kept) > width:
            kept.remove(at)
    return kept


def _cell(cell: Cell, wraps: bool) -> Text:
    text = cell.copy() if isinstance(cell, Text) else Text(one_line(cell))
    if not wraps:
        text.no_wrap, text.overflow = True, "ellipsis"
    return text


def styled(status: str, text: str | None = None) -> Text:
    """A status, or a text about one, in its colour."""
    return Text(one_line(status if text is None else text), STYLES.get(status, ""))


# -- values in words ------------------------------------------------------------------


def one_line(text: str) -> str:
    """`text` on one line, without anything that would move the cursor."""
    return " ".join("".join(map(_visible, text)).split())


def lines_of(text: str) -> list[str]:
    """`text` as lines that are safe to print."""
    return ["".join(map(_visible, line.expandtabs())) for line in text.split("\n")]


def short(text: str, characters: int) -> str:
    """`text` on one line of at most so many characters."""
    line = one_line(text)
    return line if len(line) <= characters else line[: characters - 1] + "…"


def duration(seconds: float | str | None) -> str:
    """Seconds as people read them: `0.031 s`, `4.2 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds is None or seconds == "":
        return ""
    seconds = float(seconds)
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count_bytes: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count_bytes < 1_000 or unit == "GB":
            break
        count_bytes /= 1_000
    return f"{count_bytes:.0f} {unit}" if unit == "bytes" else f"{count_bytes:.1f} {unit}"


def ago(iso: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    """A moment of the past, ISO 8601, as people speak of it; what is no moment stays as it is."""
    if not iso:
        return ""
    try:
        seconds = (now() - datetime.fromisoformat(iso)).total_seconds()
    except (ValueError, TypeError):
        return iso
    if seconds < 2:
        return "just now"
    for limit, unit_seconds, unit in ((100, 1, "s"), (5_400, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit_seconds:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


def members(values: Mapping[str, Any]) -> str:
    """An object in a line: `count=25 success=true`."""
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
    )


def parsed(text: str | None) -> Any:
    """A field of a record that holds JSON; what doesn't is taken as text."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def _visible(char: str) -> str:
    if char.isprintable() or char == " ":
        return char
    return " " if char in "\t\n\r\v\f" else "\N{REPLACEMENT CHARACTER}"
