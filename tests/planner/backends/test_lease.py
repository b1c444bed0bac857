"""One planner at a time executes a plan on the fleet; the lease of a dead one is taken over."""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.executor.outcome import Status
from services.executor.store import Store
from services.planner.backends.fleet import FleetBackend
from services.planner.models import ExecutionPolicy, RunManifest, TestCase
from services.planner.plan import Plan
from services.planner.tasks import RunExecutionResult
from shared import keys
from shared.connection import connect, connect_blocking
from shared.errors import PlanError
from tests.conftest import KEPT, Tools, eventually
from tests.planner.backends.conftest import Executors, MakeFleet, execution, written

ROOT = Path(__file__).parents[3]
LEASE = keys.planner("plan:p1")
SHORT = 0.3
"""The duration of a lease, in seconds, in tests of its end."""
HOLD = """
    import os, time

    def hold(n: int, folder: str):
        open(f"{folder}/begun-{n}", "w").write("x")
        while not os.path.exists(folder + "/go"):
            time.sleep(0.01)
        return n
"""


@pytest.fixture
async def another_store(redis_url: str) -> AsyncIterator[Store]:
    """The store of another process."""
    client, patient = connect(redis_url), connect_blocking(redis_url)
    yield Store.on(client, patient, KEPT)
    await client.aclose()
    await patient.aclose()


def somebody(**members: Any) -> str:
    """The lease of a planner on another host."""
    return json.dumps({"host": "far/1/2", "pid": 7, "started": "5", "since": "2030-01-01", **members})


async def under_way(store: Store, count: int = 1) -> list[str]:
    """Wait until so many runs of the plan are queued."""

    async def found() -> list[str]:
        ids = await store.submissions.open_runs("plan:p1")
        return ids if len(ids) >= count else []

    return list(await eventually(found, "the runs"))


async def test_the_second_of_two_copies_of_a_plan_is_refused(
    store: Store, another_store: Store, executors: Executors, tools: Tools, tmp_path: Path
) -> None:
    tools("hold", HOLD)
    cases = tuple(TestCase(parameters={"n": n, "folder": str(tmp_path)}) for n in range(6))
    manifest = RunManifest(
        workflow_id="w", tool="hold", cases=cases, execution_policy=ExecutionPolicy(concurrency=4)
    )
    plan = Plan.create(manifest, tmp_path / "plan")
    shutil.copytree(plan.directory, tmp_path / "copy")
    copy = Plan.open(tmp_path / "copy")

    async def executed(one: Plan, where: Store) -> RunExecutionResult:
        base = str(tmp_path / "artifacts")
        with one.lock() as locked:
            async with FleetBackend(
                where, storage_type="local", storage_base=base, plan_id=one.name
            ) as backend:
                return await locked.resume(backend)

    async with executors(), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(executed(plan, store))
        await written(tmp_path / "begun-0")
        with pytest.raises(PlanError, match=r"is being executed by process \d+ since .* another copy of its"):
            await executed(copy, another_store)
        (tmp_path / "go").touch()
        await first
        again = await executed(copy, another_store)

    assert {one.task_status.value for one in first.result().task_results} == {"succeeded"}
    assert {one.task_status.value for one in again.task_results} == {"succeeded"}


PLANNER = """
import asyncio, sys
from services.executor.store import Store
from services.planner.backends.fleet import FleetBackend
from shared.connection import connect, connect_blocking
from tests.conftest import KEPT
from tests.planner.backends.conftest import execution
from tests.planner.backends.test_lease import under_way

async def main(url):
    store = Store.on(connect(url), connect_blocking(url), KEPT)
    async with FleetBackend(
        store, storage_type="local", storage_base="/nowhere", plan_id="p1", capacity=5, lease_seconds=600
    ) as backend:
        calls = [asyncio.create_task(backend.run(execution("hold", {}, n))) for n in range(5)]
        await under_way(store, 5)
        print("queued", flush=True)
        await asyncio.gather(*calls)

asyncio.run(main(sys.argv[1]))
"""


