"""One connection for many askers: nobody waits for another's answer before it asks."""

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
import redis.exceptions
from redis.asyncio import Redis

from services.executor.store.line import Line

WATCH_SECONDS = 1.0

Argument = str | bytes | int | float

# Its annotation is of a tuple of one.
_pack: Callable[[tuple[Argument, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]


class Pipelined:
    """Asks Redis in the order of the calls, and hands the answers out as they come.

    What is asked in one turn of the event loop goes out in one write.  The connection is
    made when something is asked, and made anew after it was lost: whoever waits for an
    answer then gets a ConnectionError, and can't know whether Redis has done it.

    Args:
        client: whose pool the connection comes from; it is held as long as it is good.
        limit_seconds: an answer that takes longer means that the connection is lost.
    """

    def __init__(self, client: Redis, limit_seconds: float) -> None:
        self._pool: Any = client.connection_pool
        self._limit_seconds = limit_seconds
        self._unsent: list[bytes] = []
        self._asked: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._line: Line | None = None
        self._talking: asyncio.Task[None] | None = None

    def ask(self, *command: Argument) -> asyncio.Future[Any]:
        """The answer to one command, which must not block; redis-py's exceptions if there is none."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        if not self._unsent and self._line is not None:
            loop.call_soon(self._send)
        self._unsent.append(packed(command))
        self._asked.append((loop.time(), answer))
        if self._talking is None:
            # Not in the context of whoever happens to ask first: the connection serves all.
            context = contextvars.Context()
            self._talking = loop.create_task(self._talk(), name="redis", context=context)
        return answer

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._line is not None and unsent:
            self._line.transport.write(b"".join(unsent))

    async def _talk(self) -> None:
        """Send and receive until the connection is lost; the reason answers all that was asked."""
        reason: BaseException = redis.exceptions.ConnectionError("the connection was closed")
        try:
            async with asyncio.timeout(self._limit_seconds):
                connection = await self._pool.get_connection()
            try:
                self._line = Line(connection, self._hear)
                self._send()
                await self._watched(self._line.lost)
            finally:
                self._line = None
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)
        except (redis.exceptions.RedisError, OSError) as exc:
            reason = exc
        finally:
            self._give_up(reason)

    def _hear(self, found: Any) -> None:
        if not self._asked:
            raise ValueError("an answer to no question")
        _, answer = self._asked.popleft()
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    async def _watched(self, lost: asyncio.Future[None]) -> None:
        """Raise why the connection is lost.  One timer for all: one for each costs more than a question."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.wait([lost], timeout=WATCH_SECONDS)
            if lost.done():
                lost.result()
            if self._asked and loop.time() - self._asked[0][0] > self._limit_seconds:
                raise redis.exceptions.TimeoutError("no answer in time")

    def _give_up(self, reason: BaseException) -> None:
        asked, self._asked = self._asked, deque()
        self._unsent.clear()
        self._talking = None
        for _, answer in asked:
            if not answer.done():
                # One each: a traceback grows where it is raised.
                answer.set_exception(type(reason)(*reason.args))
                answer.exception()  # whoever asked may be gone already


def packed(command: tuple[Argument, ...]) -> bytes:
    """The command on the wire; neighbours' bytes that are no UTF-8 go back as they came."""
    try:
        return _pack(command)
    except UnicodeEncodeError:
        return _pack(
            tuple(one.encode(errors="surrogateescape") if isinstance(one, str) else one for one in command)
        )
