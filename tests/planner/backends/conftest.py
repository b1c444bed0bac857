"""Every backend on the same tools and the same store of artifacts."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import pytest

from services.executor.isolation.calls import Report
from services.executor.store import Store
from services.planner.backends import BACKENDS, Backend
from services.planner.backends.dask_backend import DaskBackend
from services.planner.backends.dask_connection import PRELOAD
from services.planner.backends.fleet import FleetBackend
from services.planner.backends.local import LocalBackend
from services.planner.backends.modal_backend import ModalBackend
from services.planner.backends.modal_options import ModalOptions
from services.planner.execution import Execution, ExecutionResult, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime
from shared.messages import Policy
from tests.conftest import PATIENCE_SECONDS, Serve, Tools, eventually
from tests.modal_server import RunningServer
from tests.modal_server.fixtures import MODAL_OPTIONS
from tests.s3 import s3_endpoint, s3_url

__all__ = ["s3_endpoint", "s3_url"]

CAPACITY = 4
INLINE_MAX_BYTES = 100


def execution(tool: str, parameters: dict[str, Any], number: int = 1, **policy: Any) -> Execution:
    """A call of a tool; `policy` are members of its policy."""
    return Execution(
        tool, parameters, RunOptions(f"run-{number}", Policy(**{"timeout_seconds": 20} | policy))
    )


class Harness:
    """One backend, and tools for it.

    Attributes:
        backend: not open yet; may be opened any number of times.
        folder: for whatever a tool writes.
    """

    def __init__(self, backend: Backend, tools: Tools, folder: Path) -> None:
        self.backend = backend
        self.folder = folder
        self.tool = tools

    async def run(
        self,
        tool: str,
        report: Report | None = None,
        cancel: asyncio.Event | None = None,
        policy: dict[str, Any] | None = None,
        **parameters: Any,
    ) -> ExecutionResult:
        """Call a tool."""
        call = execution(tool, parameters, **(policy or {}))
        return await self.backend.run(call, report=report, cancel=cancel)

    async def called(self, text: str, **options: Any) -> ExecutionResult:
        """Write `tool`, and call it in a block of its own."""
        self.tool("tool", text)
        async with self.backend:
            return await self.run("tool", **options)


class MakeFleet(Protocol):
    """Makes a backend on the test's Redis."""

    def __call__(self, plan_id: str = "p1", **options: Any) -> FleetBackend:
        """`options` are the backend's."""


@pytest.fixture
def fleet(store: Store, tmp_path: Path) -> MakeFleet:
    """Makes fleet backends; the test starts the executors."""

    def make(plan_id: str = "p1", **options: Any) -> FleetBackend:
        storage = {"storage_type": "local", "storage_base": str(tmp_path / "artifacts")}
        return FleetBackend(store, plan_id=plan_id, **{**storage, **options})

    return make


def runtime_in(folder: Path) -> ToolRuntime:
    """A runtime with everything below a folder."""
    places = RuntimeConfig(
        tools_path=folder / "tools",
        artifacts=str(folder / "artifacts"),
        inline_artifact_max_bytes=INLINE_MAX_BYTES,
        bundles_path=folder / "bundles",
        environments_path=folder / "environments",
    )
    return ToolRuntime(places, CAPACITY, os.environ)


@pytest.fixture
def local(tools: Tools, tmp_path: Path) -> LocalBackend:
    """A local backend."""
    return LocalBackend(runtime_in(tmp_path), CAPACITY)


Executors = Callable[..., contextlib.AbstractAsyncContextManager[Any]]


@pytest.fixture
def executors(serve: Serve) -> Executors:
    """`async with executors()` runs an executor, with these settings."""
    return lambda concurrency=CAPACITY: serve(
        concurrency=concurrency, inline_artifact_max_bytes=INLINE_MAX_BYTES, tool_execution_timeout=5
    )


