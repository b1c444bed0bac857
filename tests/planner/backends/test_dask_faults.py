"""What happens to calls when a part of a Dask cluster is lost: each part is a process, and is killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from distributed import Client

from services.executor.outcome import Status
from services.planner.backends.dask_backend import DaskBackend
from services.planner.backends.dask_worker import ASKED
from services.planner.execution import Execution, ExecutionResult
from tests.conftest import Tools, eventually
from tests.planner.backends.conftest import (
    DaskCluster,
    MakeCluster,
    MakeDask,
    Proxy,
    execution,
    gone,
    written,
)

pytestmark = pytest.mark.xdist_group("dask")

HOLD = """
    import os, time

    def hold(path):
        number = 0
        while True:
            try:
                os.mkdir(f"{path}/{number}")
                break
            except FileExistsError:
                number += 1
        name = f"{path}/begun.{number}"
        open(name + ".new", "w").write(str(os.getpid()))
        os.rename(name + ".new", name)
        while not os.path.exists(f"{path}/gate"):
            time.sleep(0.01)
        return number
"""

KILL = """
    import os, signal, time

    def kill():
        pid = os.getpid()
        while b"spawn_main" not in open(f"/proc/{pid}/cmdline", "rb").read():
            pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGKILL)
        time.sleep(600)
"""


def parent(pid: str) -> str:
    """The parent of a process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]


def worker_of(pid: str) -> str:
    """The Dask worker above a tool's process; its nanny has started it by `multiprocessing`."""
    while "spawn_main" not in Path(f"/proc/{pid}/cmdline").read_text():
        pid = parent(pid)
    return pid


@pytest.fixture
def folder(tmp_path: Path, tools: Tools) -> Path:
    """Where the tool `hold` says that it has begun, and waits for the file `gate`."""
    tools("hold", HOLD)
    place = tmp_path / "held"
    place.mkdir()
    return place


def held(folder: Path, number: int = 1, **policy: str) -> Execution:
    """A call of `hold`."""
    return execution("hold", {"path": str(folder)}, number, timeout_seconds=60, **policy)


async def is_there(check: Callable[[], bool], what: str) -> None:
    async def fact() -> bool:
        return check()

    await eventually(fact, what)


def completed(result: ExecutionResult) -> tuple[Status, int]:
    assert result.error is None, result
    return result.status, result.lost_attempts


async def test_a_call_whose_worker_is_killed_runs_again(
    make_cluster: MakeCluster, dask: MakeDask, folder: Path
) -> None:
    cluster = make_cluster()
    cluster.start_worker()
    async with dask(cluster.address) as backend:
        call = asyncio.create_task(backend.run(held(folder)))
        first = await written(folder / "begun.0")
        os.kill(int(worker_of(first)), signal.SIGKILL)
        await gone(first)
        await written(folder / "begun.1")
        (folder / "gate").touch()
        result = await call

    assert completed(result) == (Status.COMPLETED, 1)
    assert result.result == "1"


async def test_a_call_whose_nanny_is_killed_runs_again_on_another_worker(
    make_cluster: MakeCluster, dask: MakeDask, folder: Path
) -> None:
    cluster = make_cluster()
    nanny = cluster.start_worker()
    async with dask(cluster.address) as backend:
        call = asyncio.create_task(backend.run(held(folder)))
        first = await written(folder / "begun.0")
        worker = worker_of(first)
        assert parent(worker) == str(nanny.pid)
        cluster.start_worker()
        nanny.kill()
        await gone(worker)
        await gone(first)
        await written(folder / "begun.1")
        (folder / "gate").touch()
        result = await call

    assert completed(result) == (Status.COMPLETED, 1)


async def test_a_call_whose_worker_is_retired_completes_once_in_the_results(
    make_cluster: MakeCluster, dask: MakeDask, folder: Path
) -> None:
    cluster = make_cluster()
    cluster.start_worker()
    async with (
        Client(cluster.address, asynchronous=True, set_as_default=False) as client,
        dask(cluster.address) as backend,
    ):
        call = asyncio.create_task(backend.run(held(folder)))
        await written(folder / "begun.0")
        [worker] = (await client.scheduler.identity(n_workers=-1))["workers"]
        cluster.start_worker()
        await client.wait_for_workers(2)
        await client.retire_workers([worker])
        (folder / "gate").touch()
        result = await call

    assert result.error is None
    assert result.status is Status.COMPLETED


async def test_calls_are_sent_again_after_the_loss_of_the_scheduler(
    make_cluster: MakeCluster, dask: MakeDask, folder: Path
) -> None:
    told: list[str] = []
    cluster = make_cluster()
    cluster.start_worker()
    async with dask(cluster.address, tell=told.append, poll_seconds=0.1) as backend:
        call = asyncio.create_task(backend.run(held(folder)))
        first = await written(folder / "begun.0")
        cluster.processes[0].kill()
        await gone(first)
        await is_there(lambda: any("unavailable" in line for line in told), "the user to be told")
        cluster.start_scheduler(int(cluster.address.rpartition(":")[2]))
        cluster.start_worker()
        await written(folder / "begun.1")
        (folder / "gate").touch()
        result = await call

    assert completed(result) == (Status.COMPLETED, 1)
    assert told[0] == f"the Dask scheduler at {cluster.address} is unavailable; the plan waits for it"
    assert "the Dask scheduler is available again; the plan continues" in told


