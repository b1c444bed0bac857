"""What only the Dask backend promises: whose workers it uses, how code and artifacts travel, what it says."""

import asyncio
import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from distributed import Adaptive, Client, LocalCluster

from services.executor.artifacts import LocalBlobs
from services.executor.isolation.calls import Event, Metric, Progress
from services.executor.outcome import Status
from services.planner.backends import BACKENDS, backend_class, dask_connection
from services.planner.backends.dask_connection import PRELOAD, QUEUED, version_differences
from services.planner.backends.dask_local import scheduler_address
from services.planner.backends.dask_worker import versions
from services.planner.backends.remote import (
    CollectedBlobs,
    event_of,
    event_text,
    shared_store,
    store_contents,
)
from shared.errors import ArtifactCorruptError, ArtifactNotFoundError, PlanError
from tests.conftest import Tools, eventually
from tests.isolation.workshop import Workshop
from tests.planner.backends.conftest import (
    DaskCluster,
    MakeCluster,
    MakeDask,
    execution,
)

pytestmark = pytest.mark.xdist_group("dask")

ROOT = Path(__file__).parents[3]


# -- workers --------------------------------------------------------------------------


async def test_a_worker_without_the_pool_is_left_alone_and_one_that_comes_is_used(
    make_cluster: MakeCluster, dask: MakeDask, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_connection, "SILENCE_SECONDS", 0.0)
    tools("noop", "def noop(): return 1\n")
    told: list[str] = []
    cluster = make_cluster()
    foreign = cluster.start_worker(preload=False)
    async with Client(cluster.address, asynchronous=True, set_as_default=False) as client:
        await client.wait_for_workers(1)
        async with dask(cluster.address, tell=told.append, poll_seconds=0.1) as backend:
            assert backend.capacity == QUEUED
            call = asyncio.create_task(backend.run(execution("noop", {}, timeout_seconds=60)))
            await eventually(lambda: _true(told), "the user to be told")
            cluster.start_worker(threads=40)
            result = await call

            assert result.status is Status.COMPLETED
            assert backend.capacity == 80  # forty run, and as many wait for them
            assert foreign.poll() is None
            assert len((await client.scheduler.identity(n_workers=-1))["workers"]) == 2
    assert told == [
        f"no worker of the Dask cluster at {cluster.address} runs tools (1 others are left alone); the plan "
        f"waits for one: start it with `dask worker {cluster.address} --preload {PRELOAD}`",
        "a worker of the Dask cluster runs tools; the plan continues",
    ]


async def _true(value: Any) -> bool:
    return bool(value)


async def test_a_cluster_that_scales_by_its_queue_starts_workers_for_calls(
    dask: MakeDask, tools: Tools, tmp_path: Path
) -> None:
    tools("noop", "def noop(n): return n\n")
    cluster = LocalCluster(
        n_workers=0, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0",
        preload=[PRELOAD], local_directory=str(tmp_path / "dask"), asynchronous=True,
    )  # fmt: skip
    async with cluster:
        cluster.adapt(minimum=0, maximum=1, interval="100ms", Adaptive=Adaptive)
        async with dask(cluster.scheduler_address, poll_seconds=0.1) as backend:
            calls = [backend.run(execution("noop", {"n": n}, n, timeout_seconds=60)) for n in range(4)]
            results = await asyncio.gather(*calls)
    assert [one.result for one in results] == ["0", "1", "2", "3"]


async def test_workers_of_the_same_versions_are_not_mentioned(
    shared_cluster: DaskCluster, dask: MakeDask, tools: Tools
) -> None:
    told: list[str] = []
    tools("noop", "def noop(): return 1\n")
    async with dask(shared_cluster.address, tell=told.append) as backend:
        await backend.run(execution("noop", {}, timeout_seconds=60))

    assert [line for line in told if "results may differ" in line] == []


def test_versions_that_differ_are_named() -> None:
    ours = versions()
    theirs = {"tcp://a:1": ours, "tcp://b:2": {**ours, "Python": "3.0"}, "tcp://c:3": OSError("no answer")}

    assert version_differences(ours, theirs) == [
        f"worker tcp://b:2 has Python 3.0, and this command {ours['Python']}; results may differ"
    ]


# -- code -----------------------------------------------------------------------------


async def test_the_code_of_a_tool_travels_with_its_neighbours_and_its_package(
    shared_cluster: DaskCluster, dask: MakeDask, tools: Tools, tmp_path: Path
) -> None:
    tools("helper", "VALUE = 41\n")
    tools("single", "import helper\ndef single(): return helper.VALUE + 1\n")
    package = tmp_path / "tools" / "packed"
    package.mkdir()
    (package / "__init__.py").write_text("from packed.inner import value\ndef packed(): return value()\n")
    (package / "inner.py").write_text("def value(): return 'inner'\n")
    async with dask(shared_cluster.address) as backend:
        results = [
            await backend.run(execution(name, {}, timeout_seconds=60)) for name in ("single", "packed")
        ]

    assert [one.result for one in results] == ["42", '"inner"']
    assert len({one.tool_digest for one in results}) == 2


async def test_two_tools_may_have_the_same_code(
    shared_cluster: DaskCluster, dask: MakeDask, tools: Tools
) -> None:
    for name in ("one", "other"):
        tools(name, "def run(): return __name__\n")
    async with dask(shared_cluster.address) as backend:
        results = [await backend.run(execution(name, {}, timeout_seconds=60)) for name in ("one", "other")]

    assert [one.result for one in results] == ['"one"', '"other"']


