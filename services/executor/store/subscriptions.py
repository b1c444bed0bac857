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


class Subscriptions:
    """Subscribes on a client whose reads may take for ever."""

    def __init__(self, patient: Redis) -> None:
        self._patient = patient

    @contextlib.asynccontextmanager
    async def to(self, channels: Sequence[str]) -> AsyncIterator[AsyncIterator[Message]]:
        """Messages of `channels`, in the order in which Redis passed them on.

        On entry the subscription is confirmed: what is published from then on
        is heard.  A subscription that breaks is not mended unseen, because
        messages are missed meanwhile.

        Raises:
            StoreUnavailableError: on entry or while reading.
        """
        pubsub = self._patient.pubsub()
        try:
            async with asking("subscribe"):
                await pubsub.subscribe(*channels)
                for _ in set(channels):
                    await pubsub.get_message(timeout=None)
            yield _messages(pubsub)
        finally:
            with contextlib.suppress(Exception):  # it is being given up; why, is already known
                await pubsub.aclose()  # type: ignore[no-untyped-call]


async def _messages(pubsub: Any) -> AsyncIterator[Message]:
    while True:
        async with asking("listen", may_take_seconds=None):
            message = await pubsub.get_message(timeout=None)
        if message is not None and message["type"] == "message":
            yield Message(message["channel"], message["data"])
