"""The service's log: JSON, `run_id` on every line of a run, no secret in any."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared import keys
from tests.conftest import Neighbour, Tools
from tests.service.conftest import Work
from tests.service.worker import Worker

SECRET = "hunter22-hunter22"
FAIL = """
    def fail(error: str):
        raise eval(error)
"""


@pytest.fixture
async def failing(neighbour: Neighbour, tools: Tools) -> str:
    """An experiment whose runs take one more attempt, and then fail."""
    tools("fail", FAIL)
    policy = {"max_attempts": 2, "backoff_min": 0, "backoff_max": 0}
    await neighbour.publish("exp_1", "fail", params={"error": "ConnectionError('reset')"}, **policy)
    return "exp_1"


async def stopped(one: Worker) -> None:
    """Let the service leave in good order."""
    one.signal(signal.SIGTERM)
    await one.ended()


async def test_every_line_is_json_with_an_event_a_level_and_a_time(
    work: Work, neighbour: Neighbour, failing: str
) -> None:
    async with work() as one:
        await one.said("triggers.listening")
        await neighbour.run(failing)
        await stopped(one)

    assert one.noise == []
    assert all({"event", "level", "timestamp"} <= set(line) for line in one.lines)


async def test_every_line_of_a_run_carries_its_id(work: Work, neighbour: Neighbour, failing: str) -> None:
    async with work() as one:
        await one.said("triggers.listening")
        result = await neighbour.run(failing)
        await stopped(one)

    lines = [line for line in one.lines if line["event"].startswith("run.")]
    assert [line["event"] for line in lines] == ["run.started", "run.retrying", "run.started", "run.failed"]
    assert {line["run_id"] for line in lines} == {result["run_id"]}


async def test_no_other_line_carries_the_id_of_a_run(work: Work, neighbour: Neighbour, failing: str) -> None:
    async with work() as one:
        await one.said("triggers.listening")
        await neighbour.run(failing)
        await neighbour.redis.hset("experiments:exp_1", "params", json.dumps({"error": "SystemExit()"}))
        await neighbour.run(failing)
        await stopped(one)

    others = [line for line in one.lines if not line["event"].startswith("run.")]
    assert [line for line in others if "run_id" in line] == []


TELL = """
    import os, time
    from shared import toolkit

    def tell(until: str):
        toolkit.progress(0)
        while not os.path.exists(until):
            time.sleep(0.01)
        print("found it")
"""


async def test_a_line_about_what_a_warm_tool_printed_carries_the_id_of_the_right_run(
    work: Work, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("tell", TELL)
    (tmp_path / "first").touch()
    await neighbour.publish("exp_1", "tell", params={"until": str(tmp_path / "first")})

    async with work(concurrency=1) as one:
        await one.said("triggers.listening")
        await neighbour.run("exp_1")
        await neighbour.trigger({"experiment_id": "exp_1", "params": {"until": str(tmp_path / "second")}})
        _, second = await neighbour.events("exp_1", "progress", 2)
        await neighbour.redis.set(keys.logs(second["run_id"]), "what it prints can't be kept here")
        (tmp_path / "second").touch()
        line = await one.said("events.dropped")
        await stopped(one)

    assert line["run_id"] == second["run_id"]


async def test_the_end_of_a_run_is_one_line_without_a_traceback(
    work: Work, neighbour: Neighbour, failing: str
) -> None:
    await neighbour.redis.hset("experiments:exp_1", "params", json.dumps({"error": "ValueError('oh')"}))

    async with work() as one:
        await one.said("triggers.listening")
        await neighbour.run(failing)
        await stopped(one)

    [line] = [line for line in one.lines if line["event"] in {"run.failed", "run.finished"}]
    assert (line["status"], line["error_type"], line["error"]) == ("failed", "ValueError", "oh")
    assert "exception" not in line


# -- secrets -----------------------------------------------------------------------------


@pytest.fixture
async def address(redis: Redis, redis_url: str) -> AsyncIterator[str]:
    """The server asks for a password; its address has it in it."""
    await redis.config_set("requirepass", SECRET)
    yield redis_url.replace("://", f"://:{SECRET}@")
    await redis.config_set("requirepass", "")


async def test_the_password_in_the_address_is_in_no_line(work: Work, address: str) -> None:
    async with work(redis_url=address) as one:
        started = await one.said("service.started")
        await one.said("triggers.listening")
        await stopped(one)

    assert "***@127.0.0.1" in started["redis"]
    assert SECRET not in str(one.lines) + str(one.noise)


async def test_a_wrong_password_is_said_without_saying_it(work: Work, address: str) -> None:
    async with work(redis_url=address.replace(SECRET, "wrong-" + SECRET)) as one:
        line = await one.said("redis.awaited", what_for="start")
        await stopped(one)

    assert "password" in line["error"]
    assert SECRET not in str(one.lines) + str(one.noise)


async def test_a_password_that_reaches_an_error_message_is_masked(
    work: Work, neighbour: Neighbour, failing: str, redis_url: str, address: str
) -> None:
    params = {"error": f"ValueError('could not reach {address}')"}
    await neighbour.redis.hset("experiments:exp_1", "params", json.dumps(params))

    async with work(redis_url=address) as one:
        await one.said("triggers.listening")
        await neighbour.run(failing)
        await stopped(one)

    [line] = [line for line in one.lines if line["event"] == "run.failed"]
    assert line["error"].startswith("could not reach redis://***@")
    assert SECRET not in str(one.lines)
