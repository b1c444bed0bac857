"""Pub/sub: a subscription that is confirmed before it is used, and that breaks loudly."""

import contextlib
import math
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis.exceptions
from msgspec import Struct
from redis.asyncio import Redis

from services.executor.store.scripts import asking, translated


class Message(Struct, frozen=True):
    """What came on a channel."""

    channel: str
    data: str


class Messages:
    """Messages in the order in which Redis passed them on.

    What arrives faster than it is read stays with Redis.

    Args:
        connection: no command was sent on it yet.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._leaving: set[str] | None = None

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Subscribe to channels; returns when Redis has confirmed each.  Raises redis-py's exceptions."""
        await self._send("SUBSCRIBE", channels)
        for _ in channels:
            await self._read()

    async def leave(self, channels: Sequence[str]) -> None:
        """Unsubscribe from channels; the messages end behind all that were passed on before."""
        await self._send("UNSUBSCRIBE", channels)
        self._leaving = set(channels)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while self._leaving is None or self._leaving:
            try:
                kind, channel, data = await self._read()
            except (redis.exceptions.RedisError, OSError) as exc:
                raise translated("listen", exc) from exc
            if kind == "message":
                return Message(channel, data)
            if kind == "unsubscribe" and self._leaving is not None:
                self._leaving.discard(channel)
        raise StopAsyncIteration

    async def _send(self, command: str, channels: Sequence[str]) -> None:
        await self._connection.send_command(command, *channels, check_health=False)

    async def _read(self) -> Any:
        return await self._connection.read_response(timeout=math.inf, disconnect_on_error=False)


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
