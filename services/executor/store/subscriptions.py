"""Pub/sub: a subscription that is confirmed before it is used, and that breaks loudly."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.executor.store.scripts import asking


@dataclass(frozen=True, slots=True)
class Message:
    """What came on a channel."""

    channel: str
    data: str


class Messages:
    """Messages in the order in which Redis passed them on."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub
        self._leaving: set[str] | None = None

    async def leave(self, channels: Sequence[str]) -> None:
        """Hear no more of these channels; the messages end behind all that was passed on before that."""
        async with asking("unsubscribe"):
            await self._pubsub.unsubscribe(*channels)
        self._leaving = set(channels)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        while self._leaving is None or self._leaving:
            async with asking("listen", may_take_seconds=None):
                message = await self._pubsub.get_message(timeout=None)
            if message is None:
                continue
            if message["type"] == "message":
                return Message(message["channel"], message["data"])
            if message["type"] == "unsubscribe" and self._leaving is not None:
                self._leaving.discard(message["channel"])
        raise StopAsyncIteration


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
        pubsub: Any = self._patient.pubsub()
        try:
            async with asking("subscribe"):
                await pubsub.connect()
                # When it breaks, redis-py would subscribe anew before it says so: whoever published meanwhile
                # would be told of a listener that listens no more.
                pubsub.connection.deregister_connect_callback(pubsub.on_connect)
                await pubsub.subscribe(*channels)
                for _ in set(channels):
                    await pubsub.get_message(timeout=None)
            yield Messages(pubsub)
        finally:
            with contextlib.suppress(Exception):  # it is being given up; why, is already known
                await pubsub.aclose()
