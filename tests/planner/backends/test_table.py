"""The table of backends: what the command offers, imports and opens."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.executor.store import Store
from services.planner.backends import (
    BACKENDS,
    DEFAULT_BACKEND,
    PlanContext,
    backend_class,
    backend_name,
    runtime_of,
)
from services.planner.backends.local import LOCAL_CAPACITY, LocalBackend
from services.planner.backends.modal_backend import ModalBackend
from services.planner.backends.modal_options import ModalOptions
from services.planner.cost.tariffs import tariff_of
from services.planner.runtime import RuntimeConfig, ToolRuntime
from shared.errors import PlanError
from tests.conftest import Tools
from tests.modal_server import RunningServer
from tests.planner.backends.conftest import MARKS, execution


def context(folder: Path, store: Store, told: list[str], concurrency: int = 2) -> PlanContext:
    """What a command has for a plan without an evaluator."""

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[Store]:
        yield store

    config = RuntimeConfig(
        tools_path=folder / "tools",
        artifacts=str(folder / "artifacts"),
        bundles_path=folder / "bundles",
        environments_path=folder / "environments",
    )
    return PlanContext(
        plan_id="p1",
        concurrency=concurrency,
        has_evaluator=False,
        storage_type="local",
        storage_base=str(folder / "artifacts"),
        make_runtime=lambda capacity: ToolRuntime(config, capacity, os.environ),
        connect=connect,
        tell=told.append,
        dask_scheduler="local",
    )


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, [])) for name in BACKENDS])
async def test_every_backend_of_the_table_opens_for_a_plan(
    name: str, store: Store, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "modal":
        request.getfixturevalue("modal_server")
    given = context(tmp_path, store, [])

    assert await backend_class(name).plan_capacity(given) >= 1
    async with backend_class(name).open_for_plan(given) as backend:
        backend.check_open()
        assert backend_name(backend) == name


@pytest.mark.parametrize("name", [pytest.param("modal", marks=MARKS["modal"])])
async def test_a_plan_on_modal_costs_what_the_container_of_its_tool_costs(
    name: str, store: Store, tmp_path: Path, tools: Tools, modal_server: RunningServer
) -> None:
    header = "# /// script\n# [tool.fullsend.modal]\n# cpu = 2\n# memory_mib = 2048\n# gpu = 'T4'\n# ///\n"
    tools("echo", f"{header}def echo(n): return n")

    tariff = await tariff_of(name, context(tmp_path, store, []), "echo")

    assert (tariff.per_second or 0) * 3_600 == pytest.approx(2 * 0.072 + 2 * 0.036 + 0.36)
    assert tariff.rates is not None
    assert tariff.rates.source.startswith("Modal, asked on 20")


async def test_a_local_backend_has_a_runtime_for_evaluations(
    store: Store, tmp_path: Path, tools: Tools
) -> None:
    tools("echo", "def echo(n): return n")
    async with LocalBackend.open_for_plan(context(tmp_path, store, [])) as backend:
        results = await asyncio.gather(*(backend.run(execution("echo", {"n": n}, n)) for n in range(3)))

        assert isinstance(runtime_of(backend), ToolRuntime)
    assert [one.result for one in results] == ["0", "1", "2"]


async def test_a_local_backend_warns_of_less_capacity_than_the_plan_asks_for(
    store: Store, tmp_path: Path
) -> None:
    told: list[str] = []

    assert await LocalBackend.plan_capacity(context(tmp_path, store, told, 500)) == LOCAL_CAPACITY
    assert told == [f"the plan asks for 500 cases at once; local runs at most {LOCAL_CAPACITY}"]


async def test_a_modal_backend_says_that_cases_will_wait_there(store: Store, tmp_path: Path) -> None:
    told: list[str] = []
    given = context(tmp_path, store, told, 500)

    assert await ModalBackend.plan_capacity(given) == 500
    assert await ModalBackend.plan_capacity(replace(given, modal=ModalOptions(max_parallel=50))) == 50
    assert told == ["the plan asks for 500 cases at once; MODAL_MAX_PARALLEL allows 50; the others wait"]


def test_the_default_backend_is_in_the_table() -> None:
    assert DEFAULT_BACKEND in BACKENDS


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(
        PlanError, match="there is no backend 'nowhere'; known are local, fleet, dask, modal, or give"
    ):
        backend_class("nowhere")
    with pytest.raises(PlanError, match=r"the backend 'no\.module:Class' can't be imported"):
        backend_class("no.module:Class")