async def test_a_tool_has_its_own_packages_on_the_worker(
    make_cluster: MakeCluster, dask: MakeDask, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    shop.wheel("parcel", "1.5")
    for name, value in shop.environ.items():
        monkeypatch.setenv(name, value)
    block = "# /// script\n# dependencies = ['parcel>=1']\n# ///\n"
    tools("needy", f"{block}import sys\nimport parcel\ndef needy(): return [parcel.VERSION, sys.prefix]\n")
    cluster = make_cluster()
    cluster.start_worker()
    async with dask(cluster.address) as backend:
        result = await backend.run(execution("needy", {}, timeout_seconds=60))

    assert result.error is None
    version, prefix = json.loads(result.loader.load_text(str(result.result)))
    assert version == "1.5"
    assert Path(prefix).is_relative_to(cluster.folder / ".fullsend" / "environments")


async def test_code_that_changes_is_sent_again(
    shared_cluster: DaskCluster, dask: MakeDask, tools: Tools
) -> None:
    async with dask(shared_cluster.address) as backend:
        results = []
        for number in (1, 2):
            tools("changing", f"def changing(): return {number}\n")
            results.append(await backend.run(execution("changing", {}, timeout_seconds=60)))

    assert [one.result for one in results] == ["1", "2"]
    assert results[0].tool_digest != results[1].tool_digest


# -- what comes back ------------------------------------------------------------------


async def test_large_numbers_in_reports_harm_no_worker(
    shared_cluster: DaskCluster, dask: MakeDask, tools: Tools
) -> None:
    heard: list[Event] = []
    tools(
        "loud",
        """
        from shared import toolkit
        def loud():
            toolkit.metric("huge", 1e300, size=10**40)
            toolkit.progress(1)
            return 10**40
        """,
    )
    async with dask(shared_cluster.address) as backend:
        result = await backend.run(execution("loud", {}, timeout_seconds=60), report=heard.append)
        again = await backend.run(execution("loud", {}, timeout_seconds=60))

    assert (result.result, again.result) == (str(10**40), str(10**40))
    assert Metric("huge", 1e300, {"size": 10**40}) in heard


async def test_nothing_that_a_run_stored_is_left_on_the_worker(
    shared_cluster: DaskCluster, dask: MakeDask, tools: Tools
) -> None:
    tools("store", "from shared import toolkit\ndef store():\n  toolkit.artifact('a', b'x' * 100_000)\n")
    async with dask(shared_cluster.address) as backend:
        result = await backend.run(execution("store", {}, timeout_seconds=60))

    assert result.loader.load_bytes(result.artifacts["a"]) == b"x" * 100_000
    address = result.artifacts["a"].removeprefix("cas://")
    assert [path for path in shared_cluster.folder.rglob("*") if path.name == address] == []


@pytest.mark.parametrize(
    "event", [Progress(1, 2, "x"), Progress(0.5, None, ""), Metric("a", 1.5, {"b": [1]})]
)
def test_events_are_the_same_after_their_way(event: Event) -> None:
    assert event_of(event_text(event) or "") == event


@pytest.mark.parametrize(
    ("storage_type", "base", "expected"),
    [
        ("local", "/a", None),
        ("memory", "memory://a", None),
        ("s3", "s3://b/p", "s3://b/p"),
        ("gs", "gs://b", "gs://b"),
    ],
)
def test_only_a_store_in_the_network_is_shared(storage_type: str, base: str, expected: str | None) -> None:
    assert shared_store(storage_type, base) == expected


# -- which cluster --------------------------------------------------------------------


def test_the_scheduler_is_the_given_one_then_that_of_dasks_configuration() -> None:
    import dask.config

    with dask.config.set({"scheduler-address": "tcp://configured:8786"}):
        assert scheduler_address("tcp://given:1") == "tcp://given:1"
        assert scheduler_address(None) == "tcp://configured:8786"
    with pytest.raises(PlanError, match="which Dask cluster"):
        scheduler_address(None)


async def test_a_scheduler_that_does_not_answer_is_named(
    dask: MakeDask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dask_connection, "CONNECT_SECONDS", 0.2)
    with pytest.raises(PlanError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1: "):
        async with dask("tcp://127.0.0.1:1"):
            pass


def test_a_missing_package_is_told_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(BACKENDS["dask"], requires="no-such-package-of-that-name>=1")
    monkeypatch.setattr("services.planner.backends.BACKENDS", {**BACKENDS, "dask": missing})

    with pytest.raises(PlanError) as caught:
        backend_class("dask")

    assert str(caught.value) == (
        "the backend 'dask' needs another package; install it with: "
        "python -m pip install 'no-such-package-of-that-name>=1'"
    )


def test_the_package_is_the_one_of_the_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["optional-dependencies"]["dask"] == [BACKENDS["dask"].requires]


def test_content_that_has_changed_on_its_way_is_not_stored(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)

    with pytest.raises(ArtifactCorruptError):
        store_contents({"a" * 64: b"something else"}, blobs)

    assert list(blobs.all()) == []


def test_what_a_run_stores_is_held_until_it_is_sent(tmp_path: Path) -> None:
    blobs, file = CollectedBlobs(), tmp_path / "file"
    file.write_bytes(b"x" * 3_000_000)

    first, second = blobs.put(file), blobs.put(b"y")

    assert blobs.verify(first.sha256) == first
    assert (blobs.read(second.sha256), blobs.size(first.sha256)) == (b"y", 3_000_000)
    assert {one.sha256 for one in blobs.all()} == {first.sha256, second.sha256}
    assert (blobs.delete(second.sha256), blobs.exists(second.sha256)) == (True, False)
    with pytest.raises(ArtifactNotFoundError):
        blobs.read(second.sha256)
    with pytest.raises(ArtifactCorruptError):
        blobs.put(b"z", expected_sha256=first.sha256)
