"""The backend of a plan: an open one of the caller, or one that is made for the call."""

import asyncio
from pathlib import Path
from typing import Any, Self

import pytest

from services.planner.backends.local import LocalBackend
from services.planner.execution import Execution, ExecutionResult
from services.planner.plan import Plan
from services.planner.scheduler import TaskScheduler
from services.planner.service import ExecutorService
from shared.errors import PlanError
from tests.planner.conftest import Laboratory
from tests.planner.scripted import Scripted, plan, result, states

TOOL = "def tool(n):\n    return n\n"


@pytest.fixture
def made(tmp_path: Path) -> list[Laboratory]:
    """What `maker` has made so far."""
    return []


@pytest.fixture
def maker(tmp_path: Path, made: list[Laboratory]) -> Any:
    """A function that makes backends."""

    def make() -> LocalBackend:
        made.append(Laboratory(tmp_path))
        made[-1].tool("tool", TOOL)
        return made[-1].backend

    return make


def test_a_scheduler_opens_what_a_function_makes_for_each_plan(maker: Any, made: list[Laboratory]) -> None:
    scheduler = TaskScheduler(maker)
    found = [scheduler.run_manifest(plan(3, concurrency=9)) for _ in range(2)]

    assert [states(one) for one in found] == [["succeeded"] * 3] * 2
    assert [lab.runtime.pool.counts()["idle"] for lab in made] == [0, 0]


async def test_a_scheduler_opens_a_backend_inside_a_running_loop(maker: Any, made: list[Laboratory]) -> None:
    scheduler = TaskScheduler(maker)
    found = [scheduler.run_manifest(plan(1)), await scheduler.run_manifest_async(plan(1))]

    assert [states(one) for one in found] == [["succeeded"]] * 2
    assert len(made) == 2


class Counting(Scripted):
    """A scripted backend that is opened for the time of its use."""

    def check_open(self) -> None:
        """It always is."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...


async def test_the_capacity_is_that_of_the_backend_that_was_made() -> None:
    async def slow_success(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        await asyncio.sleep(0.01)
        return result(call)

    backend = Counting(slow_success, capacity=2)
    await TaskScheduler(lambda: backend).run_manifest_async(plan(12, concurrency=12))

    assert backend.most_busy == 2


def test_a_backend_that_is_not_open_is_refused(maker: Any) -> None:
    with pytest.raises(PlanError, match=r"the LocalBackend is not open: .*, or give a function that makes"):
        TaskScheduler(maker()).run_manifest(plan(1))
    with pytest.raises(PlanError, match="is not open"):
        ExecutorService(backend=maker()).execute_test_plan(plan(1))


async def test_a_backend_of_another_loop_is_refused(maker: Any) -> None:
    async with maker() as backend:
        with pytest.raises(PlanError, match="another event loop: there, await `run_manifest_async`"):
            TaskScheduler(backend).run_manifest(plan(1))
        with pytest.raises(PlanError, match="another event loop"):
            ExecutorService(backend=backend).execute_test_plan(plan(1))

        assert states(await TaskScheduler(backend).run_manifest_async(plan(1))) == ["succeeded"]


def test_a_backend_left_open_in_a_closed_loop_is_refused(maker: Any) -> None:
    backend = maker()
    with asyncio.Runner() as runner:
        runner.run(backend.__aenter__())
        with pytest.raises(PlanError, match="another event loop"):
            TaskScheduler(backend).run_manifest(plan(1))
        runner.run(backend.__aexit__(None, None, None))


async def test_a_plan_is_not_executed_on_a_backend_that_is_not_open(maker: Any, tmp_path: Path) -> None:
    one, backend = Plan.create(plan(1), tmp_path / "plan"), maker()

    with pytest.raises(PlanError, match="is not open"):
        await one.run(backend)
    async with backend:
        assert states(await one.run(backend)) == ["succeeded"]


class Broken(Counting):
    """A backend that can't be opened."""

    async def __aenter__(self) -> Self:
        raise PlanError("no process can be started")


async def test_the_error_that_keeps_a_backend_from_opening_is_raised() -> None:
    with pytest.raises(PlanError, match="no process can be started"):
        await TaskScheduler(Broken).run_manifest_async(plan(1))
