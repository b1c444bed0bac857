"""The page, served by its real server on a free port."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from services.executor.store import Store
from services.web.app import build
from services.web.security import Access
from services.web.server import listen, server_of
from services.web.store_access import StoreAccess
from shared import keys
from shared.connection import connect, connect_blocking
from tests.acceptance.commands import Shell
from tests.conftest import KEPT
from tests.web.client import TOKEN, VIEW_TOKEN, Client

ServePage = Callable[..., contextlib.AbstractAsyncContextManager[Client]]


@contextlib.asynccontextmanager
async def _store_at(url: str) -> AsyncIterator[Store]:
    client, patient = connect(url), connect_blocking(url)
    yield Store.on(client, patient, KEPT)
    await client.aclose()
    await patient.aclose()


@pytest.fixture
def serve_page(redis_url: str, tmp_path: Path) -> ServePage:
    """`async with serve_page(read_only=True, ...)` serves the page; the keywords are those of `Access`."""

    @contextlib.asynccontextmanager
    async def serving(**chosen: Any) -> AsyncIterator[Client]:
        access = Access(**{"hosts": {"127.0.0.1"}, "act_token": TOKEN, "view_token": VIEW_TOKEN, **chosen})
        stored = StoreAccess(lambda: redis_url, _store_at)
        web_page = build(stored, access, place=str(tmp_path / "artifacts"), channel=keys.EXECUTE_NOW)
        listening = listen("127.0.0.1", 0)
        port = listening.getsockname()[1]
        server = server_of(web_page)
        task = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield Client(port)
        finally:
            web_page.hub.is_closing.set()
            server.should_exit = True
            await task
            listening.close()

    return serving


@pytest.fixture
async def stranger(serve_page: ServePage) -> AsyncIterator[Client]:
    """Somebody who has not logged in."""
    async with serve_page() as client:
        yield client


@pytest.fixture
async def client(stranger: Client) -> Client:
    """Somebody who may act."""
    await stranger.log_in()
    return stranger


@pytest.fixture
def shell(tmp_path: Path, redis_url: str) -> Shell:
    """An empty directory; REDIS_URL is the test's own server."""
    return Shell(tmp_path, {"REDIS_URL": redis_url})
