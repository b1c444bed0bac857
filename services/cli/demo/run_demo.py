"""`fullsend demo`."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from services.cli import connection, experiments, output
from services.cli.demo.display import Facts, LiveScreen, PlainScreen, Screen
from services.cli.demo.tracker import Board
from services.cli.output import CommandError
from services.executor import config
from services.executor.config import Mode, Settings
from services.executor.service import Service
from services.executor.store import Store
from shared import log
from shared.connection import server
from shared.embedded import DEFAULT_DIRECTORY
from shared.messages import State

PROJECT = Path(__file__).resolve().parents[3]
LOG_FILE = DEFAULT_DIRECTORY / "demo.log"
CYCLE_SECONDS = 1.5
TURNS = 2
RUNS_OF_EACH = 3
LONGEST_SECONDS = 45.0
GRACE_SECONDS = 2.0
FRAME_SECONDS = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def demo(
    forever: Annotated[bool, typer.Option("--forever", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Watch sample experiments run, with a server of their own.

    Starts a server (its data in .fullsend/), publishes config/experiments/*.yaml and runs all of them in
    turns: some finish, some fail, hang or are retried, on purpose. Ends by itself after about 20
    seconds, or with Ctrl-C. Needs no Redis and no network.
    """
    out = output.console()
    animated = out.is_terminal and not out.is_dumb_terminal
    run_demo(LiveScreen(out) if animated else PlainScreen(out), forever=forever)


def run_demo(screen: Screen, *, forever: bool = False) -> None:
    """Run the demo on `screen` until it has shown everything, or until it is interrupted."""
    stage = set_up()
    with Interruption() as interruption, server(stage.settings.redis_url) as url, _log_file(stage.settings):
        performance = _Performance(stage, url, screen, interruption)
        asyncio.run(connection.on(url, stage.settings, lambda store: performance.run(store, forever)))


# -- the stage ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stage:
    """What is run, and how."""

    publications: list[experiments.Publication]
    settings: Settings

    def facts(self, url: str) -> Facts:
        """What the viewer is told about it."""
        return Facts(len(self.publications), url, _near(self.settings.tools_path), str(LOG_FILE))


def set_up() -> Stage:
    """The experiments of this directory, otherwise those that come with the project."""
    for root in (Path(), PROJECT):
        files = sorted((root / "config" / "experiments").glob("*.yaml"))
        if files:
            break
    else:
        raise CommandError(f"there are no experiments, neither in config/experiments nor in {PROJECT}")
    chosen = {} if root == Path() else {"tools_path": PROJECT / "tools"}
    settings = config.load(
        redis_url="embedded",
        schedule_mode=(Mode.TRIGGER, Mode.SPEEDRUN),
        speedrun_interval=CYCLE_SECONDS,
        speedrun_max_per_cycle=TURNS,
        concurrency=8,
        shutdown_grace=GRACE_SECONDS,
        **chosen,
    )
    return Stage(experiments.read_files(files, State.READY), settings)


@contextlib.contextmanager
def _log_file(settings: Settings) -> Iterator[None]:
    """The service's log goes to a file while the block runs: the terminal is taken."""
    try:
        file = LOG_FILE.open("w", encoding="utf-8")
    except OSError as exc:
        raise CommandError(f"{LOG_FILE} can't be written: {exc.strerror or exc}") from None
    with file:
        log.configure(level=settings.log_level, file=file)
        yield
        log.configure(level=settings.log_level)


def _near(path: Path) -> str:
    """`path` as seen from here, when that is shorter."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


# -- the performance ------------------------------------------------------------------


class Interruption:
    """Notes the signals that would end this process, so that it ends in its own time.

    Between the start of the server and its stop, none of them may get through:
    it would leave the server behind.
    """

    def __init__(self) -> None:
        self.noted = False
        self.wake: Callable[[], object] = lambda: None

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.noted = True
        self.wake()


class _Performance:
    """The service at work, and the screen that shows it."""

    def __init__(self, stage: Stage, url: str, screen: Screen, interruption: Interruption) -> None:
        self._stage = stage
        self._url = url
        self._screen = screen
        self._interruption = interruption
        tools = {one.experiment.id: one.experiment.tool for one in stage.publications}
        self._board = Board(tools)
        self._cursor = ""

    async def run(self, store: Store, forever: bool) -> None:
        """Publish, run, show; returns when the service has stopped."""
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        self._interruption.wake = lambda: loop.call_soon_threadsafe(stop.set)
        if self._interruption.noted:
            return
        for one in self._stage.publications:
            await experiments.store_publication(store, one)
        self._cursor = await store.journal.end()
        self._screen.begin(self._board, self._stage.facts(self._url))
        try:
            await self._serve(
                store, stop, loop.time() + (float("inf") if forever else LONGEST_SECONDS), forever
            )
        finally:
            self._interruption.wake = lambda: None
            self._screen.close()
        self._screen.sum_up()

    async def _serve(self, store: Store, stop: asyncio.Event, deadline: float, forever: bool) -> None:
        service = Service(self._stage.settings, self._url, os.environ)
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(service.run(stop), name="service")
            stopping = False
            while not serving.done():
                await self._hear(store)
                if not forever and self._is_over(deadline):
                    stop.set()
                if stop.is_set() and not stopping:
                    self._screen.stopping()
                    stopping = True
                await asyncio.wait([serving], timeout=FRAME_SECONDS)
        await self._hear(store)

    def _is_over(self, deadline: float) -> bool:
        return self._board.has_ended_each(RUNS_OF_EACH) or asyncio.get_running_loop().time() > deadline

    async def _hear(self, store: Store) -> None:
        """Take in what was said since, and show it."""
        while entries := await store.journal.read(self._cursor):
            for entry in entries:
                self._cursor = entry.cursor
                run = self._board.take(entry)
                if run is not None:
                    self._screen.heard(entry, run)
        self._screen.refresh()
