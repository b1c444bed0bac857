"""The service API: from a manifest to test results, by a function, a backend or real tools."""

import asyncio
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from services.planner.cancellation import CancellationToken
from services.planner.models import RunManifest, TestCase
from services.planner.runtime import RuntimeConfig
from services.planner.scheduler import TaskScheduler
from services.planner.service import ExecutorService
from services.planner.tasks import Task, TestResult, TestStatus
from shared.errors import ExecutorException, PlanError
from tests.planner.conftest import Laboratory
from tests.planner.scripted import Scripted, plan

NOW = datetime(2030, 1, 1, tzinfo=UTC)

TOOL = """
import os, sys, time


class Odd(BaseException):
    pass


def tool(n):
    if n == 1:
        raise ValueError("no")
    if n == 2:
        os._exit(3)
    if n == 3:
        time.sleep(600)
    if n == 4:
        raise Odd("no")
    if n == 5:
        sys.exit(1)
    if n == 6:
        return object()
    return {"n": n, "tokens_used": 3, "cost": 0.5}
"""
PRYING = """
import os

def tool(n):
    came, pid = [], os.getpid()
    for _ in range(3):  # the fork server, its guard, the planner
        pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])
        try:
            came.append(open(f"/proc/{pid}/environ").read())
        except OSError as error:
            came.append(type(error).__name__)
    return {"above": came}
"""
STATES = ["succeeded", "failed", "error", "timeout", "failed", "failed", "failed", "succeeded"]


@pytest.fixture
def places(tmp_path: Path) -> RuntimeConfig:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "tool.py").write_text(TOOL)
    return RuntimeConfig(
        tools_path=tools,
        artifacts=str(tmp_path / "store"),
        bundles_path=tmp_path / "bundles",
        environments_path=tmp_path / "environments",
    )


def test_a_plan_of_tools_that_do_everything_wrong_has_a_result_for_each(places: RuntimeConfig) -> None:
    manifest = plan(8, concurrency=2, stop_conditions={"timeout_per_task": 3})

    found = ExecutorService(config=places).execute_test_plan(manifest)

    assert [one.metadata["task_status"] for one in found] == STATES
    assert (found[7].outputs["n"], found[7].tokens_used, found[7].cost) == (7, 3, 0.5)
    assert found[7].inputs == {"n": 7}
    assert found[1].error_message == "no"
    assert [one.dataset for one in found] == [f"d{number}" for number in range(8)]


def test_a_tool_reaches_nothing_of_the_planner(places: RuntimeConfig) -> None:
    (places.tools_path / "tool.py").write_text(PRYING)

    (found,) = ExecutorService(config=places).execute_test_plan(plan(1))

    assert found.outputs == {"above": ["PermissionError"] * 3}


async def test_the_call_without_await_works_in_a_loop_too(places: RuntimeConfig) -> None:
    (found,) = ExecutorService(config=places).execute_test_plan(plan(1))

    assert found.status is TestStatus.SUCCESS


