"""The queue of runs: a stream for each priority, read by one consumer group, and retries to come."""

import contextlib
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import redis.exceptions
from msgspec import Struct
from msgspec.structs import replace
from redis.asyncio import Redis

from services.executor.store.claims import CLAIM_ARGUMENTS, GROUP, NOTHING_TAKEN, QUEUES, Claims, Taken
from services.executor.store.orders import NORMAL, Claim, Order
from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.errors import ContractError, StoreError, StoreUnavailableError

GONE = ("NOGROUP", "UNBLOCKED")
"""What a claim or a wait is answered when Redis has lost its data."""

PREFERENCES = [QUEUES] * 7 + [(QUEUES[1], QUEUES[0], QUEUES[2])] * 2 + [(QUEUES[2], *QUEUES[:2])]
"""The order in which a worker looks into the queues, claim by claim: each queue is served."""

ASIDE = "@"
"""Begins the names of the consumers that hold orders which wait for a tool, see `lua/claims.lua`."""

BELL_SECONDS = 60
REQUEST_ID_KEPT_MS = 24 * 3_600 * 1_000
RESENT_WITHIN_MS = 60_000
BITMAP_KEPT_MS = 3_600 * 1_000

_ENQUEUE = Script("enqueue", args=(*CLAIM_ARGUMENTS, "bitmap_kept_ms", "submissions[]"))
_REQUEUE = Script(
    "requeue",
    keys=("queue", "record", "open_runs"),
    args=("worker", "entry", "timestamp", "run", "order", "fields[]"),
)
_PROMOTE = Script("promote", keys=("retries", "nudges"), args=("most",))


