"""Shows the demo: a live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from services.cli import output
from services.cli.demo.tracker import Phase, Run, RunTracker, Tally
from services.cli.output import Cell, Column, one_line, shorten
from services.cli.watch import describe
from services.executor.store import JournalEntry
from services.operations.words import duration

MARKS = {
    Phase.RUNNING: ("▶", "cyan"),
    Phase.RETRYING: ("↻", "yellow"),
    Phase.FINISHED: ("✓", "green"),
    Phase.FAILED: ("✗", "red"),
    Phase.KILLED: ("■", "magenta"),
}
FEWEST_ENDED, MOST_ENDED = 3, 12
LINES_AROUND = 11
"""Lines of a frame besides those of runs."""
BAR_WIDTH = 22
QUARTERS = 4
COLUMNS = [
    Column("EXPERIMENT"), Column("TOOL", drop=1), Column("RUNS", right=True), Column("OK", right=True),
    Column("FAILED", right=True), Column("KILLED", right=True), Column("MEDIAN", right=True, drop=2),
    Column("LAST ERROR"),
]  # fmt: skip
NEXT_STEPS = (
    "Next: `fullsend demo --forever`, and in a second terminal in this directory",
    "`fullsend watch`, `runs`, `show`, `logs`, `schedules` or `doctor`.",
)


class LiveDisplay:
    """Redraws a view of all runs until the demo ends.

    Args:
        console: the terminal.
        clock: monotonic seconds.
    """

    tracker: RunTracker

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def begin(self, tracker: RunTracker, places: str) -> None:
        """Take over the terminal."""
        self.tracker, self._places, self._began = tracker, places, self._clock()
        self._live.start()

    def update(self, entry: JournalEntry, run: Run) -> None:
        """Do nothing: the next frame shows the run."""

    def refresh(self) -> None:
        """Draw the next frame."""
        self._live.update(self.frame(), refresh=True)

    def stopping(self) -> None:
        """Do nothing: the last frames show the runs that are left."""

    def close(self) -> None:
        """Release the terminal."""
        self._live.stop()

    def summarize(self) -> None:
        """Print the summary."""
        self._console.print(self.summary(), soft_wrap=False)

    def frame(self) -> Group:
        """Return the view at this moment."""
        width, height = self._console.size
        return frame(self.tracker, self._places, time.time(), self._elapsed(), width, height)

    def summary(self) -> RenderableType:
        """Return the table of all experiments, and what to try next."""
        return Group(
            Text(),
            Text.assemble(("fullsend demo ", "bold"), f"ran for {duration(self._elapsed())}"),
            output.rich_table(COLUMNS, _rows(self.tracker), self._console.width),
            Text.assemble("  ", *_counts(self.tracker.total())),
            Text(),
            *(Text(f"  {line}", "dim") for line in NEXT_STEPS),
        )

    def _elapsed(self) -> float:
        return self._clock() - self._began


class PlainDisplay:
    """Prints a line for each start, retry and end of a run, and for each quarter of its progress.

    Args:
        console: not a terminal, or one that can't move its cursor.
        clock: monotonic seconds.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._quarters: dict[str, int] = {}

    def begin(self, tracker: RunTracker, places: str) -> None:
        """Print what the demo does."""
        self._tracker, self._began = tracker, self._clock()
        output.say(f"demo: {len(tracker.expected)} experiments run in turn; some fail on purpose; {places}")

    def update(self, entry: JournalEntry, run: Run) -> None:
        """Print a line, unless the entry is about minor progress."""
        if entry.kind == "result":
            self._quarters.pop(run.run_id, None)
            self._print(run.phase, run, f"{duration(run.seconds)}  {one_line(run.note)}")
            return
        what, details = describe(entry)
        if what in ("started", "retrying") or (what == "progress" and self._is_next_quarter(run)):
            self._print(what, run, details)

    def refresh(self) -> None:
        """Do nothing: a line is printed only when something happens."""

    def stopping(self) -> None:
        """Print that no more runs start."""
        output.say("demo: stopping; waiting for running tools")

    def close(self) -> None:
        """Do nothing: the terminal was not taken over."""

    def summarize(self) -> None:
        """Print the table of all experiments."""
        output.say(f"demo: ran for {duration(self._clock() - self._began)}")
        output.table(COLUMNS, _rows(self._tracker), self._console)

    def _print(self, what: str, run: Run, details: str) -> None:
        at = f"{self._clock() - self._began:6.2f} s"
        output.say(f"{at}  {what:<8}  {one_line(run.run_id)}  {details}".rstrip())

    def _is_next_quarter(self, run: Run) -> bool:
        if not run.total:
            return False
        quarter = int(run.done / run.total * QUARTERS)
        if not self._quarters.get(run.run_id, 0) < quarter < QUARTERS:  # the end has its own line
            return False
        self._quarters[run.run_id] = quarter
        return True


