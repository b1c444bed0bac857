"""Formats output: colours and tables on a terminal, plain stable lines elsewhere."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TextIO

import typer
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from shared.documents import visible, visible_character
from shared.errors import FullsendError

STYLES = {
    "completed": "green", "success": "green", "active": "green", "ok": "green",
    "running": "cyan", "retrying": "yellow", "queued": "blue", "warning": "yellow", "off": "dim",
    "failed": "red", "invalid": "red", "problem": "bold red",
    "timeout": "magenta", "killed": "magenta", "cancelled": "yellow", "lost": "magenta",
}  # fmt: skip
"""Colours by status; any other status has none."""

FLEXIBLE_WIDTH = 14
"""The least width of a column whose text may be wrapped or cut."""
GAP_WIDTH = 3

Cell = str | Text

RunId = Annotated[str, typer.Argument(metavar="RUN_ID", help="The run's id, as `fullsend runs` lists it.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")]


class CommandError(FullsendError):
    """A command can't do what it was asked to do; the message is for its user."""


class Mistakes(CommandError):
    """Something has several mistakes, each of which is a line of the message."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class SafeConsole(Console):
    """A console whose texts have no control characters: rich alone moves the cursor and sets colours."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """Yield what is printed."""
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else visible(segment.text)
            yield segment if text is segment.text else Segment(text, segment.style)


def console(*, stderr: bool = False, soft_wrap: bool = True) -> Console:
    """Return standard output, or standard error, as a console that interprets no markup."""
    return SafeConsole(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)


def say(text: str = "", file: TextIO | None = None) -> None:
    """Print lines of text, without control characters, at once."""
    print(visible(text), file=file, flush=True)


def print_error(message: str) -> None:
    """Print a message as one line on standard error."""
    say(f"error: {message_line(message)}", sys.stderr)


def print_json(value: Any) -> None:
    """Print a value as JSON for other programs."""
    say(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON, with characters as escapes that a terminal could act upon."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, and what happens to it on a narrow terminal.

    Attributes:
        name: the heading.
        right: whether cells are aligned to the right.
        wraps: whether long text continues on the next line.
        drop: columns with a positive number are left out, the lowest first, until the table fits.
    """

    name: str
    right: bool = False
    wraps: bool = False
    drop: int = 0


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], out: Console) -> None:
    """Print rows under a heading.

    Without a terminal, columns are padded with spaces and separated by two; no column is left out, no
    text is cut, and an empty cell is `-`.
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
    """Lay out a table for a terminal of `width` characters; the last column is cut at its edge."""
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
    """Return the indices of the columns that are not empty and have room."""
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
    """Return a status, or `text` instead of it, in the status' colour."""
    return Text(one_line(status if text is None else text), STYLES.get(status, ""))


# -- safe text ------------------------------------------------------------------------


_UNSAFE = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def one_line(text: str) -> str:
    """Return `text` on one line, without control characters; several blanks become one."""
    return " ".join("".join(map(visible_character, text)).split())


def message_line(text: str) -> str:
    """Return a message on one line, without control characters; what it quotes keeps its blanks."""
    return "".join(map(visible_character, _LINE_ENDS.sub(" ", text))).strip()


_LINE_ENDS = re.compile(r"[\t\n\r\v\f]\s*")


def lines_of(text: str) -> list[str]:
    """Split `text` into lines without control characters."""
    return visible(text).split("\n")


def shorten(text: str, characters: int) -> str:
    """Return `text` on one line, cut to `characters`."""
    line = one_line(text)
    return line if len(line) <= characters else line[: characters - 1] + "…"