async def test_a_backend_that_is_ready_is_used_as_it_is(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    lab.tool("tool", TOOL)
    async with lab.backend as backend:
        (found,) = await ExecutorService(backend=backend).execute_test_plan_async(plan(1))

    assert found.outputs["n"] == 0


def test_a_function_that_makes_a_backend_is_called_for_each_plan(tmp_path: Path) -> None:
    made: list[Laboratory] = []

    def make() -> Any:
        made.append(Laboratory(tmp_path))
        made[-1].tool("tool", TOOL)
        return made[-1].backend

    service = ExecutorService(backend=make)
    found = [*service.execute_test_plan(plan(1)), *service.execute_test_plan(plan(1))]

    assert [one.status for one in found] == [TestStatus.SUCCESS] * 2
    assert len(made) == 2
    assert [lab.runtime.pool.counts()["idle"] for lab in made] == [0, 0]


def test_a_functions_result_arrives_unchanged() -> None:
    def custom(task: Task) -> TestResult:
        return TestResult(
            workflow_id=task.workflow_id,
            execution_id=task.task_id,
            timestamp=NOW,
            status=TestStatus.SUCCESS,
            execution_time=1.0,
            tokens_used=100,
            cost=0.002,
            inputs={"prompt": "hello"},
            outputs={"result": "success"},
        )

    found = ExecutorService(task_execution_func=custom).execute_test_plan(plan(120, concurrency=4))

    assert len(found) == 120
    assert {(one.tokens_used, one.cost, one.status) for one in found} == {(100, 0.002, TestStatus.SUCCESS)}
    assert found[119].inputs == {"prompt": "hello"}
    assert found[119].outputs == {"result": "success"}


def test_metadata_of_the_plan_and_of_the_case_come_back() -> None:
    cases = (TestCase(scenario="s", metadata={"owner": "me"}),)
    manifest = RunManifest(workflow_id="w", tool="t", cases=cases, metadata={"study": 7})

    (found,) = ExecutorService(lambda task: None).execute_test_plan(manifest)

    assert {"study": 7, "owner": "me", "scenario": "s", "attempt_count": 1}.items() <= found.metadata.items()


def test_clock_sleep_and_ids_can_be_given() -> None:
    slept: list[float] = []
    service = ExecutorService(
        lambda task: None, now_fn=lambda: NOW, sleep_fn=slept.append, id_fn=lambda: "the id"
    )

    found = service.execute_test_plan(plan(2, rate_control={"per_minute": 60}))

    assert [(one.execution_id, one.timestamp, one.execution_time) for one in found] == [
        ("the id", NOW, 0)
    ] * 2
    assert slept == [1]


def test_a_plan_can_be_cancelled_from_another_thread() -> None:
    token, running = CancellationToken(), threading.Event()

    async def waiting(task: Task) -> None:
        running.set()
        await asyncio.sleep(600)

    def cancel() -> None:
        running.wait(30)
        token.cancel("enough")

    thread = threading.Thread(target=cancel)
    thread.start()
    found = ExecutorService(waiting).execute_test_plan(plan(3), token)
    thread.join()

    assert [one.status for one in found] == [TestStatus.ERROR] * 3
    assert {one.metadata["task_status"] for one in found} == {"cancelled"}
    assert {one.error_message for one in found} == {"enough"}


def test_cases_of_a_sweep_are_cases() -> None:
    sweep = {"dimensions": {"a": [1, 2], "b": [3]}}
    manifest = RunManifest.model_validate({"workflow_id": "w", "tool": "t", "sweep": sweep})

    found = ExecutorService(lambda task: dict(task.parameters)).execute_test_plan(manifest)

    assert [one.outputs for one in found] == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]


def test_none_as_a_manifest_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^manifest cannot be None$"):
        ExecutorService().execute_test_plan(None)  # type: ignore[arg-type]


def test_a_plan_needs_cases() -> None:
    with pytest.raises(ExecutorException, match=r"^RunManifest.cases cannot be empty$"):
        ExecutorService().execute_test_plan(plan(0))


def test_a_service_takes_either_a_backend_or_a_function() -> None:
    with pytest.raises(ValueError, match="not both"):
        ExecutorService(print, Scripted())


async def test_an_invalid_criterion_is_raised_wherever_the_plan_is_executed() -> None:
    manifest = plan(0).model_copy(update={"cases": ()})

    with pytest.raises(PlanError, match="cannot be empty"):
        await ExecutorService().execute_test_plan_async(manifest)
    with pytest.raises(PlanError, match="cannot be empty"):
        ExecutorService().execute_test_plan(manifest)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (None, ValueError, "manifest cannot be None"),
        ({"workflow_id": "w"}, TypeError, "manifest must be a RunManifest, not dict; RunManifest.model_val"),
    ],
)
def test_what_is_no_manifest_is_refused_with_one_sentence(
    given: Any, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        ExecutorService(backend=Scripted()).execute_test_plan(given)
    with pytest.raises(error, match=says):
        TaskScheduler(Scripted()).run_manifest(given)


def test_a_result_keeps_the_class_of_the_exception() -> None:
    def fail(task: Task) -> TestResult:
        if task.index == 0:
            raise LookupError("gone")
        return TestResult("w", "e", NOW, TestStatus.FAILED, 0.0, error_message="no", error_type="OwnError")

    found = ExecutorService(fail).execute_test_plan(plan(2))

    assert [(one.error_type, one.error_message) for one in found] == [
        ("LookupError", "gone"),
        ("OwnError", "no"),
    ]
