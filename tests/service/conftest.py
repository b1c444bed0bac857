"""What the tests of the service share: a plain tool, and clients to be cut off."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis

from services.executor.store import scripts
from tests.conftest import Neighbour, Tools
from tests.service.trouble import STEADY, Books, Log, Server
from tests.service.worker import Worker, worker

ECHO = """
    def echo(**params):
        return params
"""


@pytest.fixture
def echo(tools: Tools) -> Path:
    """The tool `echo`, which returns its parameters."""
    return tools("echo", ECHO)


class NoTools:
    """The preparation of tools, where none is needed."""

    def want(self, name: str) -> None:
        """Prepare nothing."""

    missing: Sequence[str] = ()
    failed: Sequence[str] = ()


async def assert_works(neighbour: Neighbour) -> None:
    """A good experiment (with the tool `echo`) runs."""
    await neighbour.publish("exp_good", "echo", params={"well": True})

    result = await neighbour.run("exp_good")

    assert result["type"] == "experiment_completed", result
    assert result["result_summary"] == {"well": True}


async def client_ids(redis: Any, kind: str) -> set[str]:
    """The connections of a kind (`normal`, `pubsub`) that the server has now."""
    return {one["id"] for one in await redis.client_list(_type=kind)}


Work = Callable[..., contextlib.AbstractAsyncContextManager[Worker]]


@pytest.fixture
def work(redis_url: str, tmp_path: Path) -> Work:
    """`async with work(shutdown_grace=..., ...) as one` runs the service as a process of its own."""
    (tmp_path / "tools").mkdir(exist_ok=True)

    def started(**settings: Any) -> contextlib.AbstractAsyncContextManager[Worker]:
        return worker(settings.pop("redis_url", redis_url), tmp_path, settings)

    return started


# -- trouble with Redis ------------------------------------------------------------------


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The server of this test, to be broken."""
    one = Server(tmp_path / "redis")
    try:
        await one.start()
        yield one
    finally:
        one.kill()


@pytest.fixture
def books(redis: Redis, tools: Tools, tmp_path: Path) -> Books:
    """Runs of the tool `steady`."""
    tools("steady", STEADY)
    return Books(redis, tmp_path)


@pytest.fixture
def log() -> Iterator[Log]:
    """What the services of this test say."""
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        yield Log(lines)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is not waited for as long as usual."""
    monkeypatch.setattr(scripts, "COMMAND_TIMEOUT_SECONDS", 0.5)
