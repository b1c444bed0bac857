"""The queue of runs: a stream for each priority, read by one consumer group, and retries to come."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from services.executor.store.orders import PRIORITIES, Claim, Order
from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.errors import StoreError

GROUP = "executors"
QUEUES = tuple(keys.queue(priority) for priority in PRIORITIES)
PREFERENCES = [QUEUES] * 7 + [(QUEUES[1], QUEUES[0], QUEUES[2])] * 2 + [(QUEUES[2], *QUEUES[:2])]
"""The order in which a worker looks into the queues, claim by claim: nobody starves."""

REQUEST_ID_KEPT_MS = 24 * 3_600 * 1_000
BITMAP_KEPT_MS = 3_600 * 1_000


@dataclass(frozen=True, slots=True)
class Position:
    """Which message it was: the `count`-th since `marker` (see `triggers.py`)."""

    marker: str
    count: int


@dataclass(frozen=True, slots=True)
class Depth:
    """How many orders wait for a worker, are held by one, or wait for their next attempt."""

    waiting: int
    held: int
    delayed: int


class Queue:
    """Puts runs in, hands them out.

    Args:
        scripts: for transitions.
        patient: a client whose blocking reads may take for ever.
    """

    def __init__(self, scripts: Scripts, patient: Redis) -> None:
        self._scripts = scripts
        self._patient = patient
        self._preference = itertools.cycle(PREFERENCES)

    async def enqueue(self, order: Order, position: Position | None = None) -> str | None:
        """Queue one run.

        Args:
            order: without a timestamp.
            position: where its message stood, when every worker heard it.

        Returns:
            The run's timestamp; None when another worker had queued this message.
            With a `request_id` that is known, the timestamp of the run that it became.
        """
        timestamp, _ = await self._scripts.call(
            "enqueue",
            [
                keys.queue(order.priority),
                keys.open_runs(order.experiment_id),
                keys.admitted(position.marker if position else ""),
                keys.request(order.request_id or ""),
            ],
            [
                order.to_json(),
                position.count if position else "",
                BITMAP_KEPT_MS,
                REQUEST_ID_KEPT_MS if order.request_id else "",
            ],
        )
        return timestamp or None

    async def claim(self, worker: str, count: int, wait_ms: int) -> list[Claim]:
        """Take `count` orders if there are, waiting up to `wait_ms` for the first.

        The more urgent come first, but every queue is the preferred one now and
        then.  After a wait there may be one of each priority, more than `count`.
        """
        try:
            ready = await self._scripts.call("claim", next(self._preference), [GROUP, worker, count])
            if ready:
                return [_claim(worker, queue, entry, fields) for queue, entry, fields in ready]
            async with asking("claim", timeout_seconds=None):
                answer: Any = await self._patient.xreadgroup(
                    GROUP, worker, dict.fromkeys(QUEUES, ">"), count=1, block=wait_ms
                )
        except (redis.exceptions.ResponseError, StoreError) as exc:
            if "NOGROUP" not in str(exc):
                raise
            await self.create_group()
            return []
        return _claims(worker, answer)

    async def claims_of(self, worker: str) -> list[Claim]:
        """The orders that `worker` holds."""
        async with asking("claims_of"):
            answer = await self._scripts.client.xreadgroup(
                GROUP, worker, dict.fromkeys(QUEUES, "0"), count=1_000
            )
        return _claims(worker, answer)

    async def create_group(self) -> None:
        """Make the consumer group of each queue, unless it is there."""
        for queue in QUEUES:
            async with asking("create_group"):
                try:
                    await self._scripts.client.xgroup_create(queue, GROUP, id="0", mkstream=True)
                except redis.exceptions.ResponseError as exc:
                    if not str(exc).startswith("BUSYGROUP"):
                        raise

    async def requeue(
        self, claim: Claim, order: Order, fields: Sequence[str] = ("status", "running")
    ) -> bool:
        """Give a claimed run back as `order`, and the room under limits that it took.

        Args:
            fields: of the record, names and values in turn, written if the run had begun.

        Returns:
            False when the claim is gone.
        """
        answer = await self._scripts.call(
            "requeue",
            [claim.queue, keys.run(order.run_id), keys.open_runs(order.experiment_id)],
            [
                GROUP,
                claim.worker,
                claim.entry,
                str(order.timestamp),
                order.run_id,
                order.to_json(),
                *fields,
            ],
        )
        return bool(answer)

    async def promote(self, limit: int = 100) -> tuple[int, int | None]:
        """Queue the retries that are due.  Returns how many, and ms until the next one."""
        count, next_ms = await self._scripts.call("promote", [keys.retries(), keys.nudges()], [limit])
        return count, None if next_ms < 0 else int(float(next_ms))

    async def run_of(self, experiment_id: str, request_id: str) -> str | None:
        """The id of the run that a request became, or None when no worker has taken it up yet."""
        async with asking("run_of"):
            timestamp = await self._scripts.client.get(keys.request(request_id))
        return f"{experiment_id}:{timestamp}" if timestamp else None

    async def depth(self) -> Depth:
        """How much there is to do."""
        entries = held = 0
        async with asking("depth"):
            delayed = await self._scripts.client.zcard(keys.retries())
            for queue in QUEUES:
                entries += await self._scripts.client.xlen(queue)
                try:
                    held += (await self._scripts.client.xpending(queue, GROUP))["pending"]
                except redis.exceptions.ResponseError as exc:
                    if not str(exc).startswith("NOGROUP"):
                        raise
        return Depth(waiting=entries - held, held=held, delayed=delayed)

    async def waiting(self) -> list[Claim]:
        """Every order in the queues, claimed or not; for people to look at."""
        found: list[Claim] = []
        for queue in QUEUES:
            async with asking("waiting"):
                entries = await self._scripts.client.xrange(queue, count=10_000)
            found += [_claim("", queue, entry, fields) for entry, fields in entries]
        return found


def _claims(worker: str, answer: Any) -> list[Claim]:
    return [
        _claim(worker, queue, entry, fields)
        for queue, entries in answer or ()
        for entry, fields in entries
        if fields  # an entry that was deleted while it was claimed has none
    ]


def _claim(worker: str, queue: str, entry: str, fields: Any) -> Claim:
    members = fields if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    return Claim(queue, entry, worker, Order.from_json(members["order"], entry))
