"""Pub/sub: a subscription that is confirmed before it is used, and that breaks loudly."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence, Sized
from typing import Any

import redis.exceptions
from msgspec import Struct
from redis.asyncio import Redis

from services.executor.store.line import Line
from services.executor.store.pipelined import packed
from services.executor.store.scripts import asking, translated

AHEAD_BYTES = 1_048_576


class Message(Struct, frozen=True):
    """What came on a channel."""

    channel: str
    data: str


class Messages:
    """Messages in the order in which Redis passed them on.

    Args:
        connection: nothing was asked on it yet.
    """

    def __init__(self, connection: Any) -> None:
        self._heard: deque[Any] = deque()
        self._line = _Ear(connection, self._hear, self._heard)
        self._line.lost.add_done_callback(lambda _: self._wake())
        self._waiter: asyncio.Future[None] | None = None
        self._leaving: set[str] | None = None

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Hear these channels, from when this returns.  Raises redis-py's exceptions."""
        self._line.transport.write(packed(("SUBSCRIBE", *channels)))
        for _ in channels:
            await self._next()

    async def leave(self, channels: Sequence[str]) -> None:
        """Hear no more of these channels; the messages end behind all that was passed on before that."""
        self._line.transport.write(packed(("UNSUBSCRIBE", *channels)))
        self._leaving = set(channels)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while self._leaving is None or self._leaving:
            try:
                kind, channel, data = await self._next()
            except redis.exceptions.RedisError as exc:
                raise translated("listen", exc) from exc
            if kind == "message":
                return Message(channel, data)
            if kind == "unsubscribe" and self._leaving is not None:
                self._leaving.discard(channel)
        raise StopAsyncIteration

    async def _next(self) -> Any:
        while not self._heard:
            if self._line.lost.done():
                self._line.lost.result()
            self._line.go_on()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        found = self._heard.popleft()
        if isinstance(found, Exception):
            raise found
        return found

    def _hear(self, found: Any) -> None:
        self._heard.append(found)
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Ear(Line):
    """Leaves with Redis what comes faster than it is taken.

    Args:
        heard: what was not taken yet.
    """

    def __init__(self, connection: Any, hear: Callable[[Any], None], heard: Sized) -> None:
        super().__init__(connection, hear)
        self._heard = heard
        self._ahead_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Read no more when that much was read since all was taken, unless it is the part of one message."""
        self._ahead_bytes += len(data)
        super().data_received(data)
        if self._ahead_bytes > AHEAD_BYTES and self._heard:
            self.transport.pause_reading()

    def go_on(self) -> None:
        """All that was read has been taken."""
        self._ahead_bytes = 0
        self.transport.resume_reading()


class Subscriptions:
    """Subscribes on a client whose reads may take for ever."""

    def __init__(self, patient: Redis) -> None:
        self._patient = patient

    @contextlib.asynccontextmanager
    async def to(self, channels: Sequence[str]) -> AsyncIterator[Messages]:
        """Messages of `channels`, in the order in which Redis passed them on.

        On entry the subscription is confirmed: what is published from then on
        is heard.  A subscription that breaks is not mended unseen, because
        messages are missed meanwhile.

        Raises:
            StoreUnavailableError: on entry or while reading.
        """
        pool: Any = self._patient.connection_pool
        async with asking("subscribe"):
            connection = await pool.get_connection()
        try:
            messages = Messages(connection)
            async with asking("subscribe"):
                await messages.subscribe(channels)
            yield messages
        finally:
            with contextlib.suppress(Exception):  # it is being given up; why, is already known
                try:
                    await connection.disconnect(nowait=True)
                finally:
                    await pool.release(connection)