class DaskCluster:
    """A Dask scheduler and its workers, each a process as `dask scheduler` and `dask worker` start them.

    Attributes:
        address: of the scheduler.
        folder: where the processes run.
        variables: further ones of their environment.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.variables = variables
        self.processes: list[subprocess.Popen[bytes]] = []
        self.address = ""

    def start_scheduler(self, port: int = 0) -> subprocess.Popen[bytes]:
        """Start the scheduler, and wait until it listens."""
        file = self.folder / "scheduler.json"
        file.unlink(missing_ok=True)
        process = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", str(port), "--dashboard-address", "127.0.0.1:0",
            "--scheduler-file", str(file),
        )  # fmt: skip
        self.address = _address_in(file)
        return process

    def start_worker(self, *, threads: int = CAPACITY, preload: bool = True) -> subprocess.Popen[bytes]:
        """Start a worker under its nanny, and wait until it has registered at the scheduler."""
        given = ["--preload", PRELOAD] if preload else []
        log = self.folder / f"worker-{len(self.processes)}.log"
        process = self._start(
            "worker", self.address, "--nthreads", str(threads), "--no-dashboard",
            "--local-directory", str(self.folder), *given,
        )  # fmt: skip
        _wait_for(lambda: "Registered to" in log.read_text(), "the worker to register")
        return process

    def stop(self) -> None:
        """End everything, the schedulers last: a worker takes its leave of its scheduler."""
        workers = [one for one in self.processes if "worker" in one.args]  # type: ignore[operator]
        for group in (workers, self.processes):
            for process in group:
                process.terminate()
            for process in group:
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        number = len(self.processes)
        variables = {**os.environ, **self.variables}
        with (self.folder / f"{arguments[0]}-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                cwd=self.folder, env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        self.processes.append(process)
        return process


def _address_in(file: Path) -> str:
    _wait_for(lambda: file.exists() and file.read_text().rstrip().endswith("}"), "the scheduler to listen")
    return str(json.loads(file.read_text())["address"])


def _wait_for(fact: Callable[[], bool], what: str) -> None:
    """Wait for a fact, without an event loop."""
    deadline = time.monotonic() + 2 * PATIENCE_SECONDS
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A cluster of two workers for all tests that don't break it."""
    cluster = DaskCluster(tmp_path_factory.mktemp("dask"))
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()


MakeCluster = Callable[..., DaskCluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """Makes clusters with a scheduler and no worker, for tests that break them."""
    made: list[DaskCluster] = []

    def make(**variables: str) -> DaskCluster:
        folder = tmp_path / f"dask-{len(made)}"
        folder.mkdir()
        made.append(DaskCluster(folder, **variables))
        made[-1].start_scheduler()
        return made[-1]

    yield make
    for cluster in made:
        cluster.stop()


class MakeDask(Protocol):
    """Makes a backend on a Dask cluster."""

    def __call__(self, address: str, **options: Any) -> DaskBackend:
        """`options` are the backend's."""


@pytest.fixture
def dask(tools: Tools, tmp_path: Path) -> MakeDask:
    """Makes Dask backends; the test starts the cluster."""

    def make(address: str, **options: Any) -> DaskBackend:
        return DaskBackend(address, runtime_in(tmp_path), **options)

    return make


# -- Modal ----------------------------------------------------------------------------


ONE_CONTAINER = replace(MODAL_OPTIONS, max_parallel=MODAL_OPTIONS.slots)


class MakeModal(Protocol):
    """Makes a backend on the Modal server of the tests."""

    def __call__(self, modal_options: ModalOptions = ..., **options: Any) -> ModalBackend:
        """`options` are the backend's."""


@pytest.fixture
def modal(modal_server: RunningServer, tools: Tools, tmp_path: Path) -> MakeModal:
    """Makes Modal backends; the server runs, and the app is deployed."""

    def make(modal_options: ModalOptions = MODAL_OPTIONS, **options: Any) -> ModalBackend:
        given = {"concurrency": 50, "poll_seconds": 2.0, **options}
        return ModalBackend(modal_options, runtime_in(tmp_path), **given)

    return make


ON_ONE_CLUSTER = pytest.mark.xdist_group("dask")
"""For tests that use the shared cluster: one process of the tests starts it."""

MARKS = {"dask": [ON_ONE_CLUSTER], "modal": [pytest.mark.xdist_group("modal")]}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, [])) for name in BACKENDS])
async def harness(
    request: pytest.FixtureRequest,
    local: LocalBackend,
    fleet: MakeFleet,
    dask: MakeDask,
    executors: Executors,
    tools: Tools,
    tmp_path: Path,
) -> AsyncIterator[Harness]:
    """Each backend in turn, with its executor and its tools."""
    async with contextlib.AsyncExitStack() as opened:
        if request.param == "fleet":
            await opened.enter_async_context(executors())
        make: dict[str, Callable[[], Backend]] = {
            "local": lambda: local,
            "fleet": fleet,
            "dask": lambda: dask(request.getfixturevalue("shared_cluster").address),
            "modal": lambda: request.getfixturevalue("modal")(ONE_CONTAINER),
        }
        yield Harness(make[request.param](), tools, tmp_path)


async def written(path: Path) -> str:
    """Wait until a tool has written the file, and return its text."""

    async def text() -> str:
        return path.read_text() if path.exists() else ""

    return str(await eventually(text, f"{path.name} to be written"))


async def gone(pid: str) -> None:
    """Wait until the process has ended."""

    async def has_ended() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await eventually(has_ended, "the end of the process")


class Proxy:
    """Passes bytes on between clients and a server, until the connections are cut."""

    def __init__(self, address: str) -> None:
        self._host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._port = int(port)
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self, port: int = 0) -> None:
        """Take connections."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.address = f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """Cut all connections, and take no more."""
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs_reader, theirs = await asyncio.open_connection(self._host, self._port)
        self._open |= {writer, theirs}
        await asyncio.gather(_pass(reader, theirs), _pass(theirs_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while content := await reader.read(65_536):
            writer.write(content)
            await writer.drain()
    writer.close()
