"""The queue of runs: a stream read by one consumer group, and the retries that will join it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from services.executor.store.orders import Claim, Order
from services.executor.store.scripts import Scripts, asking
from shared import keys

GROUP = "executors"
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
                keys.queue(),
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
        """Take up to `count` orders, waiting up to `wait_ms` for the first."""
        async with asking("claim", timeout_seconds=None):
            try:
                answer: Any = await self._patient.xreadgroup(
                    GROUP, worker, {keys.queue(): ">"}, count=count, block=wait_ms
                )
            except redis.exceptions.ResponseError as exc:
                if not str(exc).startswith("NOGROUP"):
                    raise
                await self.create_group()
                return []
        return [_claim(worker, entry, fields) for _, entries in answer or () for entry, fields in entries]

    async def claims_of(self, worker: str) -> list[Claim]:
        """The orders that `worker` holds."""
        async with asking("claims_of"):
            answer = await self._scripts.client.xreadgroup(GROUP, worker, {keys.queue(): "0"}, count=1_000)
        return [
            _claim(worker, entry, fields)
            for _, entries in answer or ()
            for entry, fields in entries
            if fields
        ]

    async def create_group(self) -> None:
        """Make the consumer group, unless it is there."""
        async with asking("create_group"):
            try:
                await self._scripts.client.xgroup_create(keys.queue(), GROUP, id="0", mkstream=True)
            except redis.exceptions.ResponseError as exc:
                if not str(exc).startswith("BUSYGROUP"):
                    raise

    async def requeue(
        self,
        claim: Claim,
        order: Order,
        fields: Sequence[str] = ("status", "running"),
        delay_seconds: float = 0.0,
    ) -> bool:
        """Give a claimed run back as `order`; False when the claim is gone.

        Args:
            fields: of the record, names and values in turn, written if the run had begun.
            delay_seconds: before it can be claimed again.
        """
        answer = await self._scripts.call(
            "requeue",
            [keys.queue(), keys.run(order.run_id), keys.open_runs(order.experiment_id), keys.retries()],
            [
                GROUP,
                claim.worker,
                claim.entry,
                str(order.timestamp),
                order.to_json(),
                round(delay_seconds * 1_000),
                *fields,
            ],
        )
        return bool(answer)

    async def promote(self, limit: int = 100) -> tuple[int, int | None]:
        """Queue the retries that are due.  Returns how many, and ms until the next one."""
        count, next_ms = await self._scripts.call("promote", [keys.queue(), keys.retries()], [limit])
        return count, None if next_ms < 0 else int(float(next_ms))

    async def run_of(self, experiment_id: str, request_id: str) -> str | None:
        """The id of the run that a request became, or None when no worker has taken it up yet."""
        async with asking("run_of"):
            timestamp = await self._scripts.client.get(keys.request(request_id))
        return f"{experiment_id}:{timestamp}" if timestamp else None

    async def depth(self) -> Depth:
        """How much there is to do."""
        async with asking("depth"):
            entries = await self._scripts.client.xlen(keys.queue())
            delayed = await self._scripts.client.zcard(keys.retries())
            try:
                held = (await self._scripts.client.xpending(keys.queue(), GROUP))["pending"]
            except redis.exceptions.ResponseError as exc:
                if not str(exc).startswith("NOGROUP"):
                    raise
                held = 0
        return Depth(waiting=entries - held, held=held, delayed=delayed)

    async def waiting(self) -> list[Claim]:
        """Every order in the queue, claimed or not; for people to look at."""
        async with asking("waiting"):
            entries = await self._scripts.client.xrange(keys.queue(), count=10_000)
        return [_claim("", entry, fields) for entry, fields in entries]


def _claim(worker: str, entry: str, fields: dict[str, Any]) -> Claim:
    return Claim(entry, worker, Order.from_json(fields["order"], entry))
