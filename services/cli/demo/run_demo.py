"""`fullsend demo`: runs the sample experiments with the embedded server, and shows what happens."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Protocol, Self

import typer

from services.cli import connection, experiments, output, publication
from services.cli.demo.display import LiveDisplay, PlainDisplay
from services.cli.demo.tracker import Run, RunTracker
from services.cli.output import CommandError
from services.executor import config
from services.executor.config import Mode, Settings
from services.executor.service import Service
from services.executor.store import JournalEntry, Store
from shared import log
from shared.connection import server
from shared.embedded import DEFAULT_DIRECTORY
from shared.messages import State

PROJECT = Path(__file__).resolve().parents[3]
LOG_FILE = DEFAULT_DIRECTORY / "demo.log"
CYCLE_SECONDS = 1.5
RUNS_PER_CYCLE = 2
RUNS_OF_EACH = 3
LONGEST_SECONDS = 45.0
GRACE_SECONDS = 2.0
SAMPLE_VARIABLES = ("GITHUB_TOKEN",)
"""What the tools of the sample experiments ask for."""
FRAME_SECONDS = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def demo(
    forever: Annotated[bool, typer.Option("--forever", help="Continue until Ctrl-C.")] = False,
) -> None:
    """Run sample experiments, and watch them.

    Uses the embedded server of this directory, with its data in .fullsend/; publishes
    config/experiments/*.yaml and runs all ready experiments on the server in turn. Some samples finish;
    some fail, hang or are retried on purpose. The demo ends after about 20 seconds, or with
    Ctrl-C. It needs neither Redis nor a network.
    """
    out = output.console()
    is_live = out.is_terminal and not out.is_dumb_terminal
    run_demo(LiveDisplay(out) if is_live else PlainDisplay(out), forever=forever)


class Display(Protocol):
    """Shows the demo.  One task calls all methods; none of them waits."""

    def begin(self, tracker: RunTracker, places: str) -> None:
        """Start to show what the tracker knows; `places` are the server, the tools and the log."""

    def update(self, entry: JournalEntry, run: Run) -> None:
        """Show an entry about a run; the tracker has read it."""

    def refresh(self) -> None:
        """Show that time has passed."""

    def stopping(self) -> None:
        """Show that no more runs start."""

    def close(self) -> None:
        """Release the terminal, also after an error."""

    def summarize(self) -> None:
        """Print the summary."""


def run_demo(display: Display, *, forever: bool = False) -> None:
    """Run the demo until each experiment has run a few times, or until a signal.

    Args:
        display: shows it.
        forever: whether only a signal ends it.

    Raises:
        CommandError: there are no experiments, or the log can't be written.
    """
    setup = set_up()

    async def run(url: str) -> None:
        async with connection.store_at(url, setup.settings) as store:
            await _Demo(setup, url, display, signals).run(store, forever)

    with DeferredSignals() as signals, server(setup.settings.redis_url) as url, _log_file(setup.settings):
        asyncio.run(run(url))


# -- what is run ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Setup:
    """The experiments of the demo, and the settings of its service."""

    publications: list[publication.Publication]
    settings: Settings

    def places(self, url: str) -> str:
        """Return where the server, the tools and the log are."""
        return f"server: {url}, tools: {_relative(self.settings.tools_path)}, log: {LOG_FILE}"


def set_up() -> Setup:
    """Read the experiments of this directory, or those of the project if there are none."""
    root, files = _find_experiments()
    chosen = {} if root == Path() else {"tools_path": PROJECT / "tools"}
    allowed = config.load(redis_url="embedded").tool_environment_allowed
    settings = config.load(
        redis_url="embedded",
        tool_environment_allowed=tuple(dict.fromkeys((*allowed, *SAMPLE_VARIABLES))),
        schedule_mode=(Mode.TRIGGER, Mode.SPEEDRUN),
        speedrun_interval=CYCLE_SECONDS,
        speedrun_max_per_cycle=RUNS_PER_CYCLE,
        concurrency=8,
        shutdown_grace=GRACE_SECONDS,
        **chosen,
    )
    return Setup(publication.read_files(files, State.READY), settings)


def _find_experiments() -> tuple[Path, list[Path]]:
    folder = Path("config", "experiments")
    for root in (Path(), PROJECT):
        if files := sorted((root / folder).glob("*.yaml")):
            return root, files
    raise CommandError(f"there are no experiments, neither in {folder} nor in {PROJECT / folder}")


@contextlib.contextmanager
def _log_file(settings: Settings) -> Iterator[None]:
    """Write the service's log to a file inside the block: the terminal shows the demo."""
    try:
        file = LOG_FILE.open("w", encoding="utf-8")
    except OSError as exc:
        raise CommandError(f"{LOG_FILE} can't be written: {exc.strerror or exc}") from None
    with file:
        log.configure(level=settings.log_level, file=file)
        yield
        log.configure(level=settings.log_level)


def _relative(path: Path) -> str:
    """Return `path` relative to this directory if it is below it."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# -- running --------------------------------------------------------------------------


class DeferredSignals:
    """Records the signals that would end this process, so that the demo can stop by itself.

    A signal that interrupts the start or the stop of the embedded server would leave it running.
    """

    def __init__(self) -> None:
        self.received = False
        self.wake: Callable[[], object] = lambda: None

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self.received = True
        self.wake()


class _Demo:
    """Runs the service and shows what it does."""

    def __init__(self, setup: Setup, url: str, display: Display, signals: DeferredSignals) -> None:
        self._setup = setup
        self._url = url
        self._display = display
        self._signals = signals
        self._tracker = RunTracker({one.experiment.id: one.experiment.tool for one in setup.publications})
        self._cursor = ""

    async def run(self, store: Store, forever: bool) -> None:
        """Publish the experiments, run and show them; return when the service has stopped."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._signals.wake = lambda: loop.call_soon_threadsafe(stop.set)
        if self._signals.received:
            return
        for one in self._setup.publications:
            await experiments.store_publication(store, one, State.READY)
        self._cursor = await store.journal.end()
        self._display.begin(self._tracker, self._setup.places(self._url))
        deadline = loop.time() + (float("inf") if forever else LONGEST_SECONDS)
        try:
            await self._serve(store, stop, deadline, forever)
        finally:
            self._signals.wake = lambda: None
            self._display.close()
        self._display.summarize()

    async def _serve(self, store: Store, stop: asyncio.Event, deadline: float, forever: bool) -> None:
        service = Service(self._setup.settings, self._url, os.environ)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(service.run(stop), name="service")
            stopping = False
            while not serving.done():
                await self._show_news(store)
                if not forever and self._is_over(deadline):
                    stop.set()
                if stop.is_set() and not stopping:
                    self._display.stopping()
                    stopping = True
                await asyncio.wait([serving], timeout=FRAME_SECONDS)
        await self._show_news(store)

    def _is_over(self, deadline: float) -> bool:
        return self._tracker.each_has_ended(RUNS_OF_EACH) or asyncio.get_running_loop().time() > deadline

    async def _show_news(self, store: Store) -> None:
        """Read the new entries of the journal, and show them."""
        while entries := await store.journal.read(self._cursor):
            for entry in entries:
                self._cursor = entry.cursor
                run = self._tracker.read(entry)
                if run is not None:
                    self._display.update(entry, run)
        self._display.refresh()
