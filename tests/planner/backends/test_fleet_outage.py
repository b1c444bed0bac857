"""A plan on the fleet survives an outage of Redis."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.executor.outcome import Status
from services.executor.store import Store
from shared.errors import StoreUnavailableError
from tests.conftest import Tools, eventually
from tests.planner.backends.conftest import Executors, MakeFleet, execution
from tests.service.trouble import Server

HOLD = """
    import os, time

    def hold(n: int, folder: str):
        open(f"{folder}/begun-{n}", "w").write("x")
        while not os.path.exists(folder + "/go"):
            time.sleep(0.01)
        return n
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that keeps its data when it is killed."""
    one = Server(tmp_path / "server")
    await one.start()
    yield one
    one.kill()


@pytest.fixture
def redis_url(server: Server) -> str:
    """The other fixtures work on that server."""
    return server.url


async def test_a_plan_survives_an_outage_of_redis(
    server: Server, fleet: MakeFleet, executors: Executors, tools: Tools, tmp_path: Path
) -> None:
    tools("hold", HOLD)
    folder = str(tmp_path)
    async with executors(), fleet(poll_seconds=0.5, capacity=6) as backend:
        calls = [
            asyncio.create_task(backend.run(execution("hold", {"n": n, "folder": folder}, n)))
            for n in range(12)
        ]
        await eventually(lambda: _has_begun(tmp_path), "the first run")
        server.kill()
        (tmp_path / "go").touch()
        late = asyncio.create_task(backend.run(execution("hold", {"n": 99, "folder": folder}, 99)))
        await server.start()
        results = await asyncio.gather(*calls, late)

    assert [one.status for one in results] == [Status.COMPLETED] * 13
    assert [json.loads(str(one.result)) for one in results] == [*range(12), 99]


async def _has_begun(folder: Path) -> bool:
    return any(folder.glob("begun-*"))


async def test_cancelling_while_redis_is_unavailable_returns(
    server: Server, store: Store, fleet: MakeFleet, tools: Tools
) -> None:
    cancel = asyncio.Event()
    async with fleet(cancel_seconds=0.2) as backend:
        call = asyncio.create_task(backend.run(execution("hold", {}), cancel=cancel))
        await eventually(store.queue.waiting, "the order")
        server.kill()
        cancel.set()
        result = await call

    assert result.status is Status.CANCELLED


async def test_without_redis_the_backend_cant_be_opened(server: Server, fleet: MakeFleet) -> None:
    server.kill()

    with pytest.raises(StoreUnavailableError):
        async with fleet():
            pass
