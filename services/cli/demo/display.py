"""Where the demo is shown: live on a terminal, as plain lines elsewhere."""

import time
from collections.abc import Callable
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live

from services.cli import events, output
from services.cli.demo import view
from services.cli.demo.tracker import Board, Phase, Run
from services.executor.store import Entry

QUARTERS = 4


class Screen(Protocol):
    """Shows the demo; everything is called from one task and returns at once."""

    def begin(self, board: Board, facts: view.Facts) -> None:
        """The demo begins."""

    def heard(self, entry: Entry, run: Run) -> None:
        """Something was said about a run, and the board knows it."""

    def refresh(self) -> None:
        """Some time has passed."""

    def stopping(self) -> None:
        """No more runs are begun."""

    def close(self) -> None:
        """It is over, well or not."""

    def sum_up(self) -> None:
        """Say what it came to."""


class LiveScreen:
    """Draws over itself until the end.

    Args:
        console: the terminal.
        clock: monotonic seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, board: Board, facts: view.Facts) -> None:
        """Take the terminal."""
        self._board, self._facts, self._began = board, facts, self._clock()
        self._live.start()

    def heard(self, entry: Entry, run: Run) -> None:
        """The next frame shows it."""

    def refresh(self) -> None:
        """Draw the next frame."""
        self._live.update(self.frame(), refresh=True)

    def stopping(self) -> None:
        """The last frames show what is still under way."""

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()

    def sum_up(self) -> None:
        """Print the summary."""
        self._console.print(self.summary(), soft_wrap=False)

    def frame(self) -> Group:
        """The view as it is now."""
        width, height = self._console.size
        return view.frame(self._board, self._facts, time.time(), self._elapsed(), width, height)

    def summary(self) -> RenderableType:
        """What it came to."""
        return view.summary(self._board, self._elapsed(), self._console.width)

    def _elapsed(self) -> float:
        return self._clock() - self._began


class PlainScreen:
    """A line for whatever happens; of a run's progress, one at every quarter.

    Args:
        console: not a terminal, or one that can't move its cursor.
        clock: monotonic seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._quarters: dict[str, int] = {}

    def begin(self, board: Board, facts: view.Facts) -> None:
        """Say what this is."""
        self._board, self._began = board, self._clock()
        print(
            f"demo: {facts.experiments} experiments take turns; some are made to fail; "
            f"server {facts.server}, tools {facts.tools}, log {facts.log}",
            flush=True,
        )

    def heard(self, entry: Entry, run: Run) -> None:
        """Print the line."""
        if entry.kind == "result":
            self._quarters.pop(run.run_id, None)
            self._say(run.phase, run, f"{output.duration(run.seconds)}  {output.one_line(run.note)}")
            return
        match entry.data.get("event"):
            case "run_started":
                self._say("started", run, events.words(entry)[1])
            case "run_retrying":
                self._say(Phase.RETRYING, run, events.words(entry)[1])
            case "progress" if self._is_next_quarter(run):
                self._say("progress", run, events.words(entry)[1])

    def refresh(self) -> None:
        """Time alone is nothing to print."""

    def stopping(self) -> None:
        """Say so."""
        print("demo: stopping; what runs may finish", flush=True)

    def close(self) -> None:
        """Nothing was taken."""

    def sum_up(self) -> None:
        """Print the summary."""
        print(f"demo: ran for {output.duration(self._clock() - self._began)}")
        output.table(view.COLUMNS, view.rows(self._board), self._console)

    def _say(self, what: str, run: Run, details: str) -> None:
        at = f"{self._clock() - self._began:6.2f} s"
        print(f"{at}  {what:<8}  {output.one_line(run.run_id)}  {details}".rstrip(), flush=True)

    def _is_next_quarter(self, run: Run) -> bool:
        if not run.total:
            return False
        quarter = int(run.done / run.total * QUARTERS)
        if not self._quarters.get(run.run_id, 0) < quarter < QUARTERS:  # the end has a line of its own
            return False
        self._quarters[run.run_id] = quarter
        return True
