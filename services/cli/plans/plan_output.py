"""What a plan shows: its progress, its state, its report; and what Ctrl-C does meanwhile."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli import output
from services.cli.output import Column
from services.planner.cancellation import CancellationToken
from services.planner.plan import Plan
from services.planner.plan.status import Pace, Standing
from services.planner.tasks import TaskResult

LOOK_SECONDS: Final = 0.25
LINE_SECONDS: Final = 5.0
BAR_WIDTH: Final = 30
NARROW_BAR_WIDTH: Final = 10
NAME_WIDTH: Final = 8
"""A name that has less room than that is left out."""


COLUMNS: Final = [
    Column("PLAN"), Column("STATE"), Column("DONE", right=True), Column("FAILED", right=True),
    Column("RUNNING", right=True), Column("LEFT", right=True), Column("RATE", drop=1),
    Column("TO GO", drop=3), Column("BEGUN", drop=2),
]  # fmt: skip

FAILURES_TOLD: Final = 5


class ProgressDisplay:
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
        told = Text(progress_line(pace), "red" if pace.failed else "", no_wrap=True, overflow="ellipsis")
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
            line = progress_line(self._pace())
            if time.monotonic() >= due and line != told:
                self._print(line)
                told, due = line, time.monotonic() + LINE_SECONDS
        self._print(progress_line(self._pace()))

    def _print(self, line: str) -> None:
        print(f"{self._name}: {line}", file=sys.stderr, flush=True)


def progress_line(pace: Pace) -> str:
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


# -- Ctrl-C ---------------------------------------------------------------------------


ONCE_MORE = "ending what runs; once more ends it at once"


@contextlib.contextmanager
def interruptible(
    token: CancellationToken, say: Callable[[str], None], restore: Callable[[], None] = lambda: None
) -> Iterator[list[int]]:
    """In the block the first signal cancels the token, and the second ends this process.

    Args:
        token: of what is under way.
        say: tells the user.
        restore: leaves the terminal as it was.

    Yields:
        What came.
    """
    loop, came = asyncio.get_running_loop(), list[int]()

    def interrupt(number: int) -> None:
        if came:
            restore()
            exit_now(128 + number)  # the subprocesses end with it; what is left is noted as running
        came.append(number)
        token.cancel("interrupted")
        say(ONCE_MORE)

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield came
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def exit_now(code: int) -> None:
    """End this process, and don't wait for threads, which nothing else ends."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
            stream.flush()
    os._exit(code)


# -- words ----------------------------------------------------------------------------


def case_counts(standing: Standing) -> str:
    parts = [f"{standing.done} of {standing.total} done", f"{standing.failed} failed"]
    if standing.running:
        parts.append(f"{standing.running} running")
    if standing.stale:
        parts.append(f"{standing.stale} noted as running by a process that is gone")
    return ", ".join(parts)


def show_plan(found: Plan, standing: Standing) -> None:
    sitting = standing.sitting
    lines = {
        "plan": found.plan_id,
        "state": standing.state.value,
        "cases": case_counts(standing),
        "left": str(standing.left) if standing.left else "",
        "rate": rate(standing.rate_per_second) if standing.rate_per_second else "",
        "to go": output.duration(standing.eta_seconds),
        "stopped": (sitting.stopped or "") if sitting else "",
        "tool": found.manifest.tool,
        "directory": _near(found.directory),
    }
    out = output.console()
    for name, text in lines.items():
        if text:
            out.print(f"{name:<11}{output.one_line(text)}")


def show_failures(results: Sequence[TaskResult]) -> None:
    failed = [one for one in results if one.error_type and one.task_status != "cancelled"]
    for one in failed[:FAILURES_TOLD]:
        print(
            output.shorten(f"case {one.index} {one.task_status}: {one.error_type}: {one.error_message}", 200)
        )
    if len(failed) > FAILURES_TOLD:
        print(f"and {len(failed) - FAILURES_TOLD} more that did not succeed")


def plan_row(found: Plan, standing: Standing) -> list[output.Cell]:
    sitting = standing.sitting
    return [
        found.plan_id,
        output.styled(standing.state),
        f"{standing.done}/{standing.total}",
        str(standing.failed),
        str(standing.running),
        str(standing.left),
        rate(standing.rate_per_second) if standing.rate_per_second else "",
        output.duration(standing.eta_seconds),
        output.ago(sitting.began_at.isoformat()) if sitting else "",
    ]


def plan_json(found: Plan, standing: Standing) -> dict[str, Any]:
    counted = {"plan_id": found.plan_id, "directory": str(found.directory), "tool": found.manifest.tool}
    members: dict[str, Any] = json.loads(json.dumps(asdict(standing), default=str))
    sitting = members.pop("sitting")
    return {**counted, **members, "sitting": sitting}


def show_report(files: dict[str, Path], as_json: bool) -> None:
    if as_json:
        output.print_json(report_paths(files))
    elif page := files.get("report.html"):
        others = ", ".join(path.name for path in files.values() if path.name != page.name)
        print(f"{'report':<11}{_near(page)}, and beside it {others}")


def report_paths(files: dict[str, Path]) -> dict[str, str]:
    return {kind: str(path) for kind, path in files.items()}


def _near(path: Path) -> str:
    """A path as one would write it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
