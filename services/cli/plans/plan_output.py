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

from rich.console import RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from services.cli import output
from services.cli.output import Column
from services.cli.plans.cost_options import usage_lines
from services.operations import words
from services.planner.cancellation import CancellationToken
from services.planner.plan import Plan
from services.planner.plan.plan_usage import PlanUsage
from services.planner.plan.status import PlanStatus, ProgressSnapshot
from services.planner.tasks import TaskResult

LOOK_SECONDS: Final = 0.25
LINE_SECONDS: Final = 5.0
BAR_WIDTH: Final = 30
NARROW_BAR_WIDTH: Final = 10
NAME_WIDTH: Final = 8
"""With less room than this, the name is left out."""

COLUMNS: Final = [
    Column("PLAN"), Column("STATE"), Column("DONE", right=True), Column("FAILED", right=True),
    Column("RUNNING", right=True), Column("LEFT", right=True), Column("RATE", drop=1),
    Column("TO GO", drop=3), Column("BEGUN", drop=2),
]  # fmt: skip

FAILURES_SHOWN: Final = 5


class ProgressDisplay:
    """Shows a plan's progress on standard error inside a `with` block: a bar on a terminal, else lines.

    Standard output is left to the plan's result.

    Args:
        name: of the plan.
        pace: returns its progress; called from another thread.
    """

    def __init__(self, name: str, pace: Callable[[], ProgressSnapshot]) -> None:
        self._name = name
        self._pace = pace
        self._over = threading.Event()
        self._console = output.console(stderr=True, soft_wrap=False)
        self._live: Live | None = None
        self._lines: threading.Thread | None = None

    def __enter__(self) -> Self:
        # Not `self._console.is_terminal`: with FORCE_COLOR it is true for a file.
        if sys.stderr.isatty() and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._bar, refresh_per_second=8, transient=False
            )
            self._live.start()
        else:
            self._lines = threading.Thread(target=self._print_lines, name="progress", daemon=True)
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
        """Show the final progress, and restore the terminal."""
        self._over.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._lines is not None:
            self._lines.join()
            self._lines = None

    def say(self, text: str) -> None:
        """Print a message beside the progress."""
        self._console.print(output.one_line(text), soft_wrap=True)

    # -- a terminal -------------------------------------------------------------------

    def _bar(self) -> Table:
        """Lay out one line; on a narrow terminal, the name is cut first, then the bar."""
        pace = self._pace()
        text = Text(progress_line(pace), "red" if pace.failed else "", no_wrap=True, overflow="ellipsis")
        row, room = Table.grid(padding=(0, 1, 0, 0)), self._console.width - text.cell_len - 1
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
        row.add_row(*cells, text)
        return row

    # -- lines ------------------------------------------------------------------------

    def _print_lines(self) -> None:
        """Print a line every few seconds if the progress has changed, and one at the end."""
        last, due = "", time.monotonic() + LINE_SECONDS
        while not self._over.wait(LOOK_SECONDS):
            line = progress_line(self._pace())
            if time.monotonic() >= due and line != last:
                self._print(line)
                last, due = line, time.monotonic() + LINE_SECONDS
        self._print(progress_line(self._pace()))

    def _print(self, line: str) -> None:
        output.say(f"{self._name}: {line}", file=sys.stderr)


def progress_line(pace: ProgressSnapshot) -> str:
    """Return a plan's progress as one line."""
    parts = [f"{pace.done} of {pace.total} done", f"{pace.failed} failed", f"{pace.running} running"]
    if pace.rate_per_second is not None:
        parts.append(rate(pace.rate_per_second))
    if pace.eta_seconds:
        parts.append(f"{words.duration(pace.eta_seconds)} to go")
    return ", ".join(parts)


def rate(per_second: float) -> str:
    """Format cases per second: `12.3 a second`, `4.0 a minute`."""
    return f"{per_second:.1f} a second" if per_second >= 1 else f"{per_second * 60:.1f} a minute"


# -- Ctrl-C ---------------------------------------------------------------------------


STOPPING = "stopping the running cases; press Ctrl-C again to exit at once"


