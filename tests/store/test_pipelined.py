"""A connection over which nonsense comes is given up, and the next question is asked on another one."""

import asyncio

import pytest
import redis.exceptions

from services.executor.store.pipelined import Pipelined
from shared.connection import connect


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """OK to everything but to what asks for nonsense."""
    while data := await reader.read(65_536):
        writer.write(b"@@@\r\n" if b"nonsense" in data else b"+OK\r\n" * data.count(b"*"))
    writer.close()


async def test_nonsense_costs_the_connection_and_nothing_else() -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"redis://127.0.0.1:{port}/0") as client:
            pipelined = Pipelined(client, limit_seconds=30)
            before = await pipelined.ask("SET", "a", "b")
            with pytest.raises(redis.exceptions.ConnectionError, match="makes no sense"):
                await pipelined.ask("nonsense")
            after = await pipelined.ask("SET", "a", "b")

    assert before == after == "OK"
