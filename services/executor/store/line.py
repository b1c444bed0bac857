"""A connection to Redis, once redis-py has made it: its streams and its parser cost more than the rest."""

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import redis.exceptions

INCOMPLETE = object()


class Line(asyncio.Protocol):
    """Hands out what Redis says, whole, as it comes.

    Args:
        connection: from redis-py's pool, where it goes back to; nothing was asked on it yet.
        hear: gets each answer or message; what it raises is the end of the line.

    Attributes:
        lost: fails when there is nothing more to come.
    """

    def __init__(self, connection: Any, hear: Callable[[Any], None]) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport = connection._writer.transport
        self._reader = hiredis.Reader(
            replyError=connection._parser.parse_error,
            encoding=connection.encoder.encoding,
            errors=connection.encoder.encoding_errors,
            notEnoughData=INCOMPLETE,
        )
        self._hear = hear
        self._former = self.transport.get_protocol()
        self.transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        """Hand out what is complete."""
        try:
            self._reader.feed(data)
            while (found := self._reader.gets()) is not INCOMPLETE:
                self._hear(found)
        except Exception as exc:  # hiredis' own errors among them: nothing that follows can be understood
            self._lose(f"what came makes no sense: {exc}")

    def connection_lost(self, exc: Exception | None) -> None:
        """The server or the network ended it, or we did."""
        self._former.connection_lost(exc)
        self._lose("the server closed the connection")

    def _lose(self, why: str) -> None:
        if not self.lost.done():
            self.lost.set_exception(redis.exceptions.ConnectionError(why))
            self.lost.exception()  # it may have been given up already
