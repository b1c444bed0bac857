"""`fullsend publish` and `fullsend trigger`."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.executor.store import Store
from services.operations.schedule_rows import NO_CRON
from shared import keys
from tests.acceptance.commands import Shell
from tests.acceptance.tool_texts import GREET, STUMBLE, WAIT
from tests.conftest import Neighbour, Serve, Tools, eventually

ExperimentFile = Callable[..., Path]


@pytest.fixture
def experiment_file(tmp_path: Path) -> ExperimentFile:
    """Writes an experiment file and returns its path."""

    def write(experiment_id: str, tool: str = "greet", extra: str = "", **execution: Any) -> Path:
        path = tmp_path / f"{experiment_id}.yaml"
        path.write_text(
            f"experiment:\n  id: {experiment_id}\n{extra}"
            f"  execution: {json.dumps({'tool': tool, **execution})}\n"
        )
        return path

    return write


# -- publish --------------------------------------------------------------------------


async def test_publish_stores_the_file_and_its_schedule_and_announces_it(
    shell: Shell, experiment_file: ExperimentFile, redis: Any, store: Store
) -> None:
    path = experiment_file("exp_1", schedule="0 9 * * MON", timezone="Europe/Berlin")

    async with store.subscriptions.to(("fullsend:schedules",)) as messages:
        done = await shell.fullsend("publish", path.name)
        announced = await anext(messages)

    assert done.code == 0
    line, unregistered = done.lines
    assert line.startswith(
        "published exp_1: ready, tool greet, schedule 0 9 * * MON: "
        "At 09:00 AM, only on Monday (Europe/Berlin), next Mon "
    )
    assert line.endswith(f"; warning: {NO_CRON}")
    assert unregistered.startswith("  warning: exp_1: tool 'greet' is not registered")
    stored = await redis.hgetall("experiments:exp_1")
    assert stored["spec"] == path.read_text()
    assert stored["state"] == "ready"
    assert stored["created_at"] == stored["updated_at"]
    schedule = {"experiment_id": "exp_1", "cron": "0 9 * * MON", "timezone": "Europe/Berlin", "enabled": True}
    assert json.loads(await redis.get("schedules:exp_1")) == schedule
    assert json.loads(announced.data) == schedule


async def test_publish_warns_of_a_schedule_that_is_probably_a_mistake(
    shell: Shell, experiment_file: ExperimentFile
) -> None:
    seconds = experiment_file("exp_1", schedule="H 0 9 * * *")
    never = experiment_file("exp_2", schedule="0 0 30 2 *")

    done = await shell.fullsend("publish", seconds.name, never.name)

    assert done.code == 0
    assert "schedule H 0 9 * * *: " in done.lines[0]
    assert "; warning: it fires every second of some minutes" in done.lines[0]
    assert done.lines[2].endswith("; warning: it is never due")


async def test_publish_compares_an_experiment_with_its_tool_and_says_nothing_where_all_is_well(
    shell: Shell, experiment_file: ExperimentFile, serve: Serve, tools: Tools, redis: Any
) -> None:
    tools("greet", GREET)
    good = experiment_file("exp_good", params={"name": "Ada", "times": 2}, schedule="0 9 * * *")
    odd = experiment_file("exp_odd", params={"nam": "Ada", "times": "2"}, secondary_tool="x")

    async with serve(schedule_mode="cron"):
        await eventually(lambda: redis.hget("tools:greet", "status"), "the registration")
        await eventually(lambda: redis.keys(keys.cron_of("*")), "a worker that runs cron")
        done = await shell.fullsend("publish", good.name, odd.name)

    first, second, *doubts = done.lines
    assert "warning" not in first
    assert second == "published exp_odd: ready, tool greet"
    assert doubts == [
        "  warning: exp_odd: no executor reads 'secondary_tool' in 'execution'",
        "  warning: exp_odd: tool 'greet' takes no parameter 'nam'; it takes: name, times",
        "  warning: exp_odd: tool 'greet' takes parameter 'times' as integer; it is a text",
        "  warning: exp_odd: tool 'greet' needs the parameter 'name'; each trigger has to give it",
    ]


async def test_publishing_again_keeps_what_is_set_aside_and_removes_a_schedule_that_is_gone(
    shell: Shell, experiment_file: ExperimentFile, redis: Any
) -> None:
    scheduled = experiment_file("exp_1", schedule="0 9 * * *")
    await shell.fullsend("publish", scheduled.name)
    await redis.hset("experiments:exp_1", "state", "paused")
    again = await shell.fullsend("publish", scheduled.name)
    path = experiment_file("exp_1")

    kept = await shell.fullsend("publish", path.name)
    told = await shell.fullsend("publish", path.name, "--state", "ready")

    assert "; warning: the experiment is paused, so cron does not run it" in again.lines[0]
    assert "published exp_1: paused" in kept.lines[0]
    assert "; schedules:exp_1 was removed, as the file has no schedule any more" in kept.lines[0]
    assert kept.lines[0].endswith("; it stays paused, which `--state ready` changes")
    assert told.lines[0] == "published exp_1: ready, tool greet"
    assert await redis.keys("schedules:*") == []


async def test_publish_refuses_what_executors_would_not_read(
    shell: Shell, experiment_file: ExperimentFile, redis: Any
) -> None:
    small, large = experiment_file("exp_1"), experiment_file("exp_2", extra=f"  note: {'x' * 2000}\n")

    strict = shell.with_variables(EXPERIMENT_MAX_BYTES="2000")
    done = await strict.fullsend("publish", small.name, large.name)

    assert done.code == 1
    assert "executors read at most 2,000 (EXPERIMENT_MAX_BYTES)" in done.err
    assert await redis.keys("*") == []


async def test_publish_stores_the_state_of_the_file_unless_another_is_given(
    shell: Shell, experiment_file: ExperimentFile, redis: Any
) -> None:
    path = experiment_file("exp_1", extra="  state: draft\n")

    await shell.fullsend("publish", path.name)
    from_file = await redis.hget("experiments:exp_1", "state")
    await shell.fullsend("publish", path.name, "--state", "paused")

    assert from_file == "draft"
    assert await redis.hget("experiments:exp_1", "state") == "paused"


async def test_publishing_again_replaces_every_shape_and_keeps_the_creation_date(
    shell: Shell, experiment_file: ExperimentFile, redis: Any
) -> None:
    flat = {"tool": "old", "params": "{}", "created_at": "2024-01-01", "note": "of a neighbour"}
    await redis.hset("experiments:exp_1", mapping=flat)
    await redis.set("experiments:exp_2", '{"id": "exp_2", "execution": {"tool": "old"}}')

    done = await shell.fullsend("publish", *(experiment_file(name).name for name in ("exp_1", "exp_2")))

    assert done.code == 0, done
    first, second = await redis.hgetall("experiments:exp_1"), await redis.hgetall("experiments:exp_2")
    assert set(first) == {"spec", "state", "created_at", "updated_at", "note"}
    assert first["created_at"] == "2024-01-01"
    assert set(second) == {"spec", "state", "created_at", "updated_at"}


async def test_publish_keeps_an_old_schedule_and_reports_it(
    shell: Shell, experiment_file: ExperimentFile, redis: Any
) -> None:
    await redis.set("schedules:exp_1", "0 9 * * *")

    done = await shell.fullsend("publish", experiment_file("exp_1").name)

    assert "the file has no schedule, but schedules:exp_1 still applies" in done.out
    assert await redis.get("schedules:exp_1") == "0 9 * * *"


async def test_publish_reports_every_bad_file_and_stores_nothing(
    shell: Shell, experiment_file: ExperimentFile, redis: Any
) -> None:
    good = experiment_file("exp_good")
    bad_cron = experiment_file("exp_cron", schedule="0 25 * * *")
    bad_zone = experiment_file("exp_zone", schedule="0 9 * * *", timezone="Mars/Olympus")
    (shell.directory / "broken.yaml").write_text("experiment: [")
    (shell.directory / "no_tool.yaml").write_text("experiment: {id: exp_2}")

    done = await shell.fullsend(
        "publish", good.name, bad_cron.name, bad_zone.name, "broken.yaml", "no_tool.yaml", "missing.yaml", "."
    )

    assert done.code == 1
    for complaint in (
        "exp_cron.yaml line 3: Cron expression '0 25 * * *': the hour is '25'",
        "exp_zone.yaml line 3: Time zone 'Mars/Olympus'",
        "broken.yaml is not a YAML document",
        "no_tool.yaml line 1: has no 'tool'",
        "missing.yaml can't be read: No such file or directory",
        ". can't be read: Is a directory",
        "nothing was published",
    ):
        assert f"error: {complaint}" in done.err
    assert await redis.keys("experiments:*") == []


# -- trigger --------------------------------------------------------------------------


async def test_trigger_fails_without_a_worker(shell: Shell, neighbour: Neighbour, store: Store) -> None:
    await neighbour.publish("exp_1", "greet")

    done = await shell.fullsend("trigger", "exp_1")

    assert done.code == 1
    assert "no worker is running, so nothing was sent" in done.error


async def test_trigger_waits_for_the_result_and_prints_it(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("greet", GREET)
    await neighbour.publish("exp_1", "greet", params={"name": "nobody", "times": 1})

    async with serve():
        done = await shell.fullsend(
            "trigger", "exp_1", "--params", '{"name": "Ada"}', "--param", "times=3", "--wait"
        )

    assert done.code == 0, done
    assert json.loads(done.lines[-1]) == {"greeting": "hello Ada", "times": 3}
    run_id = done.lines[0].removeprefix("queued ")
    record = await neighbour.record(run_id)
    assert record["status"] == "completed"
    assert record["triggered_by"] == "cli"


async def test_trigger_with_wait_fails_when_the_run_fails(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("stumble", STUMBLE)
    await neighbour.publish("exp_1", "stumble")

    async with serve():
        done = await shell.fullsend("trigger", "exp_1", "--wait")

    assert done.code == 1
    assert done.error.endswith("ended as failed: ValueError: it slipped")


async def test_trigger_with_wait_stops_waiting_in_time_and_the_run_continues(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("wait", WAIT)
    door = shell.directory / "door"
    await neighbour.publish("exp_1", "wait", params={"door": str(door)})

    async with serve():
        done = await shell.fullsend("trigger", "exp_1", "--wait", "--timeout", "0.2")
        door.touch()
        result = await neighbour.result("exp_1")

    assert "did not end within 0.2 s and continues" in done.error
    assert result["status"] == "success"


async def test_trigger_refuses_impossible_runs(shell: Shell, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_old", "greet", state="archived")
    await neighbour.redis.hset("experiments:exp_odd", "execution", "[]")

    unknown, archived, unreadable, bad_pair, bad_json = await asyncio.gather(
        shell.fullsend("trigger", "exp_none"),
        shell.fullsend("trigger", "exp_old"),
        shell.fullsend("trigger", "exp_odd"),
        shell.fullsend("trigger", "exp_old", "--param", "name"),
        shell.fullsend("trigger", "exp_old", "--params", "[1]"),
    )

    assert "experiments:exp_none does not exist; publish the experiment first" in unknown.error
    assert "experiments:exp_old is archived" in archived.error
    assert "experiments:exp_odd field 'execution' is a list; expected a JSON object" in unreadable.error
    assert "--param 'name' is not NAME=VALUE" in bad_pair.error
    assert "--params is a list; expected a JSON object" in bad_json.error
