"""One connection that many callers share: no caller waits for another one's answer before it sends.

redis-py gives each command a connection of its own until its answer has arrived.  That takes several
times the processor time of a command here.
"""

import asyncio
import contextvars
import functools
import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import hiredis
import redis.exceptions
from redis.asyncio import Redis

WATCH_SECONDS: Final = 1.0
BATCH_ITEMS: Final = 32
BATCH_BYTES: Final = 262_144

Argument = str | bytes | int | float

# hiredis' own annotation is of a tuple of one.
_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class Batch:
    """Items of several callers that are sent in one command, whose answer is a list with one for each.

    Args:
        command: makes the command, when it is sent.
    """

    def __init__(self, command: "Command") -> None:
        self._command = command
        self._items: list[bytes] = []
        self._weight = 0
        self._bytes = 0
        self._answers: list[asyncio.Future[Any]] = []

    def add(self, item: bytes, weight: int, answer: asyncio.Future[Any]) -> None:
        """Have the item sent with the others; `answer` becomes what Redis answers to it."""
        self._items.append(item)
        self._weight += weight
        self._bytes += len(item)
        self._answers.append(answer)

    def has_room(self, item: bytes) -> bool:
        """Whether the item may be added: nobody is to wait long for the others."""
        return len(self._items) < BATCH_ITEMS and self._bytes + len(item) <= BATCH_BYTES

    def packed(self) -> bytes:
        """The command in Redis' protocol."""
        return packed(tuple(self._command(self._items, self._weight)))

    def hand_out(self, found: Any) -> None:
        """Hand out the answers, or the error that all of them have."""
        count = len(self._answers)
        if isinstance(found, list) and len(found) != count:
            found = redis.exceptions.ResponseError(f"{len(found)} answers to {count} items")
        each = found if isinstance(found, list) else [found] * count
        for answer, one in zip(self._answers, each, strict=True):
            settle(answer, one)


Command = Callable[[Sequence[bytes], int], Sequence[Argument]]
"""Makes the command of a batch from its items and the sum of their weights."""


class SharedConnection:
    """Sends commands in the order of the calls, and hands out the answers as they arrive.

    Commands of one turn of the event loop are sent in one write.  The connection is made for the
    first command, and made again after it was lost.  Callers that wait for an answer then get a
    ConnectionError, and can't know whether Redis has executed their commands.

    Args:
        client: the connection comes from its pool, and is held as long as it is good.
        limit_seconds: an answer that takes longer means that the connection is lost.
    """

    def __init__(self, client: Redis, limit_seconds: float) -> None:
        self._pool: Any = client.connection_pool
        self._limit_seconds = limit_seconds
        self._unsent: list[bytes | Batch] = []
        self._open: dict[Hashable, Batch] = {}
        self._has_unsent = asyncio.Event()
        self._unanswered: deque[tuple[float, Callable[[Any], None]]] = deque()
        self._talking: asyncio.Task[None] | None = None

    def execute(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command that does not block; its answer, or redis-py's exceptions."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue(packed(command), functools.partial(settle, answer))
        return answer

    def execute_together(
        self, key: Hashable, command: Command, item: bytes, weight: int = 0
    ) -> asyncio.Future[Any]:
        """Send an item in one command with those that have the same key, in this turn of the event loop.

        Args:
            key: of all items that the command may be made of.
            command: makes the command; that of the first item counts.
            item: what is sent.
            weight: see `Command`.

        Returns:
            The answer to the item, or redis-py's exceptions.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        batch = self._open.get(key)
        if batch is None or not batch.has_room(item):
            batch = self._open[key] = Batch(command)
            self._queue(batch, batch.hand_out)
        batch.add(item, weight, answer)
        return answer

    def _queue(self, unsent: bytes | Batch, hand_out: Callable[[Any], None]) -> None:
        loop = asyncio.get_running_loop()
        self._unsent.append(unsent)
        self._has_unsent.set()
        self._unanswered.append((loop.time(), hand_out))
        if self._talking is None:
            # The connection serves all callers: it must not run in the context of the first one.
            context = contextvars.Context()
            self._talking = loop.create_task(self._talk(), name="redis", context=context)

    async def _talk(self) -> None:
        """Send and receive until the connection is lost; then fail all unanswered commands."""
        reason: BaseException = redis.exceptions.ConnectionError("the connection was closed")
        try:
            async with asyncio.timeout(self._limit_seconds):
                connection = await self._pool.get_connection()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._send(connection))
                    group.create_task(self._receive(connection))
                    group.create_task(self._watch())
            finally:
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)
        except* (redis.exceptions.RedisError, OSError) as lost:
            reason = lost.exceptions[0]
        finally:
            self._fail(reason)

    async def _send(self, connection: Any) -> None:
        while await self._has_unsent.wait():
            self._has_unsent.clear()
            unsent, self._unsent = self._unsent, []
            self._open.clear()
            commands = [one if isinstance(one, bytes) else one.packed() for one in unsent]
            await connection.send_packed_command(commands, check_health=False)

    async def _receive(self, connection: Any) -> None:
        while True:
            try:
                found = await connection.read_response(timeout=math.inf, disconnect_on_error=False)
            except redis.exceptions.ResponseError as exc:
                found = exc
            except redis.exceptions.InvalidResponse as exc:
                raise redis.exceptions.ConnectionError(f"the server sent nonsense: {exc}") from exc
            if not self._unanswered:
                raise redis.exceptions.ConnectionError("the server sent an answer to no command")
            _, hand_out = self._unanswered.popleft()
            hand_out(found)

    async def _watch(self) -> None:
        """Raise when an answer takes too long.  A timer for each command would cost more than the command."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._unanswered and loop.time() - self._unanswered[0][0] > self._limit_seconds:
                raise redis.exceptions.TimeoutError("no answer in time")

    def _fail(self, reason: BaseException) -> None:
        unanswered, self._unanswered = self._unanswered, deque()
        self._unsent.clear()
        self._open.clear()
        self._has_unsent.clear()
        self._talking = None
        for _, hand_out in unanswered:
            hand_out(reason)


def settle(answer: asyncio.Future[Any], found: Any) -> None:
    """Hand an answer out, or the error in its place, unless nobody waits any more."""
    if answer.done():
        return
    if isinstance(found, BaseException):
        # One exception each: a traceback grows wherever it is raised.
        answer.set_exception(type(found)(*found.args))
        answer.exception()  # its caller may be gone already
    else:
        answer.set_result(found)


def packed(command: tuple[Argument, ...]) -> bytes:
    """The command in Redis' protocol; bytes of neighbours that are no UTF-8 are sent as they came."""
    try:
        return _pack(command)
    except UnicodeEncodeError:
        return _pack(
            tuple(one.encode(errors="surrogateescape") if isinstance(one, str) else one for one in command)
        )
