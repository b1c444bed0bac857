"""A PUBLISH becomes one queued run, however many workers listen.

Every worker hears every message, and messages carry no id.  But all hear them
in one order, so a message is identified by its position: how many came on its
channel since the last marker.  A marker is a random text that a worker
publishes once it has subscribed.  The first worker to admit a position queues
the run; the others find it admitted.

What a worker hears before the first marker is counted back from that marker, and
admitted only if the marker says that nobody knew it otherwise (`join.lua`).

A worker that leaves says so with a marker, too, and still admits all that it
hears before it: so that is nobody else's, and what comes after it is.
"""

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from services.executor import report
from services.executor.intake import Intake
from services.executor.store import Order, Position, Store
from services.executor.store.pubsub import Message
from shared import keys
from shared.backoff import Outage, until_available
from shared.errors import ContractError, StoreError
from shared.messages import read_trigger

log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 1.0
MESSAGES_PER_MARKER = 100_000
LEAVING = "leaving:"
OPEN = ":1"
LEAVE_SECONDS = 2.0
AHEAD_MESSAGES = 10_000
AHEAD_CHARACTERS = 100_000_000
"""How much is heard before it is admitted: what is not heard in time fills Redis' memory, which it limits."""


class Positions:
    """Gives every message the position that all workers give it.  Pure."""

    def __init__(self) -> None:
        self._marker: str | None = None
        self._counts: Counter[str] = Counter()
        self.count = 0
        """Messages since the last marker."""
        self._early: list[Message] = []

    def mark(self, marker: str) -> list[tuple[Message, Position]]:
        """Count from `marker` on; returns what was heard before any marker and is still to be admitted.

        What came before a worker's leaving is its own.
        """
        early: list[tuple[Message, Position]] = []
        if self._marker is None and marker.endswith(OPEN) and not marker.startswith(LEAVING):
            behind: Counter[str] = Counter()
            for message in reversed(self._early):
                early.insert(
                    0, (message, Position(f"before:{marker}:{message.channel}", behind[message.channel]))
                )
                behind[message.channel] += 1
        self._marker = marker
        self._counts.clear()
        self.count = 0
        self._early.clear()
        return early

    def place(self, message: Message) -> Position | None:
        """The position of the next message; None before the first marker, which will settle it."""
        if self._marker is None:
            self._early.append(message)
            return None
        position = Position(f"{self._marker}:{message.channel}", self._counts[message.channel])
        self._counts[message.channel] += 1
        self.count += 1
        return position


