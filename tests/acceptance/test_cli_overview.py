"""`fullsend schedules`, `tools` and `doctor`."""

import asyncio
import json
from pathlib import Path

import pytest

from services.executor.store import Order, Store
from services.operations.schedule_rows import NO_CRON
from shared import keys
from shared.connection import connect_blocking
from tests.acceptance.commands import Shell, row_of
from tests.acceptance.tool_texts import GREET
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.isolation.workshop import Workshop
from tests.ports import free_port


async def test_schedules_lists_next_times_and_problems(shell: Shell, neighbour: Neighbour) -> None:
    redis = neighbour.redis
    for name in ("exp_good", "exp_cron", "exp_paused", "exp_seconds"):
        await neighbour.publish(name, "greet")
    await redis.hset("experiments:exp_paused", "state", "paused")
    await redis.set("schedules:exp_good", '{"cron": "0 12 1 JAN ? 0", "timezone": "Asia/Tokyo"}')
    await redis.set("schedules:exp_cron", "every now and then")
    await redis.set("schedules:exp_none", "0 9 * * *")
    await redis.set("schedules:exp_paused", "0 9 * * *")
    await redis.set("schedules:exp_seconds", "*/10 * * * * *")
    await redis.rpush("schedules:exp_list", "0 9 * * *")

    done, as_json = await asyncio.gather(shell.fullsend("schedules"), shell.fullsend("schedules", "--json"))

    good = row_of(done, "exp_good")
    assert good[1] == "active"
    assert good[3].endswith("-01-01 12:00:00 JST")
    assert good[4].endswith("-01-01 03:00:00")
    assert "Asia/Tokyo" in good[5]
    assert row_of(done, "exp_cron")[1] == "invalid"
    assert row_of(done, "exp_none")[-1] == f"there is no such experiment; {NO_CRON}"
    assert row_of(done, "exp_paused")[-1] == f"the experiment is paused, so cron does not run it; {NO_CRON}"
    assert row_of(done, "exp_seconds")[-1].startswith("it fires every second of some minutes")
    assert "expected a string or a hash" in row_of(done, "exp_list")[-1]
    by_id = {one["experiment_id"]: one for one in json.loads(as_json.out)}
    assert (by_id["exp_good"]["timezone"], by_id["exp_good"]["unattended"]) == ("Asia/Tokyo", True)


async def test_doctor_says_whether_cron_runs_and_how_it_notices_schedules(
    shell: Shell, neighbour: Neighbour, serve: Serve, store: Store
) -> None:
    await neighbour.publish("exp_1", "greet", state="paused")
    await neighbour.redis.set("schedules:exp_1", "0 9 * * *")

    async def noticing() -> bool:
        return "notifications" in (await store.workers.cron()).values()

    async with serve():
        without = await shell.fullsend("doctor")
    async with serve(schedule_mode="cron"):
        await eventually(noticing, "how the worker notices schedules")
        attended = await shell.fullsend("doctor")

    [line] = [one for one in without.lines if NO_CRON in one]
    assert line.startswith("warning  schedules  the next due time is ")
    assert NO_CRON not in attended.out
    assert "schedules that nobody announces are noticed at once: the server sends keyspace" in attended.out


