"""A server that can't be reached is one error for every method, and is used again when it is back."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions

from services.executor.store import Store
from services.executor.store.resp import SharedConnection
from shared import keys
from shared.connection import connect
from shared.errors import StoreUnavailableError
from tests.conftest import eventually
from tests.service.trouble import Server
from tests.store.asked import READS, WRITES, Ask, refused
from tests.store.conftest import (
    Run,
    Worker,
    store_on,
)


@pytest.mark.parametrize("ask", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
async def test_every_method_raises_one_error_without_a_server(ask: Ask, run: Run, own_server: Server) -> None:
    async with store_on(own_server.url) as store:
        message = await refused(ask, Run(Worker(store), run.claim))

    assert "Redis can't be reached: " in message


@pytest.mark.parametrize("ask", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
async def test_a_connection_that_was_cut_off_is_made_again(ask: Ask, run: Run, redis: Any) -> None:
    for kind in ("normal", "pubsub"):
        await redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    try:
        await ask(run)
    except StoreUnavailableError:
        await ask(run)


async def test_a_wait_that_is_cut_off_raises(worker: Worker, redis: Any) -> None:
    waiting = asyncio.create_task(worker.store.queue.wait("w1", 60))
    while not int((await redis.info("clients"))["blocked_clients"]):
        await asyncio.sleep(0)
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with pytest.raises(StoreUnavailableError, match=r"^wait: Redis can't be reached"):
        await waiting


async def test_a_wait_raises_when_its_server_becomes_a_replica(worker: Worker, redis: Any) -> None:
    waiting = asyncio.create_task(worker.store.queue.wait("w1", 60))
    while not int((await redis.info("clients"))["blocked_clients"]):
        await asyncio.sleep(0)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")

    with pytest.raises(StoreUnavailableError):
        await waiting


async def test_a_subscription_that_is_cut_off_raises(store: Store, redis: Any) -> None:
    async with store.subscriptions.to((keys.MARKERS,)) as messages:
        hearing: Any = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

        with pytest.raises(StoreUnavailableError, match=r"^listen: "):
            await hearing


async def test_a_server_that_comes_back_is_used_again(own_server: Server) -> None:
    await own_server.start()
    async with store_on(own_server.url) as store:
        await store.queue.create_group()
        worker = Worker(store)
        run = await worker.begun()
        own_server.kill()
        with pytest.raises(StoreUnavailableError):
            await run.finish()
        await own_server.start()

        async def finished() -> str | None:
            try:
                return await run.finish()
            except StoreUnavailableError:
                return None

        assert await eventually(finished) == "finished"


async def test_a_server_that_accepts_connections_and_never_answers_is_given_up(tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path / 'silent'}?db=1")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        silent.listen()
        connection = SharedConnection(client, limit_seconds=0.2)

        for _ in range(2):
            with pytest.raises((redis.exceptions.TimeoutError, TimeoutError)):
                await connection.execute("PING")
    await client.aclose()
