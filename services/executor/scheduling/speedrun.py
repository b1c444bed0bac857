"""Speedrun: all experiments that are ready run in turn, in an endless loop."""

import asyncio
import secrets

import structlog

from services.executor.store import NORMAL, Order, Position, Store, Stored
from shared.backoff import Outage
from shared.errors import StoreError
from shared.messages import RECURRING, experiment_failed

log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 1.0
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
        self._refused: dict[str, str] = {}

    async def run(self) -> None:
        """Queue runs until cancelled."""
        outage = Outage("speedrun", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                wait_seconds = await self._cycle()
            except StoreError as exc:
                wait_seconds = outage.failed(exc)
            else:
                outage.ended()
            await asyncio.sleep(wait_seconds)

    async def _cycle(self) -> float:
        """Make the next cycle, unless another worker does; return the seconds until the one after."""
        left_seconds = await self._store.due_times.cycle(self._name)
        if left_seconds:
            return min(left_seconds, self._interval_seconds)
        orders: list[Order] = []
        async for experiment_id, stored in self._store.experiments.scan():
            if stored.experiment is None:
                await self._refuse(experiment_id, stored)
            elif stored.experiment.state in RECURRING:
                priority = stored.experiment.policy.priority or NORMAL
                orders.append(Order(experiment_id, trigger="speedrun", priority=priority))
        wait_seconds, chosen = await self._store.due_times.speedrun(
            orders, self._interval_seconds, self._turns
        )
        if chosen:
            log.info("cycle.queued", experiments=chosen)
        return wait_seconds

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
