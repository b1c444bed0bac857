"""Where the demo is shown: live on a terminal, as plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from services.cli import output
from services.cli.demo.tracker import Board, Phase, Run, Tally
from services.cli.output import Cell, Column, duration, one_line, rich_table, short
from services.cli.watch import describe
from services.executor.store import Entry

MARKS = {
    Phase.RUNNING: ("▶", "cyan"),
    Phase.RETRYING: ("↻", "yellow"),
    Phase.FINISHED: ("✓", "green"),
    Phase.FAILED: ("✗", "red"),
    Phase.KILLED: ("■", "magenta"),
}
FEWEST_ENDED, MOST_ENDED = 3, 12
LINES_AROUND = 11
BAR_WIDTH = 22
COLUMNS = [
    Column("EXPERIMENT"),
    Column("TOOL", drop=1),
    Column("RUNS", right=True),
    Column("OK", right=True),
    Column("FAILED", right=True),
    Column("KILLED", right=True),
    Column("MEDIAN", right=True, drop=2),
    Column("LAST ERROR"),
]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the header says."""

    experiments: int
    server: str
    tools: str
    log: str


def frame(board: Board, facts: Facts, now: float, elapsed_seconds: float, width: int, height: int) -> Group:
    """The live view at a moment, for a terminal of that size.

    Args:
        now: unix seconds, as the runs count them.
        elapsed_seconds: since the demo began.
    """
    runs = list(board.under_way.values())
    free = height - LINES_AROUND - max(1, len(runs))
    ended = list(board.latest(min(MOST_ENDED, max(FEWEST_ENDED, free))))
    return Group(
        *_header(facts),
        _title("under way", width),
        _under_way(runs, now, width) if runs else Text("  nothing at the moment", "dim"),
        Text(),
        _title("ended, the latest first", width),
        _ended(ended, width) if ended else Text("  nothing yet", "dim"),
        Text(),
        _footer(board.total(), len(runs), elapsed_seconds),
    )


def rows(board: Board) -> list[list[Cell]]:
    """The summary, a row for each experiment."""
    return [_row(experiment_id, tally) for experiment_id, tally in sorted(board.tallies.items())]


def summary(board: Board, elapsed_seconds: float, width: int) -> RenderableType:
    """What it all came to, and where to go from here."""
    return Group(
        Text(),
        Text.assemble(("fullsend demo ", "bold"), (f"ran for {duration(elapsed_seconds)}", "")),
        rich_table(COLUMNS, rows(board), width),
        Text.assemble(("  ", ""), *_counts(board.total())),
        Text(),
        *(Text(f"  {line}", "dim") for line in NEXT_STEPS),
    )


NEXT_STEPS = (
    "Go on with `fullsend demo --forever`, and look at it from a second terminal",
    "here with `fullsend watch`, `runs`, `show`, `logs`, `schedules`, `doctor`.",
)


# -- parts ----------------------------------------------------------------------------


def _header(facts: Facts) -> Iterable[Text]:
    yield Text.assemble(
        ("fullsend demo", "bold"),
        f": {facts.experiments} experiments take turns, each in a process that can be killed",
    )
    yield Text("Some are made to hang, to miss a tool or to meet a dead API.  Ctrl-C ends it.")
    yield Text(f"{facts.server}   tools: {facts.tools}   log: {facts.log}", "dim", no_wrap=True)
    yield Text()


def _title(text: str, width: int) -> Padding:
    return Padding(Rule(Text(text, "bold"), align="left", style="dim"), (0, max(0, width - 110), 0, 0))


def _under_way(runs: list[Run], now: float, width: int) -> Table:
    table = _grid()
    for run in runs:
        mark, style = MARKS[run.phase]
        if run.phase is Phase.RETRYING:
            bar: RenderableType = Text(f"again in {max(0.0, run.due - now):.1f} s", style)
            spent = ""
        else:
            bar = _bar(run)
            spent = f"{max(0.0, now - run.started):.1f} s"
        table.add_row(Text(mark, style), Text(run.experiment_id), bar, Text(spent), _note(run, width))
    return table


def _bar(run: Run) -> RenderableType:
    if run.total is None or run.total <= 0:
        return Text("working", "cyan")
    return ProgressBar(run.total, run.done, BAR_WIDTH, complete_style="cyan", finished_style="cyan")


def _note(run: Run, width: int) -> Text:
    counted = f"{run.done:g}/{run.total:g}  " if run.total else ""
    tried = f"attempt {run.attempt}  " if run.attempt > 1 and run.phase is Phase.RUNNING else ""
    return Text(short(counted + tried + run.note, max(20, width - 62)), "dim")


def _ended(runs: list[Run], width: int) -> Table:
    table = _grid()
    for run in runs:
        mark, style = MARKS[run.phase]
        table.add_row(
            Text(mark, style),
            Text(run.experiment_id),
            Text(run.phase.value, style),
            Text(duration(run.seconds)),
            Text(short(run.note, max(20, width - 62)), "" if run.phase is Phase.FINISHED else style),
        )
    return table


def _grid() -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=2, justify="right")
    table.add_column(width=24, no_wrap=True, overflow="ellipsis")
    table.add_column(width=BAR_WIDTH, no_wrap=True)
    table.add_column(width=7, justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    return table


def _footer(total: Tally, running: int, elapsed_seconds: float) -> Text:
    return Text.assemble(
        *_counts(total),
        (f"  {running} under way", "cyan"),
        (f"  {elapsed_seconds:.0f} s", ""),
    )


def _counts(total: Tally) -> list[tuple[str, str]]:
    return [
        (f"{total.ended} ended: ", "bold"),
        (f"{total.finished} finished", "green"),
        (", ", ""),
        (f"{total.failed} failed", "red"),
        (", ", ""),
        (f"{total.killed} killed", "magenta"),
        ("; ", ""),
        (f"{total.retries} tried again", "yellow"),
    ]


def _row(experiment_id: str, tally: Tally) -> list[Cell]:
    return [
        experiment_id,
        tally.tool,
        str(tally.ended),
        _count(tally.finished, "green"),
        _count(tally.failed, "red"),
        _count(tally.killed, "magenta"),
        duration(tally.median_seconds),
        Text(one_line(tally.last_error), "dim"),
    ]


def _count(number: int, style: str) -> Text:
    return Text(str(number), style if number else "dim")


QUARTERS = 4


class Screen(Protocol):
    """Shows the demo; everything is called from one task and returns at once."""

    def begin(self, board: Board, facts: Facts) -> None:
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

    def begin(self, board: Board, facts: Facts) -> None:
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
        return frame(self._board, self._facts, time.time(), self._elapsed(), width, height)

    def summary(self) -> RenderableType:
        """What it came to."""
        return summary(self._board, self._elapsed(), self._console.width)

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

    def begin(self, board: Board, facts: Facts) -> None:
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
                self._say("started", run, describe(entry)[1])
            case "run_retrying":
                self._say(Phase.RETRYING, run, describe(entry)[1])
            case "progress" if self._is_next_quarter(run):
                self._say("progress", run, describe(entry)[1])

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
        output.table(COLUMNS, rows(self._board), self._console)

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