async def test_only_the_call_that_ends_its_worker_fails(
    make_cluster: MakeCluster, dask: MakeDask, tools: Tools, folder: Path
) -> None:
    tools("kill", KILL)
    cluster = make_cluster(DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES="0", SANDBOX="off")
    cluster.start_worker()
    async with dask(cluster.address) as backend:
        innocents = [asyncio.create_task(backend.run(held(folder, n))) for n in range(3)]
        await written(folder / "begun.2")
        killing = asyncio.create_task(backend.run(execution("kill", {}, 9, timeout_seconds=60)))
        await written(folder / "begun.3")  # one of them has begun again
        (folder / "gate").touch()
        *results, culprit = await asyncio.gather(*innocents, killing)

    assert (culprit.status, culprit.error and culprit.error.type) == (Status.LOST, "WorkerDiedError")
    assert "also when it ran nothing else" in str(culprit.error)
    assert [one.status for one in results] == [Status.COMPLETED] * 3
    assert [one.error for one in results] == [None] * 3
    assert all(one.lost_attempts for one in results)


async def test_a_call_that_must_not_be_repeated_is_lost_with_its_worker(
    make_cluster: MakeCluster, dask: MakeDask, folder: Path
) -> None:
    cluster = make_cluster()
    cluster.start_worker()
    async with dask(cluster.address) as backend:
        call = asyncio.create_task(backend.run(held(folder, on_worker_death="fail")))
        first = await written(folder / "begun.0")
        os.kill(int(worker_of(first)), signal.SIGKILL)
        result = await call

    assert (result.status, result.error and result.error.type) == (Status.LOST, "WorkerDiedError")
    assert not (folder / "begun.1").exists()


async def test_a_call_that_must_not_be_repeated_begins_once_if_the_scheduler_is_lost_before(
    make_cluster: MakeCluster, dask: MakeDask, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, hear = asyncio.Event(), DaskBackend._hear

    def lose_the_first(self: DaskBackend, token: str, what: str, text: str) -> None:
        if what == ASKED and not asked.is_set():
            asked.set()
        else:
            hear(self, token, what, text)

    monkeypatch.setattr(DaskBackend, "_hear", lose_the_first)
    cluster = make_cluster()
    cluster.start_worker()
    async with dask(cluster.address, poll_seconds=0.1) as backend:
        call = asyncio.create_task(backend.run(held(folder, on_worker_death="fail")))
        await asked.wait()
        cluster.processes[0].kill()
        cluster.processes[0].wait()
        had_begun = (folder / "begun.0").exists()
        cluster.start_scheduler(int(cluster.address.rpartition(":")[2]))
        cluster.start_worker()
        await written(folder / "begun.0")
        (folder / "gate").touch()
        result = await call
        async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
            marks = await client.run_on_scheduler(
                lambda dask_scheduler: list(dask_scheduler.extensions["events"]._events)
            )

    assert completed(result) == (Status.COMPLETED, 0)
    assert not had_begun
    assert not (folder / "begun.1").exists()
    assert marks == []


@pytest.fixture
async def cut_off(make_cluster: MakeCluster) -> AsyncIterator[tuple[DaskCluster, Proxy]]:
    """A cluster, and the only way to its scheduler."""
    cluster = make_cluster()
    cluster.start_worker()
    proxy = Proxy(cluster.address)
    await proxy.start()
    yield cluster, proxy
    proxy.cut()


async def test_calls_go_on_when_the_network_is_back(
    cut_off: tuple[DaskCluster, Proxy], dask: MakeDask, folder: Path
) -> None:
    _, proxy = cut_off
    async with dask(proxy.address, poll_seconds=0.1) as backend:
        call = asyncio.create_task(backend.run(held(folder)))
        first = await written(folder / "begun.0")
        proxy.cut()
        await gone(first)  # Dask gives up what nobody waits for
        await proxy.start(int(proxy.address.rpartition(":")[2]))
        await written(folder / "begun.1")
        (folder / "gate").touch()
        result = await call

    assert completed(result) == (Status.COMPLETED, 1)


PLANNER = """
import asyncio, os, sys
from pathlib import Path
from services.planner.backends.dask_backend import DaskBackend
from services.planner.execution import Execution, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime

async def main(address, folder, held):
    config = RuntimeConfig(
        tools_path=folder / "tools", artifacts=str(folder / "a"), bundles_path=folder / "b",
        environments_path=folder / "e",
    )
    async with DaskBackend(address, ToolRuntime(config, 1, os.environ)) as backend:
        await backend.run(Execution("hold", {"path": held}, RunOptions("run-1")))

asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
"""


async def test_the_tools_of_a_planner_that_is_killed_are_ended(
    make_cluster: MakeCluster, folder: Path, tmp_path: Path
) -> None:
    cluster = make_cluster()
    cluster.start_worker()
    planner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PLANNER, cluster.address, str(tmp_path), str(folder)
    )
    first = await written(folder / "begun.0")
    worker = worker_of(first)
    planner.kill()
    await planner.wait()

    await gone(first)
    assert Path(f"/proc/{worker}").exists()
