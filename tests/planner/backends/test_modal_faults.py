"""What happens to calls when a part is lost: containers and planners are processes, and are killed."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from modal import Client

from services.cli.cloud import modal_app
from services.cli.cloud.modal_function import call_tool
from services.executor.artifacts import LocalBlobs, modal_volume
from services.executor.outcome import Status
from services.planner.backends import modal_backend, modal_options
from services.planner.backends.modal_calls import fetch
from services.planner.execution import Execution
from shared.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError, PlanError
from tests.conftest import Tools
from tests.modal_server import RunningServer
from tests.modal_server.fixtures import CHECKOUT, MODAL_OPTIONS
from tests.planner.backends.conftest import MakeModal, Proxy, execution, gone, written
from tests.planner.backends.test_dask_faults import HOLD, completed, is_there

pytestmark = pytest.mark.xdist_group("modal")

RUNTIME = "_container_entrypoint"
KILL = f"""
    import os, signal, time

    def kill():
        pid = os.getpid()
        while b"{RUNTIME}" not in open(f"/proc/{{pid}}/cmdline", "rb").read():
            pid = int(open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[1])
        os.kill(pid, signal.SIGKILL)
        time.sleep(600)
"""


def container_of(pid: str) -> int:
    """The container above a tool's process."""
    while RUNTIME not in Path(f"/proc/{pid}/cmdline").read_text():
        pid = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    return int(pid)


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


async def test_a_call_whose_container_is_killed_runs_again(modal: MakeModal, folder: Path) -> None:
    async with modal() as backend:
        call = asyncio.create_task(backend.run(held(folder)))
        first = await written(folder / "begun.0")
        os.kill(container_of(first), signal.SIGKILL)
        await gone(first)
        await written(folder / "begun.1")
        (folder / "gate").touch()
        result = await call

    assert completed(result) == (Status.COMPLETED, 1)


async def test_only_the_call_that_ends_its_container_fails(
    modal: MakeModal, modal_server: RunningServer, tools: Tools, folder: Path
) -> None:
    tools("kill", KILL)
    unconfined = replace(MODAL_OPTIONS, app="unconfined", max_parallel=4)
    image = modal_app.image_of(CHECKOUT, {"SANDBOX": "off"})
    modal_server.call(modal_app.deploy(unconfined, image, call_tool))
    async with modal(unconfined) as backend:
        innocents = [asyncio.create_task(backend.run(held(folder, n))) for n in range(3)]
        await written(folder / "begun.2")
        killing = asyncio.create_task(backend.run(execution("kill", {}, 9, timeout_seconds=60)))
        await written(folder / "begun.3")  # one of them has begun again
        (folder / "gate").touch()
        *results, culprit = await asyncio.gather(*innocents, killing)

    assert (culprit.status, culprit.error and culprit.error.type) == (Status.LOST, "WorkerDiedError")
    assert "also when it ran nothing else" in str(culprit.error)
    assert culprit.lost_attempts == 3
    assert [one.error for one in results] == [None] * 3
    assert all(one.lost_attempts for one in results)


async def test_a_call_that_must_not_be_repeated_is_lost_with_its_container(
    modal: MakeModal, folder: Path
) -> None:
    async with modal() as backend:
        call = asyncio.create_task(backend.run(held(folder, on_worker_death="fail")))
        first = await written(folder / "begun.0")
        os.kill(container_of(first), signal.SIGKILL)
        result = await call

    assert (result.status, result.error and result.error.type) == (Status.LOST, "WorkerDiedError")
    assert result.lost_attempts == 1
    assert not (folder / "begun.1").exists()


PLANNER = """
import asyncio, os, sys
from pathlib import Path
from services.planner.backends.modal_backend import ModalBackend
from services.planner.backends.modal_options import ModalOptions
from services.planner.execution import Execution, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime

async def main(folder, held):
    config = RuntimeConfig(
        tools_path=folder / "tools", artifacts=str(folder / "a"), bundles_path=folder / "b",
        environments_path=folder / "e",
    )
    runtime = ToolRuntime(config, 1, os.environ)
    async with ModalBackend(ModalOptions(), runtime, concurrency=1, lease_seconds=2) as backend:
        await backend.run(Execution("hold", {"path": held}, RunOptions("run-1")))

asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
"""


async def test_the_tools_of_a_planner_that_is_killed_are_ended(
    modal_server: RunningServer, folder: Path, tmp_path: Path
) -> None:
    planner = await asyncio.create_subprocess_exec(sys.executable, "-c", PLANNER, str(tmp_path), str(folder))
    first = await written(folder / "begun.0")
    container = container_of(first)
    planner.kill()
    await planner.wait()

    await gone(first)
    assert Path(f"/proc/{container}").exists()


async def test_a_call_whose_planner_seemed_to_be_gone_is_sent_again(
    modal: MakeModal, modal_server: RunningServer, folder: Path
) -> None:
    async def forget_leases() -> None:
        for key in [one for one in modal_server.modal.partitions if one[1].endswith(b".lease")]:
            del modal_server.modal.partitions[key]

    async with modal(lease_seconds=4) as backend:
        call = asyncio.create_task(backend.run(held(folder)))
        first = await written(folder / "begun.0")
        while Path(f"/proc/{first}").exists():
            modal_server.call(forget_leases())
            await asyncio.sleep(0.05)
        await written(folder / "begun.1")
        (folder / "gate").touch()
        result = await call

    assert completed(result) == (Status.COMPLETED, 1)


