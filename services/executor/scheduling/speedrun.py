"""Speedrun: all experiments that are ready run in turn, in an endless loop."""

import asyncio
import secrets
import time
from collections.abc import Sequence

import structlog

from services.executor.store import NORMAL, Order, Position, Store, Stored
from shared import keys
from shared.backoff import Outage
from shared.errors import StoreError
from shared.messages import RECURRING, experiment_failed

log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 1.0
POLLED_KEYS = 2_000
POLL_SECONDS = 0.18
"""Between two portions of the keys, so that 100,000 take nine seconds and less than 1 % of a core."""

PASS_SECONDS = 1.0
"""Between two looks at all keys."""

REFUSED_KEPT_MS = 30 * 86_400_000
"""A refusal is said again if an experiment has the same content for so long, and a worker starts."""


class Speedrun:
    """Queues all experiments that are ready, in turn, again and again.

    Args:
        store: where experiments are.
        interval_seconds: from one cycle to the next, for all workers together.
        turns: how many experiments get a turn in a cycle.
    """

    def __init__(self, store: Store, interval_seconds: float, turns: int) -> None:
        self._store = store
        self._name = secrets.token_hex(8)
        self._interval_seconds = interval_seconds
        self._turns = turns
        self._left = 0
        self._seen: set[str] = set()
        self._refused: dict[str, str] = {}

    async def run(self) -> None:
        """Queue runs until cancelled."""
        outage = Outage("speedrun", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                seconds = await self._cycle()
                outage.ended()
                await self._wait(seconds)
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))

    async def _cycle(self) -> float:
        """Make the next cycle, unless another worker does; return the seconds until the one after."""
        self._left = 0
        left_seconds = await self._store.due_times.cycle(self._name)
        if left_seconds:
            return min(left_seconds, self._interval_seconds)
        self._seen.clear()
        orders: list[Order] = []
        async for experiment_id, stored in self._store.experiments.scan():
            self._seen.add(experiment_id)
            orders += await self._orders(experiment_id, stored)
        wait_seconds, chosen = await self._store.due_times.speedrun(
            orders, self._interval_seconds, self._turns
        )
        self._left = self._turns - len(chosen)
        if chosen:
            log.info("cycle.queued", experiments=chosen)
        return wait_seconds

    async def _wait(self, seconds: float) -> None:
        """Wait for the next cycle; meanwhile new experiments get the turns that are left of this one."""
        ends, cursor, pause_seconds = time.monotonic() + seconds, 0, PASS_SECONDS
        while self._left > 0 and time.monotonic() + pause_seconds < ends:
            await asyncio.sleep(pause_seconds)
            cursor, found = await self._store.experiments.names(keys.experiment(""), cursor, POLLED_KEYS)
            await self._take_in([one for one in found if one not in self._seen])
            pause_seconds = POLL_SECONDS if cursor else PASS_SECONDS
        await asyncio.sleep(max(0.0, ends - time.monotonic()))

    async def _take_in(self, new: Sequence[str]) -> None:
        """Give turns that are left to experiments that are new."""
        if not new:
            return
        self._seen.update(new)
        orders: list[Order] = []
        for experiment_id, stored in zip(new, await self._store.experiments.read_many(new), strict=True):
            orders += await self._orders(experiment_id, stored)
        _, chosen = await self._store.due_times.speedrun(orders, None, self._left)
        self._left -= len(chosen)
        if chosen:
            log.info("cycle.joined", experiments=chosen)

    async def _orders(self, experiment_id: str, stored: Stored) -> list[Order]:
        """The order of an experiment, unless it is not ready or can't be read."""
        if stored.experiment is None:
            await self._refuse(experiment_id, stored)
        elif stored.experiment.state in RECURRING:
            priority = stored.experiment.policy.priority or NORMAL
            return [Order(experiment_id, trigger="speedrun", priority=priority)]
        return []

    async def _refuse(self, experiment_id: str, stored: Stored) -> None:
        """Say of an experiment that would have a turn why it can't be read: once for each content."""
        content = stored.would_recur
        if not content or self._refused.get(experiment_id) == content:
            return
        refusal = experiment_failed(experiment_id, None, str(stored.error), type(stored.error).__name__)
        if await self._store.triggers.refuse(
            Position(f"speedrun:{experiment_id}:{content}", 0), refusal, REFUSED_KEPT_MS
        ):
            log.warning("experiment.refused", experiment_id=experiment_id, error=str(stored.error))
        self._refused[experiment_id] = content
