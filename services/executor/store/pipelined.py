"""One connection for many askers: nobody waits for another's answer before it asks."""

import asyncio
import contextlib
import contextvars
from collections import deque
from typing import Any

import hiredis
import redis.exceptions
from redis.asyncio import Redis

WATCH_SECONDS = 1.0

Argument = str | bytes | int | float

# Any: its annotation is of a tuple of one.
_pack: Any = hiredis.pack_command


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
        self._unsent: list[Any] = []
        self._asked: deque[tuple[float, asyncio.Future[Any]]] = deque()
        self._has_unsent = asyncio.Event()
        self._talking: asyncio.Task[None] | None = None

    def ask(self, *command: Argument) -> asyncio.Future[Any]:
        """The answer to one command, which must not block; redis-py's exceptions if there is none."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        self._unsent.append(_packed(command))
        self._asked.append((loop.time(), answer))
        self._has_unsent.set()
        if self._talking is None:
            # Not in the context of whoever happens to ask first: the connection serves all.
            context = contextvars.Context()
            self._talking = loop.create_task(self._talk(), name="redis", context=context)
        return answer

    async def _talk(self) -> None:
        """Send and receive until the connection is lost; the reason answers all that was asked."""
        reason: BaseException = redis.exceptions.ConnectionError("the connection was closed")
        try:
            async with asyncio.timeout(self._limit_seconds):
                connection = await self._pool.get_connection()
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._send(connection))
                    tasks.create_task(self._receive(connection))
                    tasks.create_task(self._watch())
            finally:
                await connection.disconnect(nowait=True)
                await self._pool.release(connection)
        except* (redis.exceptions.RedisError, OSError) as group:
            reason = _first(group)
        finally:
            self._give_up(reason)

    def _give_up(self, reason: BaseException) -> None:
        asked, self._asked = self._asked, deque()
        self._unsent.clear()
        self._has_unsent.clear()
        self._talking = None
        for _, answer in asked:
            if not answer.done():
                answer.set_exception(
                    type(reason)(*reason.args)
                )  # one each: a traceback grows where it is raised
                answer.exception()  # whoever asked may be gone already

    async def _send(self, connection: Any) -> None:
        while True:
            await self._has_unsent.wait()
            self._has_unsent.clear()
            unsent, self._unsent = self._unsent, []
            await connection.send_packed_command(unsent, check_health=False)

    async def _receive(self, connection: Any) -> None:
        while True:
            error: redis.exceptions.ResponseError | None = None
            found = None
            try:
                found = await connection.read_response(disconnect_on_error=False)
            except redis.exceptions.ResponseError as exc:
                error = exc
            if not self._asked:
                raise redis.exceptions.ConnectionError("an answer to no question")
            _, answer = self._asked.popleft()
            if answer.done():
                continue
            if error is None:
                answer.set_result(found)
            else:
                answer.set_exception(error)

    async def _watch(self) -> None:
        """One timer for all: one for each question would cost more than the question."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if self._asked and loop.time() - self._asked[0][0] > self._limit_seconds:
                raise redis.exceptions.TimeoutError("no answer in time")


def _packed(command: tuple[Argument, ...]) -> Any:
    """The command on the wire; neighbours' bytes that are no UTF-8 go back as they came."""
    with contextlib.suppress(UnicodeEncodeError):
        return _pack(command)
    return _pack(
        tuple(one.encode(errors="surrogateescape") if isinstance(one, str) else one for one in command)
    )


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
