"""Claims queued runs while there are free slots, and knows what runs here."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, Self

import structlog

from services.executor.runner import Running
from services.executor.store import Claim, Queue, Taken
from shared.backoff import Outage, shutdown_timeout, until_available
from shared.errors import StoreError

log = structlog.get_logger()

WAIT_SECONDS = 2.0
"""A worker looks for orders this long after the last bell: the worker that took the bell may have died."""
LOOK_SECONDS = 3.0
"""How often a worker looks for orders that it holds without knowing, because an answer was lost."""


class ToolPreparation(Protocol):
    """Prepares the tools that orders wait for."""

    def want(self, name: str) -> None:
        """Prepare a tool, unless that is under way."""

    @property
    def missing(self) -> Sequence[str]:
        """The tools that were looked for in vain a moment ago."""

    @property
    def failed(self) -> Sequence[str]:
        """The tools that couldn't be prepared a moment ago."""


class Reservation:
    """A slot that is reserved until the end of the block, or none; `room` is 1 or 0."""

    def __init__(self, intake: "Intake", room: int) -> None:
        self.room = room
        self._intake = intake

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the slot up, if that was not done."""
        if self.room:
            self._intake.release(self.room)
            self.room = 0


Perform = Callable[[Running], Coroutine[Any, Any, None]]


class Intake:
    """The slots of one worker.

    Args:
        queue: where runs are claimed.
        worker: this worker's name.
        concurrency: how many runs at once.
        readiness: prepares the tools that orders wait for.
        perform: does a run and says when it needs no slot any more; being cancelled, it gives the run back.
    """

    def __init__(
        self, queue: Queue, worker: str, concurrency: int, readiness: ToolPreparation, perform: Perform
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._concurrency = concurrency
        self._readiness = readiness
        self._perform = perform
        self._running: dict[str, Running] = {}
        self._free = concurrency
        self._reserved = 0
        self._is_queue_empty = False
        self._changed = asyncio.Event()
        self._outage = Outage("claim")
        self._look_at = 0.0
        self._seen: set[str] = set()

    @property
    def concurrency(self) -> int:
        """How many runs at once."""
        return self._concurrency

    @property
    def running(self) -> list[Running]:
        """The runs that are performed or reported now."""
        return list(self._running.values())

    @property
    def busy(self) -> int:
        """How many slots are taken."""
        return self._concurrency - self._free

    @property
    def room(self) -> int:
        """How many runs may begin now: where reports are slow, they don't pile up."""
        return min(self._free, 2 * self._concurrency - len(self._running)) - self._reserved

    async def run(self) -> None:
        """Claim and perform until cancelled; what runs then goes on, see `drain`."""
        await until_available("queue", self._queue.create_group)
        while True:
            try:
                if time.monotonic() >= self._look_at:
                    await self._look()
                if self.room > 0:
                    await self._claim()
                else:
                    await self._wait_for_room()
            except StoreError as exc:
                self._look_at = 0.0
                await asyncio.sleep(self._outage.failed(exc))
            else:
                self._outage.ended()

    async def _claim(self) -> None:
        """Begin the runs that there are, or wait until there may be some."""
        self._is_queue_empty = False
        readiness = self._readiness
        taken = await self._queue.claim(self._worker, self.room, readiness.missing, readiness.failed)
        await self.take(taken)
        if taken.claims:
            return
        self._is_queue_empty = True
        if await self._queue.wait(self._worker, WAIT_SECONDS) and self.room <= 0:
            await self._queue.ring()  # meanwhile triggers took all the room

    async def _wait_for_room(self) -> None:
        self._changed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, self._look_at - time.monotonic())):
                await self._changed.wait()

    def reserved(self) -> "Reservation":
        """Reserve a slot for a run that is about to be queued, to be taken with it, if there is one.

        While other runs wait there is none, as it is their turn.
        """
        reservation = Reservation(self, int(self._is_queue_empty and self.room > 0))
        self._reserved += reservation.room
        return reservation

    def release(self, count: int) -> None:
        """Give up reserved slots."""
        self._reserved -= count
        self._changed.set()

    async def take(self, taken: Taken) -> None:
        """Perform what there is room for, and give the rest back."""
        if not taken.is_whole:
            self._look_at = 0.0
        for tool in taken.wanted:
            self._readiness.want(tool)
        # `_look` may have found a claim before its own answer arrived.
        new = [claim for claim in taken.claims if claim.lease not in self._running]
        room = max(0, self.room)
        for claim in new[:room]:
            self._start(claim)
        if len(new) > room:
            await self._give_back(new[room:])

    async def drain(self, grace_seconds: float) -> None:
        """Wait for the runs under way, then end those that are left and give everything back."""
        tasks = [one.task for one in self._running.values() if one.task is not None]
        if tasks:
            log.info("intake.draining", runs=len(tasks), grace_seconds=grace_seconds)
            _, late = await asyncio.wait(tasks, timeout=grace_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with shutdown_timeout():
                for claim in await self._held():
                    await self._queue.requeue(claim, claim.order)
        except StoreError as exc:
            log.warning("claims.not_given_back", error=str(exc), hint="recovery takes them up")

    async def drop_lost(self, is_data_lost: Callable[[Claim], Awaitable[bool]]) -> None:
        """End the runs whose claims were taken over while this worker did not show that it lives.

        Only their tools are ended.  What has an outcome learns from the store
        whether that still counts: it may have been taken without an answer.

        Args:
            is_data_lost: whether Redis has lost its data since the claim, so that nobody took it over.
        """
        # Listed before Redis is asked: a claim that is made meanwhile may be missing in the answer.
        known = list(self._running.items())
        held = {claim.lease for claim in await self._held()}
        for lease, running in known:
            if lease in held or running.cancel.is_set():
                continue
            if not await is_data_lost(running.claim):
                log.warning("claim.lost", run_id=running.claim.order.run_id)
                running.cancel.set()

    async def _give_back(self, claims: Sequence[Claim]) -> None:
        """Let another worker have what there is no slot for here."""
        try:
            for claim in claims:
                if await self._queue.requeue(claim, claim.order):
                    log.info("claim.given_back", run_id=claim.order.run_id)
        except StoreError as exc:
            log.warning("claims.not_given_back", error=str(exc), hint="they begin here, as slots become free")
            self._look_at = 0.0

    async def _look(self) -> None:
        """Begin what this worker holds without knowing, or give it back where there is no room.

        An answer that was cut off may have handed runs to it; and a failover may
        bring back runs that it had finished.  What was handed out in an answer that
        is still on its way looks the same: it is given back at the second look.
        """
        known = set(self._running)
        unknown = [claim for claim in await self._held() if claim.lease not in known | self._running.keys()]
        self._look_at = time.monotonic() + LOOK_SECONDS
        for claim in unknown:
            log.warning("claim.found", run_id=claim.order.run_id)
        room = max(0, self.room)
        if unknown[:room]:
            await self.take(await self._queue.begin_held(self._worker, unknown[:room]))
        seen, self._seen = self._seen, {claim.lease for claim in unknown[room:]}
        await self._give_back([claim for claim in unknown[room:] if claim.lease in seen])

    async def _held(self) -> list[Claim]:
        """What this worker holds, also when Redis has come back without its data."""
        await self._queue.create_group()
        return await self._queue.claims_of(self._worker)

    def _start(self, claim: Claim) -> None:
        self._free -= 1
        running = self._running[claim.lease] = Running(claim, self._free_slot)
        running.task = asyncio.create_task(self._perform_in_slot(running), name=f"run {claim.order.run_id}")

    async def _perform_in_slot(self, running: Running) -> None:
        try:
            await self._perform(running)
        except Exception:  # this worker keeps the claim; recovery or the next look tries again
            log.exception("run.abandoned", run_id=running.claim.order.run_id)
        finally:
            del self._running[running.claim.lease]
            running.free_slot()
            self._changed.set()

    def _free_slot(self) -> None:
        self._free += 1
        self._changed.set()
