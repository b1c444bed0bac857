"""`fullsend schedules`, `tools` and `doctor`."""

import asyncio
import json

from tests.acceptance.commands import Shell, row_of
from tests.acceptance.tool_texts import GREET
from tests.conftest import Neighbour, Serve, Tools, eventually


async def test_schedules_says_when_each_runs_and_what_is_wrong(shell: Shell, neighbour: Neighbour) -> None:
    redis = neighbour.redis
    for name in ("exp_good", "exp_cron", "exp_paused"):
        await neighbour.publish(name, "greet")
    await redis.hset("experiments:exp_paused", "state", "paused")
    await redis.set("schedules:exp_good", '{"cron": "0 0 12 1 JAN ?", "timezone": "Asia/Tokyo"}')
    await redis.set("schedules:exp_cron", "every now and then")
    await redis.set("schedules:exp_none", "0 9 * * *")
    await redis.set("schedules:exp_paused", "0 9 * * *")
    await redis.rpush("schedules:exp_list", "0 9 * * *")

    done, as_json = await asyncio.gather(shell.fullsend("schedules"), shell.fullsend("schedules", "--json"))

    good = row_of(done, "exp_good")
    assert good[1] == "active"
    assert good[3].endswith("-01-01 12:00:00 JST")
    assert good[4].endswith("-01-01 03:00:00")
    assert "Asia/Tokyo" in good[5]
    assert row_of(done, "exp_cron")[1] == "invalid"
    assert row_of(done, "exp_none")[-1] == "there is no such experiment"
    assert row_of(done, "exp_paused")[-1] == "the experiment is paused, so cron passes it over"
    assert "expected a string or a hash" in row_of(done, "exp_list")[-1]
    by_id = {one["experiment_id"]: one for one in json.loads(as_json.out)}
    assert by_id["exp_good"]["timezone"] == "Asia/Tokyo"


async def test_tools_lists_what_workers_found_and_what_is_wrong_with_it(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("greet", GREET)
    tools("broken", "import no_such_module\n")
    async with serve():
        await eventually(lambda: neighbour.redis.hget("tools:greet", "status"), "the registration")
        await eventually(lambda: neighbour.redis.hget("tools:broken", "status"), "the registration")

        done = await shell.fullsend("tools")

    assert row_of(done, "greet") == ["greet", "active", "Say hello.", "name: string, times: integer = 1"]
    assert row_of(done, "broken")[1] == "invalid"
    assert "No module named 'no_such_module'" in done.out


async def test_doctor_finds_nothing_wrong_where_nothing_is(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools, redis_url: str
) -> None:
    tools("greet", GREET)
    await neighbour.publish("exp_1", "greet")
    (shell.directory / ".env").write_text("CONCURRENCY=3\n")

    async with serve():
        await eventually(lambda: neighbour.redis.hget("tools:greet", "status"), "the registration")
        done = await shell.fullsend("doctor")

    assert done.code == 0, done.out
    assert row_of(done, "REDIS_URL") == ["REDIS_URL", redis_url, "environment"]
    assert row_of(done, "CONCURRENCY") == ["CONCURRENCY", "3", ".env"]
    assert row_of(done, "ISOLATION") == ["ISOLATION", "warm", "default"]
    findings = [line for line in done.lines if line.startswith(("ok", "warning", "problem"))]
    assert {line.split()[0] for line in findings} == {"ok"}
    assert any("persistence: append-only file" in line for line in findings)
    assert any("workers  1 alive" in line for line in findings)


async def test_doctor_finds_what_is_wrong(shell: Shell, neighbour: Neighbour) -> None:
    redis = neighbour.redis
    await neighbour.publish("exp_1", "greet", schedule="0 9 * * *")
    await redis.hset("experiments:exp_odd", "hypothesis", "a hash without a tool")
    await redis.set("schedules:exp_none", "0 9 * * *")
    await redis.set("schedules:exp_1_", "nonsense")
    await redis.hset("tools:broken", mapping={"name": "broken", "status": "invalid", "error": "no function"})

    done, as_json = await asyncio.gather(shell.fullsend("doctor"), shell.fullsend("doctor", "--json"))

    assert done.code == as_json.code == 1
    for finding in (
        "problem  workers  none is alive, so nothing runs",
        "problem  experiments:exp_odd  can't be read: experiments:exp_odd has none of the fields",
        "warning  experiments:exp_1  says `schedule: 0 9 * * *`, but there is no schedules:exp_1",
        "problem  schedules:exp_none  there is no such experiment",
        "problem  schedules:exp_1_  Cron expression 'nonsense'",
        "problem  tools:broken  no function",
        f"warning  tools  {shell.directory / 'tools'} is not there",
    ):
        assert finding in done.out
    assert {one["level"] for one in json.loads(as_json.out)["findings"]} == {"ok", "warning", "problem"}


async def test_doctor_reports_wrong_settings_and_an_absent_server(shell: Shell) -> None:
    lost = Shell(shell.directory, {"REDIS_URL": "redis://:secret@127.0.0.1:1/0"})
    wrong = Shell(shell.directory, {"CONCURRENCY": "many", "RETRY_MAX_ATTEMPTS": "0"})

    absent, mistaken = await asyncio.gather(lost.fullsend("doctor"), wrong.fullsend("doctor"))

    assert absent.code == 1
    assert row_of(absent, "REDIS_URL")[1] == "redis://***@127.0.0.1:1/0"
    assert "problem  redis  info: Redis can't be reached" in absent.out
    assert "secret" not in absent.out
    assert mistaken.code == 1
    assert "problem  settings  CONCURRENCY=many" in mistaken.out
    assert "problem  settings  RETRY_MAX_ATTEMPTS=0" in mistaken.out
