"""The command that a container's health check runs."""

import asyncio
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT

import pytest
from redis.asyncio import Redis

from services.executor.monitoring import healthcheck
from services.executor.store import Store
from shared import keys
from tests.conftest import Serve

HOST = socket.gethostname()


@pytest.fixture
def address(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test's server, which the command reads from its environment."""
    monkeypatch.setenv("REDIS_URL", redis_url)
    return redis_url


async def ask() -> tuple[int | None, str]:
    """Return the exit code and the only line of output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.executor.monitoring.healthcheck", stdout=PIPE, stderr=STDOUT
    )
    output, _ = await process.communicate()
    (line,) = output.decode().splitlines()
    return process.returncode, line


async def test_a_service_that_runs_here_is_healthy(address: str, serve: Serve) -> None:
    async with serve() as service:
        code, line = await ask()

    assert (code, line) == (0, f"healthy: {service.worker} alive")


async def test_a_service_that_has_stopped_is_unhealthy(address: str, serve: Serve) -> None:
    async with serve():
        pass

    code, line = await ask()

    assert code == 1
    assert line == f"unhealthy: no worker on {HOST} has a live heartbeat; 0 alive elsewhere"


async def test_a_heartbeat_that_has_expired_does_not_count(address: str, redis: Redis) -> None:
    await redis.zadd(keys.workers(), {f"{HOST}-1-abcd": 1})

    code, _ = await ask()

    assert code == 1


async def test_workers_of_other_hosts_do_not_count(address: str, store: Store) -> None:
    for worker in ("elsewhere-1-abcd", f"{HOST}-b-1-abcd", f"{HOST}2-1-abcd"):
        await store.workers.heartbeat(worker, 60, listening=False)

    code, line = await ask()

    assert code == 1
    assert line.endswith("3 alive elsewhere")


async def test_a_server_that_is_down_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # not listening, so nobody answers and nobody else takes the port
        bound.bind(("127.0.0.1", 0))
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{bound.getsockname()[1]}/0")

        code, line = await ask()

    assert code == 1
    assert "Redis can't be reached" in line


async def test_a_server_that_never_answers_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("REDIS_URL", f"redis://127.0.0.1:{mute.getsockname()[1]}/0")

        code = await asyncio.to_thread(healthcheck.main, 0.2)

    assert code == 1
    assert capsys.readouterr().out.startswith("unhealthy:")


async def test_wrong_settings_are_reported_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "somewhere")
    monkeypatch.setenv("CONCURRENCY", "none")

    code, line = await ask()

    assert code == 1
    assert "REDIS_URL" in line
    assert "CONCURRENCY" in line
