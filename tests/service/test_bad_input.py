"""What neighbours get wrong is answered in words, and the service goes on."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared import keys
from tests.conftest import Neighbour, Serve, Tools
from tests.service.conftest import assert_works
from tests.service.worker import worker

pytestmark = pytest.mark.usefixtures("echo")

PATIENT = """
    import time
    from pathlib import Path
    from shared import toolkit

    def patient(until: str):
        toolkit.progress(0)
        while not Path(until).exists():
            time.sleep(0.01)
"""

BAD_TRIGGERS = {
    "not JSON": ("exp_1", "trigger is not JSON"),
    "empty": ("", "trigger is not JSON"),
    "not an object": ('["exp_1"]', "trigger is a list; expected a JSON object"),
    "without an id": ('{"experiment": "exp_1"}', "trigger has no 'experiment_id'"),
    "an id of null": ('{"experiment_id": null}', "trigger has no 'experiment_id'"),
    "an id that is a number": ('{"experiment_id": 5}', "'experiment_id' is '5': expected a text"),
    "an id with a line break": ('{"experiment_id": "a\\nb"}', "must not contain control characters"),
    "params that are a list": ('{"experiment_id": "exp_1", "params": [1]}', "'params' is '[1]'"),
    "NaN": ('{"experiment_id": "exp_1", "params": {"x": NaN}}', "NaN is not a JSON number"),
    "nested too deeply": ("[" * 200_000, "trigger is not JSON"),
    "5 MB long": (json.dumps({"experiment_id": "exp_1", "x": "y" * 5_000_000}), "bytes long; at most"),
}

BAD_EXPERIMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "without a tool": ({"state": "ready"}, "has none of the fields 'tool', 'execution', 'spec'"),
    "an empty tool": ({"tool": ""}, "has no 'tool'"),
    "params that are a list": (
        {"tool": "echo", "params": "[1]"},
        "'params' is a list; expected a JSON object",
    ),
    "params that are not JSON": ({"tool": "echo", "params": "{x: 1}"}, "member 'params' is not JSON"),
    "execution that is not JSON": ({"execution": "tool: echo"}, "field 'execution' is not JSON"),
    "execution without a tool": (
        {"execution": '{"params": {}}'},
        "has no 'tool', which names what is run; 'execution' holds 'params'",
    ),
    "a spec that is not YAML": ({"spec": "a: [1"}, "field 'spec' is not a YAML document"),
    "a spec that is a text": ({"spec": "echo"}, "field 'spec' is a text; expected a YAML mapping"),
    "a state nobody knows": ({"tool": "echo", "state": "asleep"}, "member 'state' is 'asleep'"),
    "a time-out of zero": ({"tool": "echo", "timeout_seconds": "0"}, "member 'timeout_seconds' is '0'"),
    "no attempts": ({"tool": "echo", "max_attempts": "none"}, "member 'max_attempts' is 'none'"),
}

BAD_SCHEDULES = {
    "nonsense": ("every monday", "every monday"),
    "a minute too many": ("61 9 * * *", "minute is '61'"),
    "JSON without cron": ('{"timezone": "UTC"}', "has no 'cron'"),
    "broken JSON": ('{"cron": ', "is not JSON"),
    "an unknown zone": ('{"cron": "0 9 * * *", "timezone": "Europe/Berlinn"}', "did you mean Europe/Berlin"),
}


@pytest.mark.parametrize("kind", BAD_TRIGGERS)
async def test_a_bad_trigger_is_answered(serve: Serve, neighbour: Neighbour, kind: str) -> None:
    message, complaint = BAD_TRIGGERS[kind]
    async with serve():
        await neighbour.trigger(message)
        answer = await neighbour.result(None)
        await assert_works(neighbour)

    assert (answer["type"], answer["error_type"]) == ("experiment_failed", "ContractError")
    assert complaint in answer["error"]


async def test_bytes_that_are_no_text_are_answered(serve: Serve, neighbour: Neighbour) -> None:
    async with serve():
        await neighbour.redis.publish("fullsend:execute_now", b'{"experiment_id": "\xff\xfe')
        answer = await neighbour.result(None)
        await assert_works(neighbour)

    assert answer["error_type"] == "ContractError"


async def test_an_unknown_experiment_is_named(serve: Serve, neighbour: Neighbour) -> None:
    async with serve():
        answer = await neighbour.run("exp_unknown")
        await assert_works(neighbour)

    assert answer["error_type"] == "ExperimentNotFoundError"
    assert "experiments:exp_unknown does not exist" in answer["error"]
    assert not await neighbour.redis.exists("experiments:exp_unknown")


@pytest.mark.parametrize("kind", BAD_EXPERIMENTS)
async def test_a_bad_experiment_is_answered(serve: Serve, neighbour: Neighbour, kind: str) -> None:
    fields, complaint = BAD_EXPERIMENTS[kind]
    await neighbour.redis.hset("experiments:exp_bad", mapping=fields)

    async with serve():
        answer = await neighbour.run("exp_bad")
        await assert_works(neighbour)

    assert (answer["type"], answer["error_type"]) == ("experiment_failed", "ContractError")
    assert "experiments:exp_bad" in answer["error"]
    assert complaint in answer["error"]
    state = await neighbour.redis.hget("experiments:exp_bad", "state")
    assert state == (fields["state"] if fields.get("state") == "asleep" else "failed")


async def test_an_experiment_of_broken_json_is_answered(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.redis.set("experiments:exp_bad", '{"execution": {"tool": "echo"}')

    async with serve():
        answer = await neighbour.run("exp_bad")
        await assert_works(neighbour)

    assert "experiments:exp_bad is not JSON" in answer["error"]
    assert await neighbour.redis.get("experiments:exp_bad") == '{"execution": {"tool": "echo"}'


async def test_a_wrong_type_at_an_experiments_key_is_named(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.redis.rpush("experiments:exp_bad", "echo")

    async with serve():
        answer = await neighbour.run("exp_bad")
        await assert_works(neighbour)

    assert answer["error"] == ("experiments:exp_bad is a Redis list; expected a hash or a string with JSON")


async def test_a_wrong_type_at_a_metrics_key_costs_the_list_and_not_the_run(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")
    await neighbour.redis.set("metrics:exp_1", "somebody else's")

    async with serve():
        result = await neighbour.run("exp_1")
        await neighbour.events("exp_1", "run_completed")

    assert result["status"] == "success"
    assert await neighbour.redis.get("metrics:exp_1") == "somebody else's"


async def test_a_wrong_type_at_the_journal_costs_the_journal_and_not_the_run(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")
    await neighbour.redis.set(keys.journal(), "somebody else's")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["status"] == "success"
    assert await neighbour.redis.get(keys.journal()) == "somebody else's"


@pytest.mark.parametrize("mode", ["trigger", "trigger,cron", "trigger,speedrun"])
async def test_a_wrong_type_at_the_open_runs_of_an_experiment_is_answered_for_each_run(
    serve: Serve, neighbour: Neighbour, mode: str
) -> None:
    await neighbour.publish("exp_bad", "echo", state="ready" if "speedrun" in mode else "run")
    await neighbour.redis.set(keys.open_runs("exp_bad"), "somebody else's")
    if "cron" in mode:
        await neighbour.redis.set("schedules:exp_bad", "* * * * * *")

    async with serve(schedule_mode=mode, speedrun_interval=0.1):
        if mode == "trigger":
            await neighbour.trigger({"experiment_id": "exp_bad"})
            await neighbour.trigger({"experiment_id": "exp_bad"})
        answers = await neighbour.results("exp_bad", 2)
        await assert_works(neighbour)

    for answer in answers:
        assert (answer["status"], answer["error_type"]) == ("failed", "StoreError")
        assert f"{keys.open_runs('exp_bad')} is a Redis string; expected a zset" in answer["error"]
    assert (await neighbour.record(answers[0]["run_id"]))["status"] == "failed"
    assert await neighbour.redis.get(keys.open_runs("exp_bad")) == "somebody else's"


async def test_a_record_that_somebody_made_something_else_of_under_way_is_answered(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.intake.LOOK_SECONDS", 0.2)
    tools("patient", PATIENT)
    await neighbour.publish("exp_1", "patient", params={"until": str(tmp_path / "go")})

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        [event] = await neighbour.events("exp_1", "progress")
        await neighbour.redis.delete(keys.run(event["run_id"]))
        await neighbour.redis.set(keys.run(event["run_id"]), "somebody else's")
        (tmp_path / "go").touch()
        answer = await neighbour.result("exp_1")
        await assert_works(neighbour)

    assert (answer["run_id"], answer["error_type"]) == (event["run_id"], "StoreError")
    assert f"{keys.run(event['run_id'])} is a Redis string; expected a hash" in answer["error"]
    assert len(neighbour.heard_of("exp_1", keys.RESULTS)) == 1


async def test_nonsense_in_the_queue_is_answered(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(), serve():
        entry = await neighbour.redis.xadd(keys.queue("normal"), {"order": "nonsense"})
        answer = await neighbour.result(None)
        await assert_works(neighbour)

    assert (answer["type"], answer["run_id"]) == ("experiment_failed", None)
    assert f"queue entry {entry}" in answer["error"]
    assert len(neighbour.heard_of(None, keys.RESULTS)) == 1


async def test_a_wrong_type_at_a_tools_key_does_not_stop_the_service(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.set("tools:echo", "somebody else's")

    async with serve():
        await assert_works(neighbour)
        await neighbour.run("exp_good")

    assert await neighbour.redis.get("tools:echo") == "somebody else's"


@pytest.mark.parametrize("kind", BAD_SCHEDULES)
async def test_a_bad_schedule_is_answered(serve: Serve, neighbour: Neighbour, kind: str) -> None:
    text, complaint = BAD_SCHEDULES[kind]
    await neighbour.redis.set("schedules:exp_bad", text)

    async with serve(schedule_mode="trigger,cron"):
        answer = await neighbour.result("exp_bad")
        await assert_works(neighbour)

    assert (answer["type"], answer["error_type"]) == ("experiment_failed", "ScheduleError")
    assert complaint in answer["error"]
    assert "schedules:exp_bad" in answer["error"]


async def test_a_wrong_type_at_a_schedules_key_is_named(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.redis.rpush("schedules:exp_bad", "0 9 * * *")

    async with serve(schedule_mode="trigger,cron"):
        answer = await neighbour.result("exp_bad")
        await assert_works(neighbour)

    assert "schedules:exp_bad is a Redis list; expected a string or a hash" in answer["error"]


async def test_a_bad_schedule_is_answered_once_by_two_services(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.redis.set("schedules:exp_bad", "every monday")

    async with serve(schedule_mode="trigger,cron"), serve(schedule_mode="trigger,cron"):
        await neighbour.result("exp_bad")
        await assert_works(neighbour)

    assert len(neighbour.heard_of("exp_bad", "fullsend:experiment_results")) == 1


async def test_a_schedule_without_an_experiment_is_answered_when_it_is_due(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.set("schedules:exp_gone", "* * * * * *")

    async with serve(schedule_mode="trigger,cron"):
        answer = await neighbour.result("exp_gone")
        await assert_works(neighbour)

    assert answer["error_type"] == "ExperimentNotFoundError"


@pytest.mark.parametrize("message", ["no JSON", "[]", '{"cron": "0 9 * * *"}', '{"experiment_id": "exp_1"}'])
async def test_a_bad_message_about_a_schedule_is_answered(
    serve: Serve, neighbour: Neighbour, message: str
) -> None:
    async with serve(schedule_mode="trigger,cron"):
        await neighbour.redis.publish("fullsend:schedules", message)
        answer = await neighbour.result(None)
        await assert_works(neighbour)

    assert "schedule message" in answer["error"]


async def test_bad_keys_do_not_stop_speedrun(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.redis.rpush("experiments:a:results", "1")
    await neighbour.redis.set("experiments:b:results", "no experiment")
    await neighbour.redis.hset("experiments:c", "name", "no experiment either")
    await neighbour.publish("exp_good", "echo")

    async with serve(schedule_mode="speedrun", speedrun_interval=0.1):
        result = await neighbour.result("exp_good")

    assert result["status"] == "success"


async def test_all_keys_may_vanish_under_a_running_service(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(heartbeat_ttl=0.5):
        await assert_works(neighbour)
        await neighbour.redis.flushall()
        await neighbour.publish("exp_1", "echo")
        result = await neighbour.run("exp_1")

    assert result["status"] == "success"


async def test_a_worker_whose_database_the_server_does_not_have_ends_with_one_line(
    redis_url: str, tmp_path: Path
) -> None:
    async with worker(redis_url.rpartition("/")[0] + "/9999", tmp_path, {}) as one:
        code = await one.ended()

    assert code == 1
    [line] = one.noise
    assert line.startswith("error: REDIS_URL names database 9999, which the server doesn't have")