# -- the live view --------------------------------------------------------------------


def frame(
    tracker: RunTracker, places: str, now: float, elapsed_seconds: float, width: int, height: int
) -> Group:
    """Lay out the live view for a terminal of `width` by `height` characters.

    Args:
        tracker: the runs.
        places: the server, tools and log, for the header.
        now: the time in Unix seconds.
        elapsed_seconds: since the demo began.
    """
    running = list(tracker.running.values())
    free = height - LINES_AROUND - max(1, len(running))
    ended = list(tracker.latest(min(MOST_ENDED, max(FEWEST_ENDED, free))))
    return Group(
        *_header(len(tracker.expected), places),
        _title("running", width),
        _running(running, now, width) if running else Text("  no run", "dim"),
        Text(),
        _title("ended, the latest first", width),
        _ended(ended, width) if ended else Text("  no run", "dim"),
        Text(),
        Text.assemble(
            *_counts(tracker.total()), (f"  {len(running)} running", "cyan"), f"  {elapsed_seconds:.0f} s"
        ),
    )


def _header(experiments: int, places: str) -> Iterable[Text]:
    yield Text.assemble(
        ("fullsend demo", "bold"),
        f": {experiments} experiments run in turn, each in a process that can be killed",
    )
    yield Text("Some hang, miss a tool or call a dead API on purpose.  Press Ctrl-C to stop.")
    yield Text(places, "dim", no_wrap=True)
    yield Text()


def _title(text: str, width: int) -> Padding:
    return Padding(Rule(Text(text, "bold"), align="left", style="dim"), (0, max(0, width - 110), 0, 0))


def _running(runs: list[Run], now: float, width: int) -> Table:
    table = _grid()
    for run in runs:
        mark, style = MARKS[run.phase]
        if run.phase is Phase.RETRYING:
            bar: RenderableType = Text(f"again in {max(0.0, run.due - now):.1f} s", style)
            seconds = ""
        else:
            bar = _bar(run)
            seconds = f"{max(0.0, now - run.started):.1f} s"
        table.add_row(Text(mark, style), Text(run.experiment_id), bar, Text(seconds), _note(run, width))
    return table


def _bar(run: Run) -> RenderableType:
    if run.total is None or run.total <= 0:
        return Text("working", "cyan")
    return ProgressBar(run.total, run.done, BAR_WIDTH, complete_style="cyan", finished_style="cyan")


def _note(run: Run, width: int) -> Text:
    progress = f"{run.done:g}/{run.total:g}  " if run.total else ""
    attempt = f"attempt {run.attempt}  " if run.attempt > 1 and run.phase is Phase.RUNNING else ""
    return Text(shorten(progress + attempt + run.note, max(20, width - 62)), "dim")


def _ended(runs: list[Run], width: int) -> Table:
    table = _grid()
    for run in runs:
        mark, style = MARKS[run.phase]
        note = shorten(run.note, max(20, width - 62))
        table.add_row(
            Text(mark, style),
            Text(run.experiment_id),
            Text(run.phase.value, style),
            Text(duration(run.seconds)),
            Text(note, "" if run.phase is Phase.FINISHED else style),
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


# -- the summary ----------------------------------------------------------------------


def _counts(total: Tally) -> list[tuple[str, str]]:
    return [
        (f"{total.ended} ended: ", "bold"),
        (f"{total.finished} finished", "green"),
        (", ", ""),
        (f"{total.failed} failed", "red"),
        (", ", ""),
        (f"{total.killed} killed", "magenta"),
        ("; ", ""),
        (f"{total.retries} retried", "yellow"),
    ]


def _rows(tracker: RunTracker) -> list[list[Cell]]:
    return [_row(experiment_id, tally) for experiment_id, tally in sorted(tracker.tallies.items())]


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