@pytest.fixture
def no_containers(modal_server: RunningServer) -> Iterator[RunningServer]:
    """Modal without room for containers."""
    for one in list(modal_server.modal.containers.values()):
        one.kill()
    modal_server.modal.are_available = False
    yield modal_server
    modal_server.modal.are_available = True


async def test_a_plan_says_that_no_container_is_there_and_its_calls_wait_no_longer_than_allowed(
    modal: MakeModal, no_containers: RunningServer, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_backend, "SILENCE_SECONDS", 0.0)
    monkeypatch.setattr(modal_backend, "WATCH_SECONDS", 0.05)
    tools("noop", "def noop(): return 1\n")
    told: list[str] = []
    async with modal(replace(MODAL_OPTIONS, wait=1.0), tell=told.append) as backend:
        failed = await backend.run(execution("noop", {}))
    async with modal(replace(MODAL_OPTIONS, wait=60.0), tell=told.append) as backend:
        call = asyncio.create_task(backend.run(execution("noop", {}, timeout_seconds=60)))
        await is_there(lambda: len(told) == 2, "the user to be told")
        no_containers.modal.are_available = True
        function_id = next(iter(no_containers.modal.waiting))
        for function_id in list(no_containers.modal.waiting):
            no_containers.call(no_containers.modal.scale(function_id))
        result = await call

    assert (failed.status, failed.error and failed.error.type) == (Status.LOST, "ContainerUnavailableError")
    assert "Modal has had no container for the call in 1 s (MODAL_WAIT)" in str(failed.error)
    assert result.status is Status.COMPLETED
    assert told[0] == told[1] == ("no container of Modal runs a case, and 1 wait; the plan waits for one")


async def test_calls_go_on_when_the_network_is_back(
    modal: MakeModal, modal_server: RunningServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    proxy = Proxy(modal_server.modal.url.replace("http", "tcp"))
    await proxy.start()
    monkeypatch.setenv("MODAL_SERVER_URL", proxy.address.replace("tcp", "http"))
    async with another_client(), modal(tell=told.append, poll_seconds=0.2) as backend:
        calls = [asyncio.create_task(backend.run(held(folder, n))) for n in range(2)]
        await written(folder / "begun.1")
        proxy.cut()
        await is_there(lambda: bool(told), "the user to be told")
        calls.append(asyncio.create_task(backend.run(held(folder, 2))))
        (folder / "gate").touch()
        await proxy.start(int(proxy.address.rpartition(":")[2]))
        results = await asyncio.gather(*calls)
    proxy.cut()

    assert [completed(one) for one in results] == [(Status.COMPLETED, 0)] * 3
    assert told[0].startswith("Modal is unavailable (")
    assert "Modal is available again; the plan continues" in told


@contextlib.asynccontextmanager
async def another_client() -> AsyncIterator[None]:
    """Have Modal's client read the environment anew; it does so once in the life of a process."""
    before = await Client.from_env.aio()
    Client._set_env_client(None)
    modal_volume._volume.cache_clear()
    yield
    await (await Client.from_env.aio()).close.aio()
    Client._set_env_client(before)
    modal_volume._volume.cache_clear()


async def test_a_call_that_modal_ends_at_its_time_out_is_a_time_out(
    modal: MakeModal, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modal_options, "MARGIN_SECONDS", 0)
    async with modal(replace(MODAL_OPTIONS, timeout=2.0), poll_seconds=0.2) as backend:
        call = asyncio.create_task(backend.run(execution("hold", {"path": str(folder)}, timeout_seconds=2)))
        os.kill(container_of(await written(folder / "begun.0")), signal.SIGSTOP)
        result = await call

    assert (result.status, result.error and result.error.type) == (Status.TIMEOUT, "ToolTimeoutError")
    assert "Modal has ended the call at the time-out of its function" in str(result.error)


class Unsteady(LocalBlobs):
    """A store whose first reads fail, as while a network is cut."""

    faults: ClassVar[list[Exception]] = []

    def read(self, sha256: str, max_bytes: int | None = None) -> bytes:
        if self.faults:
            raise self.faults.pop()
        return super().read(sha256, max_bytes)


def test_what_a_run_has_left_is_fetched_when_the_volume_can_be_read_again(tmp_path: Path) -> None:
    source, target = Unsteady(tmp_path / "there"), LocalBlobs(tmp_path / "here")
    blob = source.put(b"content")

    source.faults[:] = [ArtifactError("the volume can't be reached")]
    fetch(blob.sha256, source, target)
    assert target.read(blob.sha256) == b"content"
    for fault in (ArtifactNotFoundError("gone"), ArtifactCorruptError("changed")):
        source.faults[:] = [fault]
        with pytest.raises(type(fault)):
            fetch(blob.sha256, source, target)


async def test_a_backend_without_its_app_does_not_open(modal: MakeModal) -> None:
    with pytest.raises(PlanError, match="there is no app nowhere on Modal; deploy it with `fullsend modal"):
        async with modal(replace(MODAL_OPTIONS, app="nowhere")):
            pass