@contextlib.contextmanager
def interruptible(
    token: CancellationToken, say: Callable[[str], None], restore: Callable[[], None] = lambda: None
) -> Iterator[list[int]]:
    """Inside the block, the first SIGINT or SIGTERM cancels the token and the second ends this process.

    Args:
        token: of the plan.
        say: prints a message.
        restore: restores the terminal.

    Yields:
        The signals received so far.
    """
    loop, received = asyncio.get_running_loop(), list[int]()

    def interrupt(number: int) -> None:
        if received:
            restore()
            exit_now(128 + number)  # subprocesses die with this process; their cases become stale
        received.append(number)
        token.cancel("interrupted")
        say(STOPPING)

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield received
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def exit_now(code: int) -> None:
    """End this process without waiting for its threads, which can't be stopped."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
    os._exit(code)


# -- words ----------------------------------------------------------------------------


def case_counts(status: PlanStatus) -> str:
    """Return how many cases are done, failed, running and stale, as one line."""
    parts = [f"{status.done} of {status.total} done", f"{status.failed} failed"]
    if status.running:
        parts.append(f"{status.running} running")
    if status.stale:
        parts.append(f"{status.stale} were running in a process that is gone")
    return ", ".join(parts)


def show_plan(
    found: Plan, status: PlanStatus, used: PlanUsage, evaluations: tuple[int, int] | None = None
) -> None:
    """Print one plan, a line for each fact.

    Args:
        found: the plan.
        status: its progress.
        used: what it has used.
        evaluations: how many were made, and how many of them failed; None if that is not known.
    """
    session = status.session
    lines = {
        "plan": found.plan_id,
        "state": status.state.value,
        "cases": case_counts(status),
        "left": str(status.left) if status.left else "",
        "rate": rate(status.rate_per_second) if status.rate_per_second else "",
        "to go": words.duration(status.eta_seconds),
        "evaluated": "" if evaluations is None else _evaluations(*evaluations),
        **dict(usage_lines(used)),
        "stopped": (session.stopped or "") if session else "",
        "tool": found.manifest.tool,
        "directory": _relative(found.directory),
    }
    out = output.console()
    for name, text in lines.items():
        if text:
            out.print(f"{name:<11}{output.one_line(text)}")


def _evaluations(made: int, failed: int) -> str:
    text = f"{made:,} {'evaluation' if made == 1 else 'evaluations'}"
    return f"{text}, {failed:,} failed" if failed else text


def show_failures(results: Sequence[TaskResult]) -> None:
    """Print the errors of the first few cases that did not succeed."""
    failed = [one for one in results if one.error_type and one.task_status != "cancelled"]
    for one in failed[:FAILURES_SHOWN]:
        output.say(
            output.shorten(f"case {one.index} {one.task_status}: {one.error_type}: {one.error_message}", 200)
        )
    if len(failed) > FAILURES_SHOWN:
        output.say(f"and {len(failed) - FAILURES_SHOWN} more cases that did not succeed")


def plan_row(found: Plan, status: PlanStatus) -> list[output.Cell]:
    """Return a plan as a row under `COLUMNS`."""
    session = status.session
    return [
        found.plan_id,
        output.styled(status.state),
        f"{status.done}/{status.total}",
        str(status.failed),
        str(status.running),
        str(status.left),
        rate(status.rate_per_second) if status.rate_per_second else "",
        words.duration(status.eta_seconds),
        words.ago(session.began_at.isoformat()) if session else "",
    ]


def plan_json(found: Plan, status: PlanStatus) -> dict[str, Any]:
    """Return a plan as JSON for other programs."""
    plan = {"plan_id": found.plan_id, "directory": str(found.directory), "tool": found.manifest.tool}
    members: dict[str, Any] = json.loads(json.dumps(asdict(status), default=str))
    session = members.pop("session")
    return {**plan, **members, "session": session}


def show_report(files: dict[str, Path], as_json: bool) -> None:
    """Print where the files of a report are."""
    if as_json:
        output.print_json(report_paths(files))
    elif page := files.get("report.html"):
        show_files("report", {page.name: page, **files})


def show_files(title: str, files: dict[str, Path]) -> None:
    """Print where the first file is, and the names of those beside it."""
    first, *others = files.values()
    beside = f"; beside it: {', '.join(path.name for path in others)}" if others else ""
    output.say(f"{title:<11}{_relative(first)}{beside}")


def report_paths(files: dict[str, Path]) -> dict[str, str]:
    """Return the files of a report as JSON for other programs."""
    return {kind: str(path) for kind, path in files.items()}


def _relative(path: Path) -> str:
    """Return `path` relative to this directory if it is below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
