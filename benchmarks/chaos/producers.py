"""Runs are asked for in three ways: by PUBLISH, by the queue, and by cron."""

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
    """Asks for one run for each token, now in one way, now in the other, at a pace that can be followed."""

    redis: Any
    store: Store
    ledger: Ledger
    listeners: int

    async def produce(self, tokens: list[str]) -> None:
        """Ask for all of them."""
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
                self.ledger.unsure.add(token)  # it may have been heard before the connection broke
                return
            if heard:
                self.ledger.note_published(token, said_at, heard, self.listeners)
                return
            await asyncio.sleep(0.05)

    async def _enqueue(self, experiment_id: str, token: str, params: dict[str, str]) -> None:
        """What is asked for under a `request_id` may be asked for again until somebody answers."""
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
    """How many orders are in the queues, claimed or not."""
    return sum([await redis.xlen(keys.queue(priority)) for priority in PRIORITIES])


def cron_experiments(count: int) -> list[str]:
    """The experiments that have schedules."""
    return [f"exp_cron_{number}" for number in range(count)]


async def prepare(redis: Any, notes: Path, schedules: int) -> None:
    """The experiments, and schedules that fire every second and miss no due time."""
    params = {"notes": str(notes), "token": "cron", "behaviour": "ok"}
    members = {"tool": TOOL.stem, "params": json.dumps(params), "timeout_seconds": "1"}
    for number in range(EXPERIMENTS):
        await redis.hset(keys.experiment(f"exp_{number}"), mapping=members)
    for experiment_id in cron_experiments(schedules):
        forgets_nothing = {"catch_up": "all", "overlap": "allow"}
        await redis.hset(keys.experiment(experiment_id), mapping=members | forgets_nothing)
        await redis.set(keys.schedule(experiment_id), EVERY_SECOND)


async def end_schedules(redis: Any, schedules: int) -> None:
    """No due times any more."""
    for experiment_id in cron_experiments(schedules):
        await redis.set(keys.schedule(experiment_id), SELDOM)
        message = {"experiment_id": experiment_id, "cron": SELDOM}
        await redis.publish(keys.SCHEDULES_CHANGED, json.dumps(message))