async def test_tools_lists_registered_tools_and_their_errors(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("greet", GREET)
    tools("broken", "import no_such_module\n")
    gone = {"name": "gone", "status": "active", "state": "active", "described_by": "3:x"}
    await neighbour.redis.hset("tools:gone", mapping=gone)
    async with serve():
        await eventually(lambda: neighbour.redis.hget("tools:greet", "status"), "the registration")
        await eventually(lambda: neighbour.redis.hget("tools:broken", "status"), "the registration")

        done = await shell.fullsend("tools")

    assert row_of(done, "greet") == ["greet", "active", "Say hello.", "name: string, times: integer = 1"]
    assert row_of(done, "broken")[1] == "invalid"
    assert row_of(done, "gone")[1] == "missing"
    assert "No module named 'no_such_module'" in done.out


async def test_doctor_finds_no_problem_in_a_sound_setup(
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
    assert any("processes  " in line and "the limit `processes`" in line for line in findings)
    assert any("sandbox  tools reach no other processes" in line for line in findings)


async def test_doctor_finds_problems(shell: Shell, neighbour: Neighbour) -> None:
    redis = neighbour.redis
    await neighbour.publish("exp_1", "greet", schedule="0 9 * * *")
    await redis.hset("experiments:exp_odd", "hypothesis", "a hash without a tool")
    await redis.set("schedules:exp_none", "0 9 * * *")
    await redis.set("schedules:exp_1_", "nonsense")
    await redis.hset("tools:broken", mapping={"name": "broken", "status": "invalid", "error": "no function"})

    (shell.directory / ".env").write_text("SANDBOX=off\n")

    done, as_json = await asyncio.gather(shell.fullsend("doctor"), shell.fullsend("doctor", "--json"))

    assert done.code == as_json.code == 1
    assert "warning  sandbox  SANDBOX is off: tools can reach the memory" in done.out
    for finding in (
        "problem  workers  no worker is alive, so nothing runs",
        "problem  experiments:exp_odd  can't be read: experiments:exp_odd has none of the fields",
        "warning  experiments:exp_1  says `schedule: 0 9 * * *`, but schedules:exp_1 does not exist",
        "problem  schedules:exp_none  there is no such experiment",
        "problem  schedules:exp_1_  Cron expression 'nonsense'",
        "problem  tools:broken  no function",
        f"warning  tools  the tools folder {shell.directory / 'tools'} does not exist",
    ):
        assert finding in done.out
    assert {one["level"] for one in json.loads(as_json.out)["findings"]} == {"ok", "warning", "problem"}


async def test_doctor_shows_a_tools_mistake_as_it_is_written(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("spaced", "# ///  script\n# ///\n" + GREET)
    await neighbour.redis.hset("tools:gone", mapping={"status": "active", "described_by": "3:x"})
    async with serve():
        await eventually(lambda: neighbour.redis.hget("tools:spaced", "error"), "the registration")
        done = await shell.fullsend("doctor")

    assert "'# ///  script'" in done.out
    assert "warning  tools:gone  no live worker has this tool any more; its runs fail" in done.out


async def test_doctor_doubts_a_tool_that_is_not_registered_and_no_exact_version(
    shell: Shell, neighbour: Neighbour
) -> None:
    await neighbour.redis.hset("tools:dice", mapping={"name": "dice", "status": "active"})
    await neighbour.publish("exp_pinned", f"dice@sha256:{'0' * 64}")
    await neighbour.publish("exp_gone", "cards")
    await neighbour.publish("exp_short", "dice@sha256:0000")

    done = await shell.fullsend("doctor")

    assert "exp_pinned" not in done.out
    assert "warning  experiments:exp_gone  its tool 'cards' is not registered" in done.out
    assert "problem  experiments:exp_short  can't be read: " in done.out


async def test_doctor_reports_wrong_settings_and_an_unreachable_server(shell: Shell) -> None:
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


async def test_doctor_finds_what_is_stuck(shell: Shell, neighbour: Neighbour, store: Store) -> None:
    redis = neighbour.redis
    now_ms = await store.due_times.now_ms()
    await neighbour.publish("exp_stuck", "greet", state="running")
    await neighbour.publish("exp_busy", "greet", state="running")
    await store.queue.create_group()
    await store.queue.enqueue(Order("exp_busy", "trigger"))
    await redis.xadd(keys.queue("low"), {"order": "{}"}, id=f"{now_ms - 3_660_000}-0")
    await redis.zadd(keys.workers(), {"w_gone": now_ms - 7_200_000})
    await redis.hset(keys.run("exp_busy:1-0"), mapping={"status": "lost"})
    await redis.hset(keys.run("exp_busy:2-0"), mapping={"status": "completed"})
    await redis.set(keys.open_runs("exp_odd"), "x")
    await neighbour.publish("exp_odd", "greet")

    done = await shell.fullsend("doctor")

    for finding in (
        f"problem  {keys.open_runs('exp_odd')}  is a Redis string; expected a zset",
        "warning  workers  w_gone has been silent for 2 h 0",
        "warning  queue  the oldest order has waited for 1 h 0",
        "warning  runs  1 of the last 2 runs were lost with their workers: exp_busy:1-0",
        "warning  experiments:exp_stuck  is `running`, but no run of it is open",
    ):
        assert finding in done.out
    assert "exp_busy  is `running`" not in done.out


async def test_doctor_reads_the_health_of_a_worker(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools
) -> None:
    tools("greet", GREET)
    port = free_port()
    async with serve(health_port=port, concurrency=3) as service:
        done, by_port = await asyncio.gather(
            shell.fullsend("doctor", "--url", f"http://127.0.0.1:{port}/"),
            shell.fullsend("doctor", "--url", str(port)),
        )

    for one in (done, by_port):
        assert f"ok       {service.worker} /healthz  alive: " in one.out
        assert f"ok       {service.worker} /readyz  ready: " in one.out
        assert "ok       /metrics  0 of 3 slots are busy" in one.out
        assert one.code == 0, one.out


@pytest.mark.parametrize("body", [b"hello", b"[]", b"{}", b'{"alive": true}', b"\xff"])
async def test_doctor_reports_an_answer_that_is_not_from_a_worker(
    shell: Shell, body: bytes, store: Store
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + body)
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        done = await shell.fullsend("doctor", "--url", address)

    assert done.code == 1
    assert f"problem  http://{address}  does not answer like a worker: " in done.out


async def test_doctor_reports_a_worker_that_does_not_answer(shell: Shell, store: Store) -> None:
    done = await shell.fullsend("doctor", "--url", f"http://me:secret@127.0.0.1:{free_port()}")

    assert done.code == 1
    assert "does not answer like a worker: [Errno 111] Connection refused" in done.out
    assert "secret" not in done.out


async def test_doctor_finds_workers_on_another_database(
    shell: Shell, neighbour: Neighbour, redis_url: str
) -> None:
    client = connect_blocking(redis_url.replace("/0", "/3"))
    async with client.pubsub() as pubsub:
        await pubsub.subscribe(keys.MARKERS)
        await pubsub.get_message(timeout=30)
        done = await shell.fullsend("doctor")
    await client.aclose()

    assert "1 further workers on database 3 of this server hear the same messages" in done.out
    assert "set CHANNEL_PREFIX" in done.out
    assert done.code == 1


async def test_tools_build_builds_the_environments_of_tools(
    shell: Shell, tools: Tools, tmp_path: Path
) -> None:
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    shop.wheel("parcel", "1.5")
    tools("greet", GREET)
    for name, dependency in (("needy", "parcel"), ("lost", "parcel==9")):
        tools(name, f"# /// script\n# dependencies = ['{dependency}']\n# ///\ndef {name}(): ...\n")
    here = shell.with_variables(**shop.environ)

    some = await here.fullsend("tools", "build", "needy", "greet")
    every = await here.fullsend("tools", "build")

    assert (some.code, some.lines) == (0, ["needy: built", "greet: needs no environment of its own"])
    assert (every.code, every.lines) == (1, ["needy: built"])
    assert "lost: uv can't install the tool's dependencies: No solution found" in every.err
    assert len(list((shell.directory / ".fullsend" / "environments").glob("*.json"))) == 1
