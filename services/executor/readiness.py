"""A process stands ready when a slot comes: a run that waits for the import of its tool is late."""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from typing import Protocol

import structlog

from services.executor.isolation.calls import Level, Module
from services.executor.loader import Loader
from services.executor.policy import Defaults
from services.executor.store import Store, Upcoming
from shared.errors import FullsendError, StoreError
from shared.messages import RECURRING, Experiment, State

log = structlog.get_logger()

EARLY_SECONDS = 9.5
AFTER_SECONDS = 1.5
"""Slots are at whole seconds, looks between them: they are in each other's way least there."""
LEAST_SECONDS = 1.0
ONE_SECONDS = 1.0
"""So long the next tool waits for the import of the one before."""
IMPORT_SECONDS = 30.0
"""What takes longer is for its run to wait for, and not for other tools."""
TOGETHER_SECONDS = 0.1
"""Whoever plans a hundred thousand schedules does so in parts."""

Kind = tuple[str, str | None]
"""A tool, and what its experiment chose to isolate its runs."""


class Maker(Protocol):
    """Has processes stand ready."""

    async def make_ready(self, module: Module, level: Level, timeout_seconds: float) -> None:
        """Ends nothing that was used lately, and never raises for anything that is wrong with the tool."""


class Readiness:
    """Has one process ready for each tool whose slot comes next, the soonest first.

    Every worker does so, since any of them may be the one that fires.

    Args:
        store: where slots are.
        loader: finds tools.
        maker: has their processes.
        defaults: what applies where an experiment says nothing else.
        most: so many slots are looked at.
    """

    def __init__(self, store: Store, loader: Loader, maker: Maker, defaults: Defaults, most: int) -> None:
        self._store = store
        self._loader = loader
        self._maker = maker
        self._defaults = defaults
        self._most = most
        self._under_way: dict[Kind, asyncio.Task[None]] = {}
        self.woken = asyncio.Event()

    async def run(self, longest_wait_seconds: float) -> None:
        """Look until cancelled; who has planned something sets `woken`."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                self.woken.clear()
                try:
                    seconds = await self._look(tasks)
                except StoreError:  # whoever fires says so
                    seconds = LEAST_SECONDS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(longest_wait_seconds, seconds)):
                        await self.woken.wait()
                        await asyncio.sleep(TOGETHER_SECONDS)

    async def _look(self, tasks: asyncio.TaskGroup) -> float:
        """Have processes ready for what comes next; seconds until there is more to be seen."""
        loop = asyncio.get_running_loop()
        ahead = await self._store.slots.ahead(round(EARLY_SECONDS * 1_000), 0, self._most)
        zero = loop.time() - ahead.now_us / 1_000_000
        for kind, experiment in _wanted(ahead.slots).items():
            if kind not in self._under_way:
                self._under_way[kind] = tasks.create_task(self._make_ready(kind, experiment))
                await asyncio.wait([self._under_way[kind]], timeout=ONE_SECONDS)
        looks = [one.slot_ms / 1_000 + AFTER_SECONDS for one in ahead.slots[:1]]
        if ahead.following_ms is not None:
            looks.append(ahead.following_ms / 1_000 - EARLY_SECONDS)
        return max(LEAST_SECONDS, min(looks, default=math.inf) + zero - loop.time())

    async def _make_ready(self, kind: Kind, experiment: Experiment) -> None:
        chosen, name = experiment.policy, experiment.tool
        limit_seconds = chosen.timeout_seconds or self._defaults.timeout_seconds
        try:
            tool = self._loader.loaded(name)
            if tool is None:
                tool = await self._loader.load(name, min(limit_seconds, IMPORT_SECONDS), aside=True)
            level = self._defaults.isolation(chosen, tool.needs)
            limit_seconds = self._defaults.timeout(chosen, tool.needs)
            await self._maker.make_ready(tool.module, level, limit_seconds)
        except FullsendError:
            pass  # the run says what is wrong
        except Exception:  # a fault of ours: no run needs this
            log.exception("readiness.failed", tool=name)
        finally:
            del self._under_way[kind]


def _wanted(slots: Sequence[Upcoming]) -> dict[Kind, Experiment]:
    """What is going to run, the soonest first."""
    found: dict[Kind, Experiment] = {}
    for one in slots:
        experiment = one.seen.stored.experiment
        if experiment is not None and (experiment.state in RECURRING or experiment.state is State.RUNNING):
            found.setdefault((experiment.tool, experiment.policy.isolation), experiment)
    return found
