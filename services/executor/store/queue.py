"""The queue of runs: a stream for each priority, read by one consumer group, and retries to come."""

import contextlib
import itertools
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import redis.exceptions
from redis.asyncio import Redis

from services.executor.store.deliveries import GROUP, Deliveries, Delivery, order_in
from services.executor.store.orders import PRIORITIES, Claim, Order
from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.errors import ContractError, StoreError

GONE = ("NOGROUP", "UNBLOCKED")
"""What a claim is answered when the queues have gone, before it came or while it waited (Redis 7.0)."""

QUEUES = tuple(keys.queue(priority) for priority in PRIORITIES)
PREFERENCES = [QUEUES] * 7 + [(QUEUES[1], QUEUES[0], QUEUES[2])] * 2 + [(QUEUES[2], *QUEUES[:2])]
"""The order in which a worker looks into the queues, claim by claim: nobody starves."""

REQUEST_ID_KEPT_MS = 24 * 3_600 * 1_000
RESENT_WITHIN_MS = 60_000
BITMAP_KEPT_MS = 3_600 * 1_000

ENQUEUE = Script(
    "enqueue",
    keys=("queue", "open_runs", "admitted", "request"),
    args=("order", "bit", "bitmap_kept_ms", "request_kept_ms", "group", "worker", "room"),
)
CLAIM = Script("claim", keys=("queues[]",), args=("group", "worker", "count"))
_REQUEUE = Script(
    "requeue",
    keys=("queue", "record", "open_runs"),
    args=("group", "worker", "entry", "timestamp", "run", "order", "fields[]"),
)
_PROMOTE = Script("promote", keys=("retries", "nudges"), args=("most",))


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
        deliveries: reads what is handed out.
    """

    def __init__(self, scripts: Scripts, patient: Redis, deliveries: Deliveries) -> None:
        self._scripts = scripts
        self._deliveries = deliveries
        self._patient: Any = patient
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
        timestamp, _ = await self.admit(order, position, "", 0)
        return timestamp

    async def admit(
        self, order: Order, position: Position | None, worker: str, room: int
    ) -> tuple[str | None, list[Claim]]:
        """The same, and the worker takes up to `room` orders of the same priority with it.

        What it takes in an answer that is lost, it holds without knowing, as after a claim.

        Returns:
            As for `enqueue`, and the claims.
        """
        request_ms: int | str = REQUEST_ID_KEPT_MS if order.request_id else ""
        request = order.request_id or ""
        if position is None and not request:  # or it would be two runs when it is sent twice
            request, request_ms = secrets.token_hex(8), RESENT_WITHIN_MS
        text = order.to_json()
        timestamp, _, claims, experiments = await self._scripts.call(
            ENQUEUE,
            [
                keys.queue(order.priority),
                keys.open_runs(order.experiment_id),
                keys.admitted(position.marker if position else ""),
                keys.request(order.experiment_id, request),
            ],
            [
                text,
                position.count if position else "",
                BITMAP_KEPT_MS,
                request_ms,
                GROUP,
                worker,
                room,
            ],
        )
        return timestamp or None, await self._deliveries.handed_out(
            worker, claims, experiments, {text: order}
        )

    async def claim(
        self, worker: str, count: int, wait_ms: int, on_empty: Callable[[], None] | None = None
    ) -> list[Claim]:
        """Take `count` orders if there are, waiting up to `wait_ms` for the first.

        The more urgent come first, but every queue is the preferred one now and
        then.  After a wait there may be one of each priority, more than `count`.

        Args:
            worker: who takes them.
            count: at most so many.
            wait_ms: for the first one.
            on_empty: called when there are none, and the wait begins.
        """
        try:
            # An answer that hands out orders must not be lost unseen.
            ready, experiments = await self._scripts.call(
                CLAIM, next(self._preference), [GROUP, worker, count], asks_again=False
            )
            if ready:
                return await self._deliveries.handed_out(worker, ready, experiments)
            if on_empty is not None:
                on_empty()
            async with asking("claim", may_take_seconds=wait_ms / 1_000):
                answer = await self._patient.xreadgroup(
                    GROUP, worker, dict.fromkeys(QUEUES, ">"), count=1, block=wait_ms
                )
        except StoreError as exc:
            if not any(word in str(exc) for word in GONE):
                raise
            await self.create_group()
            return []
        return await self._deliveries.claims(worker, _of_command(answer))

    async def claims_of(self, worker: str) -> list[Claim]:
        """The orders that `worker` holds."""
        try:
            async with asking("claims_of"):
                answer = await self._scripts.client.xreadgroup(
                    GROUP, worker, dict.fromkeys(QUEUES, "0"), count=1_000
                )
        except StoreError as exc:
            if "NOGROUP" not in str(exc):
                raise
            return []
        return await self._deliveries.claims(worker, _of_command(answer))

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
            _REQUEUE,
            [claim.queue, keys.run(order.run_id), keys.open_runs(order.experiment_id)],
            [
                GROUP,
                claim.worker,
                claim.entry,
                str(order.timestamp),
                order.run_id,
                order.to_json(),
                fields,
            ],
        )
        return bool(answer)

    async def promote(self, limit: int = 100) -> tuple[int, int | None]:
        """Queue the retries that are due.  Returns how many, and ms until the next one."""
        count, next_ms = await self._scripts.call(_PROMOTE, [keys.retries(), keys.nudges()], [limit])
        return count, None if next_ms < 0 else int(float(next_ms))

    async def run_of(self, experiment_id: str, request_id: str) -> str | None:
        """The id of the run that a request became, or None when no worker has taken it up yet."""
        async with asking("run_of"):
            timestamp = await self._scripts.client.get(keys.request(experiment_id, request_id))
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

    async def oldest_seconds(self) -> float:
        """How long the order has waited that waits the longest; 0 when none does."""
        client = self._scripts.client
        joined = [await self._oldest_ms(queue) for queue in QUEUES]
        async with asking("oldest_seconds"):
            seconds, micros = await client.time()
        waiting = [one for one in joined if one is not None]
        return max(0.0, float(seconds + micros / 1_000_000 - min(waiting) / 1_000)) if waiting else 0.0

    async def _oldest_ms(self, queue: str) -> int | None:
        """When the first order in a queue joined it that nobody has claimed."""
        client = self._scripts.client
        async with asking("oldest_seconds"):
            groups = await client.xinfo_groups(queue) if await client.exists(queue) else []
            last = next((one["last-delivered-id"] for one in groups if one["name"] == GROUP), "0-0")
            entries = await client.xrange(queue, min=f"({last}", count=1)
        return _written_ms(entries[0][0]) if entries else None

    async def waiting(self) -> list[Claim]:
        """Every order in the queues, claimed or not; for people to look at."""
        found: list[Claim] = []
        for queue in QUEUES:
            async with asking("waiting"):
                entries = await self._scripts.client.xrange(queue, count=10_000)
            for entry, fields in entries:
                with contextlib.suppress(ContractError):
                    found.append(Claim(queue, entry, "", order_in(entry, fields)))
        return found


def _of_command(answer: Any) -> Iterator[Delivery]:
    """An entry that was deleted while it was claimed has no fields."""
    for queue, entries in answer or ():
        for entry, fields in entries:
            yield queue, entry, fields or {}


def _written_ms(entry: str) -> int:
    """When an entry was written, by Redis' clock."""
    return int(entry.partition("-")[0])


SHORTEST_INTERVAL_MS = 0.001  # what a double still tells apart in a time in ms
LONGEST_INTERVAL_MS = 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Limit:
    """What runs that share `key` may take up together.

    `max_concurrent` runs at once; `max_per_minute` begin, `burst` of them at
    once after a pause.  None and 0 mean no limit.
    """

    key: str
    max_concurrent: int | None = None
    max_per_minute: float | None = None
    burst: int = 1

    @property
    def interval_ms(self) -> float:
        """From one begin to the next at the steady rate; 0 without a rate limit."""
        if not self.max_per_minute:
            return 0
        return min(max(60_000 / self.max_per_minute, SHORTEST_INTERVAL_MS), LONGEST_INTERVAL_MS)

    @property
    def key_names(self) -> tuple[str, str, str]:
        """What is kept of it in Redis: holders, blocked orders, rate."""
        return keys.holders(self.key), keys.blocked(self.key), keys.rate(self.key)