async def test_runs_of_a_killed_planner_are_cancelled_at_once(
    store: Store, fleet: MakeFleet, redis_url: str
) -> None:
    command = [sys.executable, "-c", PLANNER, redis_url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as planner:
        assert planner.stdout is not None
        while await asyncio.to_thread(planner.stdout.readline) != "queued\n":
            assert planner.poll() is None
        left = await store.submissions.open_runs("plan:p1")
        with pytest.raises(PlanError, match=f"by process {planner.pid} since"):
            await fleet().__aenter__()
        async with fleet("another"):
            pass
        untouched = await store.submissions.open_runs("plan:p1")
        planner.send_signal(signal.SIGKILL)
    async with fleet():
        still_open = await store.submissions.open_runs("plan:p1")

    assert (len(left), left, still_open) == (5, untouched, [])
    assert [(await store.runs.record(one))["status"] for one in left] == ["cancelled"] * 5


async def test_the_lease_of_a_planner_on_another_host_expires(fleet: MakeFleet, redis: Any) -> None:
    await redis.set(LEASE, somebody(), px=200)

    with pytest.raises(PlanError, match=r"by process 7 on far since 2030-01-01, .* if that process has died"):
        await fleet().__aenter__()
    await eventually(lambda: _gone(redis), "the end of the lease")
    async with fleet():
        assert json.loads(await redis.get(LEASE))["host"] != "far/1/2"


async def test_a_planner_renews_its_lease(fleet: MakeFleet, redis: Any) -> None:
    async with fleet(lease_seconds=SHORT):
        mine = await redis.get(LEASE)
        await redis.pexpire(LEASE, 60_000)
        await eventually(lambda: _renewed(redis), "the renewal")
        with pytest.raises(PlanError):
            await fleet().__aenter__()

        assert await redis.get(LEASE) == mine
    assert await redis.get(LEASE) is None


async def test_a_backend_that_fails_to_open_releases_its_lease(fleet: MakeFleet, redis: Any) -> None:
    def broken(line: str) -> None:
        raise ValueError("no")

    backend = fleet(tell=broken)  # it is told that no executor is alive
    with pytest.raises(ValueError, match="no"):
        await backend.__aenter__()

    assert await redis.get(LEASE) is None


async def test_a_lease_that_redis_has_lost_is_taken_again(fleet: MakeFleet, redis: Any) -> None:
    async with fleet(lease_seconds=SHORT):
        mine = await redis.getdel(LEASE)
        again = await eventually(lambda: redis.get(LEASE), "the renewal")

    assert again == mine


async def test_a_planner_that_lost_its_lease_cancels_its_runs(
    store: Store, fleet: MakeFleet, redis: Any
) -> None:
    told: list[str] = []
    async with fleet(lease_seconds=SHORT, tell=told.append) as backend:
        running = asyncio.create_task(backend.run(execution("hold", {})))
        await under_way(store)
        await redis.set(LEASE, somebody(), px=60_000)
        first = await running
        later = await backend.run(execution("hold", {}, 2))

    assert [first.status, later.status] == [Status.CANCELLED] * 2
    assert "p1 is being executed by process 7 on far since 2030-01-01" in str(later.error)
    assert str(later.error).endswith(told[-1])
    assert await redis.get(LEASE) == somebody()


@pytest.mark.parametrize("text", ["", "nonsense", "{}", '{"host": "h", "pid": "x", "started": ""}', "[]"])
async def test_a_foreign_lease_is_shown_and_expires(fleet: MakeFleet, redis: Any, text: str) -> None:
    await redis.set(LEASE, text or " ")

    with pytest.raises(PlanError, match="a planner whose lease says"):
        await fleet().__aenter__()
    assert 0 < await redis.pttl(LEASE) <= 15_000


async def _gone(redis: Any) -> bool:
    return not await redis.exists(LEASE)


async def _renewed(redis: Any) -> bool:
    return bool(0 < await redis.pttl(LEASE) <= SHORT * 1_000)
