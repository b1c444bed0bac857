"""Shows a plan's progress: a bar on a terminal, now and then a line everywhere else."""

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli import output
from services.planner.progress import Pace

LOOK_SECONDS: Final = 0.25
LINE_SECONDS: Final = 5.0
BAR_WIDTH: Final = 30


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
        if self._console.is_terminal:
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
        pace = self._pace()
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(self._name, "bold"),
            ProgressBar(total=pace.total, completed=pace.done + pace.failed, width=BAR_WIDTH),
            Text(words(pace), "red" if pace.failed else ""),
        )
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