class Admissions:
    """Admits messages in the order in which they come, without waiting for each.

    They go on when the subscription breaks: what was heard is not heard again.

    Args:
        admit: what is to be done.
        messages, characters: how much may be under way at once.
    """

    def __init__(
        self,
        admit: Callable[[Message, Position], Coroutine[Any, Any, None]],
        messages: int = AHEAD_MESSAGES,
        characters: int = AHEAD_CHARACTERS,
    ) -> None:
        self._admit = admit
        self._messages = messages
        self._characters = characters
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()

    async def begin(self, message: Message, position: Position) -> None:
        """Have it admitted, as soon as there is room; there is always room for a single one."""
        size = len(message.data)
        while self._tasks and (len(self._tasks) >= self._messages or self._characters < size):
            self._ended.clear()
            await self._ended.wait()
        self._characters -= size
        task = asyncio.create_task(self._admit(message, position), name="admit")
        self._tasks.add(task)
        task.add_done_callback(lambda _: self._end(task, size))

    def _end(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._characters += size
        self._ended.set()

    async def all_ended(self) -> None:
        """Wait for those under way."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def cancel(self) -> None:
        """Give up those under way."""
        for task in self._tasks:
            task.cancel()


class Triggers:
    """Listens for requests to run an experiment now.

    Args:
        store: where they are queued.
        intake: what there is room for is begun at once.
        worker: this worker's name.
        channels: where they come from.
        ttl_seconds: how long this worker counts as listening after a heartbeat.
    """

    def __init__(
        self, store: Store, intake: Intake, worker: str, channels: Sequence[str], ttl_seconds: float
    ) -> None:
        self._store = store
        self._intake = intake
        self._worker = worker
        self._channels = tuple(channels)
        self._ttl_seconds = ttl_seconds
        self._ear = ""
        self._farewell = LEAVING + secrets.token_hex(8)
        self._left = asyncio.Event()
        self._outage = Outage("triggers", LONGEST_PAUSE_SECONDS)
        self._admissions = Admissions(self._admit)
        self.listening = asyncio.Event()

    async def leave(self) -> None:
        """Admit what was heard until now, and listen no more; gives up where that takes long."""
        if not self.listening.is_set():
            return
        self.listening.clear()
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._store.triggers.join(self._worker, self._ear, self._farewell, ttl_seconds=0)
                await self._left.wait()
        except (TimeoutError, StoreError) as exc:
            log.warning("triggers.not_left", error=str(exc) or "no answer in time")

    async def run(self) -> None:
        """Listen until cancelled or left; a broken connection is made again."""
        try:
            await self._listen_again_and_again()
        finally:
            self._admissions.cancel()

    async def _listen_again_and_again(self) -> None:
        while not self._left.is_set():
            try:
                await self._listen()
            except StoreError as exc:
                self.listening.clear()
                await asyncio.sleep(self._outage.failed(exc))
            finally:
                self.listening.clear()

    async def _listen(self) -> None:
        self._ear = keys.ear(secrets.token_hex(8))
        async with self._store.subscriptions.to((keys.MARKERS, self._ear, *self._channels)) as messages:
            await self._join()
            self.listening.set()
            self._outage.ended()
            log.info("triggers.listening", channels=self._channels)
            positions = Positions()
            async for message in messages:
                if message.channel == keys.MARKERS:
                    for heard, position in positions.mark(message.data):
                        await self._admissions.begin(heard, position)
                    if message.data.startswith(self._farewell):
                        # Whoever publishes is told that somebody hears it until this is confirmed.
                        await messages.leave(self._channels)
                elif message.channel != self._ear and (placed := positions.place(message)):
                    await self._admissions.begin(message, placed)
                    if positions.count >= MESSAGES_PER_MARKER:
                        await self._join()
            await self._admissions.all_ended()
            self._left.set()

    async def _join(self) -> None:
        marker = secrets.token_hex(8)
        await self._store.triggers.join(self._worker, self._ear, marker, self._ttl_seconds)

    async def _admit(self, message: Message, position: Position) -> None:
        try:
            await self._queue(message, position)
        except Exception:  # whatever it is, the messages after it are not to blame
            log.exception("trigger.not_admitted", channel=message.channel)

    async def _queue(self, message: Message, position: Position) -> None:
        try:
            trigger = read_trigger(message.data)
        except ContractError as exc:
            refusal = report.refusal(exc, None)
            if await until_available("refusal", lambda: self._store.triggers.refuse(position, refusal)):
                log.warning("trigger.refused", channel=message.channel, error=str(exc))
            return
        order = Order(
            experiment_id=trigger.experiment_id,
            trigger="trigger",
            priority="",  # its experiment's
            params=trigger.params,
            request_id=trigger.request_id,
            triggered_by=trigger.triggered_by,
            traceparent=trigger.traceparent,
        )
        with self._intake.reserved() as slot:
            timestamp, taken = await until_available(
                "trigger",
                lambda: self._store.queue.admit(order, position, self._worker, slot.room, slot.release),
            )
        await self._intake.take(taken)
        has_begun = any(claim.order.timestamp == timestamp for claim in taken.claims)
        if timestamp is not None and not has_begun:
            log.debug("trigger.queued", experiment_id=order.experiment_id, run=timestamp)
