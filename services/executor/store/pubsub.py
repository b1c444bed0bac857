"""Pub/sub: subscriptions, and the order of triggers that all workers agree on."""

import contextlib
import math
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import redis.exceptions
from msgspec import Struct
from redis.asyncio import Redis

from services.executor.store.queue import BITMAP_KEPT_MS, RESENT_WITHIN_MS, Position
from services.executor.store.scripts import Script, Scripts, asking, translated
from shared import keys
from shared.documents import json_text

PROBE_MS = 1_000


class Message(Struct, frozen=True):
    """A message on a channel, or the notification that the event `data` has happened to `key`."""

    channel: str
    data: str
    key: str = ""


class Messages:
    """Messages in the order in which Redis passed them on.

    What arrives faster than it is read stays with Redis.

    Args:
        connection: no command was sent on it yet.
        prefix: stands before the names of all channels on the server, and nowhere else.
    """

    def __init__(self, connection: Any, prefix: str) -> None:
        self._connection = connection
        self._prefix = prefix
        self._leaving: set[str] | None = None
        self.hears_keys = False
        """Whether the server has accepted the patterns; it may be configured to tell nothing all the same."""

    async def watch(self, patterns: Sequence[str]) -> None:
        """Subscribe to notifications of keys, if the server allows that; call it before `subscribe`."""
        try:
            await self._connection.send_command("PSUBSCRIBE", *patterns, check_health=False)
            for _ in patterns:
                await self._read()
        except redis.exceptions.ResponseError:  # an ACL without these channels
            return
        self.hears_keys = True

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
                kind, *pattern, channel, data = await self._read()
            except (redis.exceptions.RedisError, OSError) as exc:
                raise translated("listen", exc) from exc
            if pattern:
                return Message(channel, data, key=channel.partition(":")[2])
            channel = channel.removeprefix(self._prefix)
            if kind == "message":
                return Message(channel, data)
            if kind == "unsubscribe" and self._leaving is not None:
                self._leaving.discard(channel)
        raise StopAsyncIteration

    async def _send(self, command: str, channels: Sequence[str]) -> None:
        names = [self._prefix + channel for channel in channels]
        await self._connection.send_command(command, *names, check_health=False)

    async def _read(self) -> Any:
        return await self._connection.read_response(timeout=math.inf, disconnect_on_error=False)


class Subscriptions:
    """Subscribes to channels.

    Args:
        scripts: know how channels are called on this server.
        patient: a client whose reads have no time limit.
    """

    def __init__(self, scripts: Scripts, patient: Redis) -> None:
        self._scripts = scripts
        self._patient = patient

    @contextlib.asynccontextmanager
    async def to(self, channels: Sequence[str], key_patterns: Sequence[str] = ()) -> AsyncIterator[Messages]:
        """Messages of `channels`, and notifications of keys, in the order in which Redis passed them on.

        On entry, Redis has confirmed the subscription: every message that is published from then on
        arrives.  A subscription that is cut off raises an error, and is not made again silently,
        since messages are missed in between.

        Raises:
            StoreUnavailableError: on entry or while reading, when Redis can't be reached or refuses.
        """
        pool: Any = self._patient.connection_pool
        async with asking("subscribe"):
            connection = await pool.get_connection()
        try:
            messages = Messages(connection, self._scripts.channel(""))
            async with asking("subscribe"):
                if key_patterns:
                    database = pool.connection_kwargs.get("db") or 0
                    await messages.watch([f"__keyspace@{database}__:{one}" for one in key_patterns])
                await messages.subscribe(channels)
            yield messages
        finally:
            with contextlib.suppress(Exception):  # the error that ended the subscription is raised already
                try:
                    await connection.disconnect(nowait=True)
                finally:
                    await pool.release(connection)

    async def probe(self, key: str) -> set[str]:
        """Write a string and a hash below `key`, which expire at once; returns their names."""
        string, hash_ = f"{key}:string", f"{key}:hash"
        async with asking("probe"), self._scripts.client.pipeline(transaction=False) as pipe:
            pipe.set(string, "", px=PROBE_MS)
            pipe.hset(hash_, "probe", "")
            pipe.pexpire(hash_, PROBE_MS)
            await pipe.execute()
        return {string, hash_}


_JOIN = Script(
    "join",
    keys=("listeners", "ears", "bitmap"),
    args=("worker", "marker", "channel", "ttl_ms", "bitmap_kept_ms", "ear"),
)
_REFUSE = Script(
    "refuse", keys=("admitted", "journal"), args=("bit", "bitmap_kept_ms", "result", "journal_cap")
)


class TriggerOrder:
    """The order of triggers, on which the workers agree (see `join.lua`)."""

    def __init__(self, scripts: Scripts, journal_kept: int) -> None:
        self._scripts = scripts
        self._journal_kept = journal_kept

    async def send(self, channel: str, message: Mapping[str, Any]) -> int:
        """Publish a trigger as any neighbour would; returns how many subscribers received it."""
        async with asking("trigger"):
            return int(await self._scripts.client.publish(self._scripts.channel(channel), json_text(message)))

    async def join(self, worker: str, ear: str, marker: str, ttl_seconds: float) -> bool:
        """Publish a marker from which all workers count the triggers.

        Args:
            worker: its name.
            ear: the channel of the connection on which the worker has subscribed.
            marker: a text that was never used before.
            ttl_seconds: how long the worker counts as listening; 0 when it leaves.

        Returns:
            Whether the triggers that the worker heard before the marker are still to be admitted.
        """
        channels = self._scripts.channel(keys.MARKERS), self._scripts.channel(ear)
        answer = await self._scripts.call(
            _JOIN,
            [keys.listeners(), keys.ears(), keys.admitted(marker)],
            [worker, marker, channels[0], math.ceil(ttl_seconds * 1_000), BITMAP_KEPT_MS, channels[1]],
        )
        return bool(answer)

    async def refuse(
        self, position: Position, result: Mapping[str, Any], kept_ms: int = BITMAP_KEPT_MS
    ) -> bool:
        """Publish `result` for what can't become a run; False if a worker had done so within `kept_ms`."""
        return await self._publish_once(position, kept_ms, result)

    async def announce(self, result: Mapping[str, Any]) -> None:
        """Publish `result` about a key that can't be read."""
        # With a position of its own, the call can be sent twice.
        await self._publish_once(Position(secrets.token_hex(8), 0), RESENT_WITHIN_MS, result)

    async def _publish_once(self, position: Position, kept_ms: int, result: Mapping[str, Any]) -> bool:
        answer = await self._scripts.call(
            _REFUSE,
            [keys.admitted(position.marker), keys.journal()],
            [position.count, kept_ms, json_text(result), self._journal_kept],
        )
        return bool(answer)
