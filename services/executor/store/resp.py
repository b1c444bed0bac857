"""One connection that many callers share: no caller waits for another one's answer before it sends.

redis-py gives each command a connection of its own until its answer has arrived.  That takes several
times the processor time of a command here.
"""

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis
import redis.exceptions
from redis.asyncio import Redis

WATCH_SECONDS: Final = 1.0

Argument = str | bytes | int | float

# hiredis' own annotation is of a tuple of one.
_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


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
        self._unsent: list[bytes] = []
        self._has_unsent = asyncio.Event()
        self._unanswered: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._talking: asyncio.Task[None] | None = None

    def execute(self, *command: Argument) -> asyncio.Future[Any]:
        """Send a command that does not block; its answer, or redis-py's exceptions."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._unsent.append(packed(command))
        self._has_unsent.set()
        self._unanswered.append((loop.time(), answer))
        if self._talking is None:
            # The connection serves all callers: it must not run in the context of the first one.
            context = contextvars.Context()
            self._talking = loop.create_task(self._talk(), name="redis", context=context)
        return answer

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
            await connection.send_packed_command(unsent, check_health=False)

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
            _, answer = self._unanswered.popleft()
            if answer.done():  # cancelled
                continue
            if isinstance(found, Exception):
                answer.set_exception(found)
            else:
                answer.set_result(found)

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
        self._has_unsent.clear()
        self._talking = None
        for _, answer in unanswered:
            if not answer.done():
                # One exception each: a traceback grows wherever it is raised.
                answer.set_exception(type(reason)(*reason.args))
                answer.exception()  # its caller may be gone already


def packed(command: tuple[Argument, ...]) -> bytes:
    """The command in Redis' protocol; bytes of neighbours that are no UTF-8 are sent as they came."""
    try:
        return _pack(command)
    except UnicodeEncodeError:
        return _pack(
            tuple(one.encode(errors="surrogateescape") if isinstance(one, str) else one for one in command)
        )