class Submission(Struct, frozen=True):
    """An order to be queued once, as `lua/enqueue.lua` reads it.

    Attributes:
        open_runs, admitted, request: keys; `admitted` is a bitmap.
        order: with its priority, or with an empty one to have its experiment's.
        bit: of the message in the bitmap; -1 without one.
        request_kept_ms: how long the request id is remembered; 0 without one.
    """

    open_runs: str
    admitted: str
    request: str
    order: str
    bit: int
    request_kept_ms: int


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
        patient: a client whose blocking reads may take any time.
        claims: begins what is handed out.
    """

    def __init__(self, scripts: Scripts, patient: Redis, claims: Claims) -> None:
        self._scripts = scripts
        self._claims = claims
        self._patient: Any = patient
        self._preference = itertools.cycle(PREFERENCES)

    async def enqueue(self, order: Order, position: Position | None = None) -> str | None:
        """Queue one run.

        Args:
            order: without a timestamp; with an empty priority, it has its experiment's.
            position: where its message stood, when every worker heard it.

        Returns:
            The run's timestamp; None when another worker had queued this message.
            With a `request_id` that is known, the timestamp of the run that it became.
        """
        timestamp, _ = await self.admit(order, position, "", 0)
        return timestamp

    async def admit(
        self,
        order: Order,
        position: Position | None,
        worker: str,
        room: int,
        on_wait: Callable[[], None] = lambda: None,
    ) -> tuple[str | None, Taken]:
        """Queue one run as `enqueue` does, and have `worker` take up to `room` orders of its priority.

        If a large experiment has to be read first, `on_wait` is called, and then nothing is taken.  What the
        worker takes in an answer that is lost, it holds without knowing.
        """
        request, request_ms = order.request_id or "", REQUEST_ID_KEPT_MS
        if position is None and not request:  # or it would be two runs when it is sent twice
            request, request_ms = secrets.token_hex(8), RESENT_WITHIN_MS
        return await self._enqueue(order, request, request_ms, position, worker, room, on_wait)

    async def submit(self, order: Order, token: str) -> str:
        """Queue one run for somebody who waits for it; its timestamp.

        Args:
            order: without a timestamp.
            token: a text that was never used before; with it, sending the order again is sending it once.
        """
        timestamp, _ = await self._enqueue(order, token, REQUEST_ID_KEPT_MS)
        return str(timestamp)

    async def _enqueue(
        self,
        order: Order,
        request: str,
        request_ms: int,
        position: Position | None = None,
        worker: str = "",
        room: int = 0,
        on_wait: Callable[[], None] = lambda: None,
    ) -> tuple[str | None, Taken]:
        def wait() -> None:
            nonlocal room
            room = 0
            on_wait()

        def call(may_ask: bool) -> Awaitable[Any]:
            ours = order if may_ask or order.priority else replace(order, priority=NORMAL)
            submission = Submission(
                open_runs=keys.open_runs(order.experiment_id),
                admitted=keys.admitted(position.marker if position else ""),
                request=keys.request(order.experiment_id, request),
                order=ours.encode(),
                bit=position.count if position else -1,
                request_kept_ms=request_ms if request else 0,
            )
            return self._scripts.call_together(
                _ENQUEUE,
                (),
                lambda room: [*self._claims.arguments(worker, room), BITMAP_KEPT_MS],
                submission,
                group=worker,
                weight=room,
            )

        timestamp, *taken = await self._claims.compiling(call, wait)
        return timestamp or None, await self._claims.read(worker, taken) if taken else NOTHING_TAKEN

    async def claim(
        self, worker: str, room: int, missing: Sequence[str] = (), failed: Sequence[str] = ()
    ) -> Taken:
        """Take up to `room` orders, if there are any, and begin their runs.

        The more urgent come first, but every queue is the preferred one now and then.

        Args:
            worker: who takes them.
            room: how many it has slots for.
            missing: tools that it has looked for and doesn't have.
            failed: tools that it can't prepare.
        """
        queues = next(self._preference)
        try:
            return await self._claims.take(worker, room, queues, missing=missing, failed=failed)
        except StoreError as exc:
            await self._repair(exc)
            return Taken(is_whole=False)

    async def wait(self, worker: str, seconds: float) -> bool:
        """Wait until there may be orders to claim; False when nothing was heard for `seconds`."""
        bells = [keys.bell(), keys.bell_of(worker)]
        try:
            async with asking("wait", may_take_seconds=seconds):
                return await self._patient.blpop(bells, timeout=seconds) is not None
        except StoreError as exc:
            if isinstance(exc, StoreUnavailableError):
                self._scripts.on_unavailable()
            await self._repair(exc)
            return True

    async def ring(self) -> None:
        """Wake another worker that waits: this one heard the bell and has no room."""
        async with asking("ring"):
            await self._scripts.client.lpush(keys.bell(), "1")

    async def ring_for(self, worker: str) -> None:
        """Wake `worker`, if it waits: it can begin now what it couldn't begin before."""
        async with asking("ring"), self._scripts.client.pipeline(transaction=True) as pipe:
            pipe.lpush(keys.bell_of(worker), "1")
            pipe.expire(keys.bell_of(worker), BELL_SECONDS)
            await pipe.execute()

    async def _repair(self, exc: StoreError) -> None:
        """Make the groups again when Redis has come back without them; raises what is something else."""
        if not any(word in str(exc) for word in GONE):
            raise exc
        await self.create_group()

    async def begin_held(self, worker: str, claims: Sequence[Claim]) -> Taken:
        """Begin the runs whose orders `worker` holds, unless they have begun."""
        return await self._claims.take(
            worker, len(claims), (), held=[(claim.queue, claim.entry) for claim in claims]
        )

    async def claims_of(self, worker: str) -> list[Claim]:
        """The orders that `worker` holds, whether they have begun or not."""
        return await self._claims.held_by(worker)

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
            [claim.worker, claim.entry, str(order.timestamp), order.run_id, order.encode(), list(fields)],
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
        """How much there is to do; an order that waits for a tool waits for a worker."""
        entries = held = 0
        async with asking("depth"):
            delayed = await self._scripts.client.zcard(keys.retries())
        for queue in QUEUES:
            async with asking("depth"):
                entries += await self._scripts.client.xlen(queue)
            holding = await self._holding(queue)
            held += sum(count for name, count in holding.items() if not name.startswith(ASIDE))
        return Depth(waiting=entries - held, held=held, delayed=delayed)

    async def _holding(self, queue: str) -> dict[str, int]:
        """How many orders of a queue each consumer holds."""
        async with asking("depth"):
            try:
                summary = await self._scripts.client.xpending(queue, GROUP)
            except redis.exceptions.ResponseError as exc:
                if not str(exc).startswith("NOGROUP"):
                    raise
                return {}
        return {one["name"]: one["pending"] for one in summary["consumers"]}

    async def oldest_seconds(self) -> float:
        """How long the order has waited that waits the longest; 0 when none does."""
        joined = [one for queue in QUEUES for one in await self._waiting_since_ms(queue)]
        async with asking("oldest_seconds"):
            seconds, micros = await self._scripts.client.time()
        return max(0.0, float(seconds + micros / 1_000_000 - min(joined) / 1_000)) if joined else 0.0

    async def _waiting_since_ms(self, queue: str) -> list[int]:
        """When the first order joined a queue that nobody has claimed, and the first for each tool."""
        client = self._scripts.client
        async with asking("oldest_seconds"):
            groups = await client.xinfo_groups(queue) if await client.exists(queue) else []
            last = next((one["last-delivered-id"] for one in groups if one["name"] == GROUP), "0-0")
            entries = [entry for entry, _ in await client.xrange(queue, min=f"({last}", count=1)]
        for name in await self._holding(queue):
            if name.startswith(ASIDE):
                async with asking("oldest_seconds"):
                    found = await client.xpending_range(queue, GROUP, "-", "+", 1, consumername=name)
                entries += [one["message_id"] for one in found]
        return [int(entry.partition("-")[0]) for entry in entries]

    async def waiting(self) -> list[Claim]:
        """Every order in the queues, claimed or not; for people to look at."""
        found: list[Claim] = []
        for queue in QUEUES:
            async with asking("waiting"):
                entries = await self._scripts.client.xrange(queue, count=10_000)
            for entry, fields in entries:
                with contextlib.suppress(ContractError):
                    found.append(Claim(queue, entry, "", Order.decode(fields.get("order", ""), entry)))
        return found
