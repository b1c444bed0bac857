"""The death of a worker, and what only looks like it."""

import json
import signal
from pathlib import Path

import pytest

from services.executor.store import Order, Store
from tests.conftest import Neighbour, Serve, Tools
from tests.service.conftest import Work
from tests.service.worker import Worker, nobody_is_left

ONCE = """
    import time
    from shared import toolkit

    def once(until: str):
        toolkit.progress(toolkit.run.attempt)
        while True:
            try:
                open(until).close()
                return {"attempt": toolkit.run.attempt}
            except FileNotFoundError:
                time.sleep(0.01)
"""


@pytest.fixture
async def go(neighbour: Neighbour, tools: Tools, tmp_path: Path) -> Path:
    """Runs of `exp_1` last until this file exists."""
    tools("once", ONCE)
    await neighbour.publish("exp_1", "once", params={"until": str(tmp_path / "go")})
    return tmp_path / "go"


async def begun(neighbour: Neighbour, one: Worker) -> None:
    """A run of `exp_1` is under way in that service."""
    await one.said("triggers.listening")
    await neighbour.trigger({"experiment_id": "exp_1"})
    await neighbour.events("exp_1", "progress")


async def test_the_run_of_a_killed_worker_is_taken_over(
    work: Work, serve: Serve, neighbour: Neighbour, go: Path
) -> None:
    async with work() as one:
        await begun(neighbour, one)
        one.signal(signal.SIGKILL)
        await one.ended()

    async with serve():
        await neighbour.events("exp_1", "progress", 2)
        go.touch()
        result = await neighbour.result("exp_1")

    assert result["result_summary"] == {"attempt": 1}
    record = await neighbour.record(result["run_id"])
    assert [one["error_type"] for one in json.loads(record["attempts"])] == ["WorkerDiedError"]


async def test_an_experiment_whose_worker_died_runs_again(
    work: Work, serve: Serve, neighbour: Neighbour, go: Path
) -> None:
    async with work() as one:
        await begun(neighbour, one)
        one.signal(signal.SIGKILL)
        await one.ended()
    go.touch()

    async with serve():
        first = await neighbour.result("exp_1")
        second = await neighbour.run("exp_1")

    assert (first["status"], second["status"]) == ("success", "success")
    assert first["run_id"] != second["run_id"]


async def test_a_run_that_must_not_be_repeated_is_lost_with_its_worker(
    work: Work, serve: Serve, neighbour: Neighbour, go: Path
) -> None:
    await neighbour.redis.hset("experiments:exp_1", "on_worker_death", "fail")
    async with work() as one:
        await begun(neighbour, one)
        one.signal(signal.SIGKILL)
        await one.ended()

    async with serve():
        result = await neighbour.result("exp_1")

    assert (result["status"], result["error_type"]) == ("lost", "WorkerDiedError")
    assert "on_worker_death" in result["error"]
    record = await neighbour.record(result["run_id"])
    assert record["status"] == "lost"
    assert [one["error_type"] for one in json.loads(record["attempts"])] == ["WorkerDiedError"]
    assert await neighbour.redis.hget("experiments:exp_1", "state") == "failed"


async def test_a_worker_that_was_only_frozen_drops_the_run_that_was_taken_over(
    work: Work, serve: Serve, neighbour: Neighbour, go: Path
) -> None:
    async with work() as frozen:
        await begun(neighbour, frozen)
        below = frozen.below()
        frozen.signal(signal.SIGSTOP)
        async with serve():
            await neighbour.events("exp_1", "progress", 2)
            frozen.signal(signal.SIGCONT)
            await frozen.said("claim.lost")
            go.touch()
            result = await neighbour.result("exp_1")
        frozen.signal(signal.SIGTERM)
        code = await frozen.ended()
        await nobody_is_left(below)

    assert (result["status"], code) == ("success", 0)
    assert len(neighbour.heard_of("exp_1", "fullsend:experiment_results")) == 1


async def test_claims_of_a_worker_that_nobody_knows_are_taken_over(
    serve: Serve, neighbour: Neighbour, go: Path, store: Store
) -> None:
    """It was frozen, counted as dead and forgotten, came back, claimed, and was killed before it said so."""
    go.touch()
    await store.queue.create_group()
    await store.queue.enqueue(Order("exp_1", "trigger"))
    tool = (await store.experiments.read("exp_1")).readable().tool
    await store.workers.tell_tools("ghost", {tool: ""}, 60)
    [claim] = (await store.queue.claim("ghost", 1)).claims

    async with serve():
        result = await neighbour.result("exp_1")

    assert result["run_id"] == claim.order.run_id
    assert result["status"] == "success"
    record = await neighbour.record(result["run_id"])
    told = [one["error"] for one in json.loads(record.get("attempts", "[]"))]
    assert told == ["worker ghost died"]
