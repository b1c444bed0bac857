"""Shows a plan's progress: a bar on a terminal, now and then a line everywhere else."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli import output
from services.planner.progress import Pace

LOOK_SECONDS: Final = 0.25
LINE_SECONDS: Final = 5.0
BAR_WIDTH: Final = 30
NARROW_BAR_WIDTH: Final = 10
NAME_WIDTH: Final = 8
"""A name that has less room than that is left out."""


class Display:
    """Shows how far a plan is on standard error, from the begin of the block to its end.

    Standard output stays free for what the plan comes to.

    Args:
        name: of the plan.
        pace: says how far it is; called from a thread of its own.
    """

    def __init__(self, name: str, pace: Callable[[], Pace]) -> None:
        self._name = name
        self._pace = pace
        self._over = threading.Event()
        self._console = Console(stderr=True, markup=False, emoji=False, highlight=False)
        self._live: Live | None = None
        self._lines: threading.Thread | None = None

    def __enter__(self) -> Self:
        # Not the console's own opinion: FORCE_COLOR has it take a file for a terminal.
        if sys.stderr.isatty() and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._bar, refresh_per_second=8, transient=False
            )
            self._live.start()
        else:
            self._lines = threading.Thread(target=self._tell, name="progress", daemon=True)
            self._lines.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Show the last state, and leave the terminal as it was."""
        self._over.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._lines is not None:
            self._lines.join()
            self._lines = None

    def say(self, text: str) -> None:
        """A line beside the progress."""
        self._console.print(output.one_line(text), soft_wrap=True)

    # -- a terminal -------------------------------------------------------------------

    def _bar(self) -> Table:
        """One line, however narrow the terminal is: what doesn't fit is cut, the name first."""
        pace = self._pace()
        told = Text(words(pace), "red" if pace.failed else "", no_wrap=True, overflow="ellipsis")
        row, room = Table.grid(padding=(0, 1, 0, 0)), self._console.width - told.cell_len - 1
        cells: list[RenderableType] = []
        name_width = room - NARROW_BAR_WIDTH - 1
        if name_width >= NAME_WIDTH:
            name = Text(self._name, "bold", no_wrap=True)
            name.truncate(name_width, overflow="ellipsis")
            cells.append(name)
            room -= name.cell_len + 1
        if room >= NARROW_BAR_WIDTH:
            width = min(BAR_WIDTH, room)
            cells.append(ProgressBar(total=pace.total, completed=pace.done + pace.failed, width=width))
        row.add_row(*cells, told)
        return row

    # -- lines ------------------------------------------------------------------------

    def _tell(self) -> None:
        """A line whenever something has changed, five seconds apart, and one at the end."""
        told, due = "", time.monotonic() + LINE_SECONDS
        while not self._over.wait(LOOK_SECONDS):
            line = words(self._pace())
            if time.monotonic() >= due and line != told:
                self._print(line)
                told, due = line, time.monotonic() + LINE_SECONDS
        self._print(words(self._pace()))

    def _print(self, line: str) -> None:
        print(f"{self._name}: {line}", file=sys.stderr, flush=True)


def words(pace: Pace) -> str:
    """How far it is, in a line."""
    parts = [f"{pace.done} of {pace.total} done", f"{pace.failed} failed", f"{pace.running} running"]
    if pace.rate_per_second is not None:
        parts.append(rate(pace.rate_per_second))
    if pace.eta_seconds:
        parts.append(f"{output.duration(pace.eta_seconds)} to go")
    return ", ".join(parts)


def rate(per_second: float) -> str:
    """Cases in a time, as people read it."""
    return f"{per_second:.1f} a second" if per_second >= 1 else f"{per_second * 60:.1f} a minute"
