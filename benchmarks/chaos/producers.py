"""Submits runs in three ways: by PUBLISH, to the queue, and by cron."""

import asyncio
import contextlib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from benchmarks.chaos.ledger import Ledger
from services.executor.store import Order, Store
from services.executor.store.orders import PRIORITIES
from shared import keys
from shared.errors import StoreError

TOOL = Path(__file__).with_name("chaos_tool.py")
EXPERIMENTS = 20
BEHAVIOURS = {"ok": 70, "short": 14, "raise": 5, "transient": 5, "die": 3, "hang": 2, "flood": 1}
QUEUED_AT_MOST = 200
EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"


@dataclass(frozen=True, slots=True)
class Producer:
    """Submits one run for each token, by PUBLISH or to the queue, no faster than they are executed."""

    redis: Any
    store: Store
    ledger: Ledger
    listeners: int

    async def produce(self, tokens: list[str]) -> None:
        """Submit all runs."""
        for token in tokens:
            while self.ledger.asked_for > self.ledger.may_submit:
                await asyncio.sleep(0.01)
            [behaviour] = random.choices(list(BEHAVIOURS), weights=list(BEHAVIOURS.values()))
            self.ledger.behaviours[behaviour] += 1
            experiment_id = f"exp_{random.randrange(EXPERIMENTS)}"
            ask = random.choice((self._publish, self._enqueue))
            await ask(experiment_id, token, {"token": token, "behaviour": behaviour})
            await self._pace()

    async def _publish(self, experiment_id: str, token: str, params: dict[str, str]) -> None:
        message = json.dumps({"experiment_id": experiment_id, "params": params})
        while True:
            said_at = time.time()
            try:
                heard = await self.redis.publish(keys.EXECUTE_NOW, message)
            except (RedisError, OSError):
                self.ledger.unsure.add(token)  # it may have been received before the connection broke
                return
            if heard:
                self.ledger.note_published(token, said_at, heard, self.listeners)
                return
            await asyncio.sleep(0.05)

    async def _enqueue(self, experiment_id: str, token: str, params: dict[str, str]) -> None:
        """Retry a submission with a `request_id` until it is acknowledged."""
        priority = random.choice(PRIORITIES)
        order = Order(experiment_id, "enqueue", priority=priority, request_id=token, params=params)
        while True:
            with contextlib.suppress(StoreError):
                await self.store.queue.enqueue(order)
                break
            await asyncio.sleep(0.05)
        self.ledger.enqueued.add(token)

    async def _pace(self) -> None:
        with contextlib.suppress(RedisError, OSError):
            while await queued(self.redis) > QUEUED_AT_MOST:
                await asyncio.sleep(0.05)


async def queued(redis: Any) -> int:
    """The number of orders in the queues, claimed ones included."""
    return sum([await redis.xlen(keys.queue(priority)) for priority in PRIORITIES])


def cron_experiments(count: int) -> list[str]:
    """The names of the experiments with schedules."""
    return [f"exp_cron_{number}" for number in range(count)]


async def prepare(redis: Any, notes: Path, schedules: int) -> None:
    """Write the experiments, and schedules that fire every second and catch up all due times."""
    params = {"notes": str(notes), "token": "cron", "behaviour": "ok"}
    members = {"tool": TOOL.stem, "params": json.dumps(params), "timeout_seconds": "1"}
    for number in range(EXPERIMENTS):
        await redis.hset(keys.experiment(f"exp_{number}"), mapping=members)
    for experiment_id in cron_experiments(schedules):
        forgets_nothing = {"catch_up": "all", "overlap": "allow"}
        await redis.hset(keys.experiment(experiment_id), mapping=members | forgets_nothing)
        await redis.set(keys.schedule(experiment_id), EVERY_SECOND)


async def end_schedules(redis: Any, schedules: int) -> None:
    """Delete the schedules."""
    for experiment_id in cron_experiments(schedules):
        await redis.set(keys.schedule(experiment_id), SELDOM)
        message = {"experiment_id": experiment_id, "cron": SELDOM}
        await redis.publish(keys.SCHEDULES_CHANGED, json.dumps(message))
