"""A PUBLISH becomes one run, whatever shape its experiment has."""

import json
from typing import Any

import pytest

from tests.conftest import Neighbour, Serve, eventually
from tests.service.conftest import assert_works, client_ids

EXECUTION = {"tool": "echo", "params": {"city": "Lisbon", "count": 2}}
SPEC = """
experiment:
  id: exp_1
  hypothesis: People answer
  state: ready
  execution:
    tool: echo
    params:
      city: Lisbon
      count: 2
"""
HASHES: dict[str, dict[str, str]] = {
    "flat": {"tool": "echo", "params": json.dumps(EXECUTION["params"]), "state": "ready"},
    "nested": {"execution": json.dumps(EXECUTION), "state": "ready"},
    "spec": {"spec": SPEC, "state": "ready", "created_at": "2026-02-01T09:00:00Z"},
}
STRINGS: dict[str, dict[str, Any]] = {
    "plain": {"id": "exp_1", "hypothesis": "People answer", "execution": EXECUTION, "metrics": []},
    "with a state": {"id": "exp_1", "state": "ready", "execution": EXECUTION},
    "wrapped": {"experiment": {"id": "exp_1", "execution": EXECUTION}},
}

LARGE_ONES = 24

pytestmark = pytest.mark.usefixtures("echo")


@pytest.mark.parametrize("shape", HASHES)
async def test_an_experiment_in_a_hash_runs(serve: Serve, neighbour: Neighbour, shape: str) -> None:
    await neighbour.redis.hset("experiments:exp_1", mapping=HASHES[shape])

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["result_summary"] == {"city": "Lisbon", "count": 2}


@pytest.mark.parametrize("shape", STRINGS)
async def test_an_experiment_in_a_string_runs(serve: Serve, neighbour: Neighbour, shape: str) -> None:
    await neighbour.redis.set("experiments:exp_1", json.dumps(STRINGS[shape]))

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["result_summary"] == {"city": "Lisbon", "count": 2}


async def test_an_experiment_without_params_runs(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.redis.hset("experiments:exp_1", "tool", "echo")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["result_summary"] == {}


async def test_an_id_may_hold_colons_spaces_and_any_script(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp:1:été [a]*", "echo")

    async with serve():
        result = await neighbour.run("exp:1:été [a]*")

    assert result["run_id"].startswith("exp:1:été [a]*:")
    assert (await neighbour.record(result["run_id"]))["status"] == "completed"


async def test_the_triggers_params_are_merged_over_the_experiments(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo", params={"city": "Lisbon", "count": 2})

    async with serve():
        result = await neighbour.run("exp_1", params={"count": 5, "fast": True})

    assert result["result_summary"] == {"city": "Lisbon", "count": 5, "fast": True}


async def test_unknown_members_of_a_trigger_are_ignored(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve():
        result = await neighbour.run("exp_1", timestamp=1.5, priority={"of": "somebody else"})

    assert result["status"] == "success"


async def test_a_trigger_runs_an_experiment_in_any_state_but_archived(
    serve: Serve, neighbour: Neighbour
) -> None:
    states = ["draft", "ready", "running", "run", "completed", "failed", "paused"]
    for state in states:
        await neighbour.publish(f"exp_{state}", "echo", state=state)

    async with serve():
        results = {state: await neighbour.run(f"exp_{state}") for state in states}

    assert {state: one.get("status") for state, one in results.items()} == dict.fromkeys(states, "success")


async def test_an_archived_experiment_is_refused_by_name(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo", state="archived")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["error_type"] == "ExperimentArchivedError"
    assert await neighbour.redis.hget("experiments:exp_1", "state") == "archived"


async def test_a_request_id_is_one_run(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve():
        first = await neighbour.run("exp_1", request_id="r-1")
        await neighbour.trigger({"experiment_id": "exp_1", "request_id": "r-1"})
        last = await neighbour.run("exp_1", request_id="r-2")

    assert [one["run_id"] for one in neighbour.heard_of("exp_1", "fullsend:experiment_results")] == [
        first["run_id"],
        last["run_id"],
    ]


async def test_the_result_of_a_request_carries_its_id(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve():
        result = await neighbour.run("exp_1", request_id="r-1")

    assert result["request_id"] == "r-1"


async def test_equal_messages_in_quick_succession_are_runs_of_their_own(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve():
        pipe = neighbour.redis.pipeline(transaction=False)
        for _ in range(10):
            pipe.publish("fullsend:execute_now", '{"experiment_id": "exp_1"}')
        await pipe.execute()
        results = await neighbour.results("exp_1", 10)
        await assert_works(neighbour)

    assert len({one["run_id"] for one in results}) == 10
    assert len(neighbour.heard_of("exp_1", "fullsend:experiment_results")) == 10


async def test_a_burst_of_large_messages_is_heard(serve: Serve, neighbour: Neighbour) -> None:
    """Redis breaks off a listener that leaves too much unread."""
    await neighbour.publish("exp_1", "echo")
    message = {"experiment_id": "exp_1", "params": {"text": "x" * 900_000}}

    async with serve():
        async with neighbour.redis.pipeline(transaction=False) as pipe:
            for number in range(LARGE_ONES):
                pipe.publish("fullsend:execute_now", json.dumps({**message, "request_id": f"r{number}"}))
            await pipe.execute()
        results = await neighbour.results("exp_1", LARGE_ONES)

    assert {one["request_id"] for one in results} == {f"r{number}" for number in range(LARGE_ONES)}


async def test_another_channel_can_be_listened_to(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve(trigger_channels=("fullsend:execute_now", "lab:go")):
        await neighbour.redis.publish("lab:go", '{"experiment_id": "exp_1"}')
        result = await neighbour.result("exp_1")

    assert result["status"] == "success"


async def test_an_idle_service_still_hears_a_trigger(serve: Serve, neighbour: Neighbour) -> None:
    # redis-py's default socket time-out of 5 s would have ended an idle subscription by now:
    # here alone, nothing but time passing can show that it doesn't.
    async with serve():
        before = await client_ids(neighbour.redis, "pubsub")
        await _seconds_pass(neighbour, 5.5)
        after = await client_ids(neighbour.redis, "pubsub")
        await assert_works(neighbour)

    assert after == before


@pytest.mark.parametrize("kind", ["pubsub", "normal"])
async def test_a_service_whose_connections_are_killed_works_on(
    serve: Serve, neighbour: Neighbour, kind: str
) -> None:
    ours = await client_ids(neighbour.redis, kind)
    async with serve():
        theirs = await client_ids(neighbour.redis, kind) - ours
        for one in theirs:
            await neighbour.redis.client_kill_filter(_id=one)
        await eventually(lambda: _is_listened_to(neighbour), "the new subscription")
        await assert_works(neighbour)

    assert theirs


async def _is_listened_to(neighbour: Neighbour) -> bool:
    [(_, count)] = await neighbour.redis.pubsub_numsub("fullsend:execute_now")
    return bool(count)


async def _seconds_pass(neighbour: Neighbour, seconds: float) -> None:
    """Wait by the server's clock, without a word to the service."""
    await neighbour.redis.blpop("nobody:pushes:here", timeout=seconds)
