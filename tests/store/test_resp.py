"""A connection is given up when the server sends nonsense; the next command makes another one."""

import asyncio

import pytest
import redis.exceptions

from services.executor.store.resp import SharedConnection
from shared.connection import connect


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer OK to every command but `nonsense`."""
    while data := await reader.read(65_536):
        writer.write(b"@@@\r\n" if b"nonsense" in data else b"+OK\r\n" * data.count(b"*"))
    writer.close()


async def test_nonsense_ends_the_connection_and_nothing_else() -> None:
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with connect(f"redis://127.0.0.1:{port}/0") as client:
            connection = SharedConnection(client, limit_seconds=30)
            before = await connection.execute("SET", "a", "b")
            with pytest.raises(redis.exceptions.ConnectionError, match="nonsense"):
                await connection.execute("nonsense")
            after = await connection.execute("SET", "a", "b")

    assert before == after == "OK"
