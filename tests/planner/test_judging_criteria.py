"""The evaluator's criteria hold wherever a plan is executed; those that can't be judged are refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import structlog

from services.planner.execution import Execution, ExecutionResult
from services.planner.models import Evaluator, RunManifest, TestCase
from services.planner.plan import Plan
from services.planner.runtime import RuntimeConfig
from services.planner.scheduler import TaskScheduler
from services.planner.scheduling.early_stop import criteria_needing_evaluations
from services.planner.service import ExecutorService
from services.planner.tasks import TaskResult
from shared.errors import PlanError
from tests.planner.conftest import Laboratory, MakeLaboratory
from tests.planner.scripted import Scripted, execute, plan, result, states

TOOL = """
import time

def tool(x):
    if x > 100: time.sleep(600)
    return {"x": x}

def aggregate(replicates, target_data):
    xs = [one["result"]["x"] for one in replicates]
    return {"loss": abs(sum(xs) / len(xs) - target_data)}
"""
NEEDS = "the criterion 'loss < 0.1' needs evaluations"


def judged(cases: int, **criteria: Any) -> RunManifest:
    """A plan with criteria."""
    return plan(cases).model_copy(update={"evaluator": Evaluator(**criteria)})


def found_early() -> RunManifest:
    """The first case comes to what is looked for; the others would take ten minutes."""
    cases = (TestCase(parameters={"x": 3}, replicates=2), TestCase(parameters={"x": 999}, replicates=2))
    evaluator = Evaluator(target_data=3, success_criteria=("loss < 0.1",))
    return RunManifest(workflow_id="plan", tool="tool", cases=cases, evaluator=evaluator)


async def number(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
    return result(call, value=json.dumps({"answered": call.parameters["n"], "loss": 0}))


@pytest.fixture
async def lab(laboratory: MakeLaboratory) -> Laboratory:
    one = await laboratory()
    one.tool("tool", TOOL)
    return one


# -- over results ---------------------------------------------------------------------


async def test_criteria_over_results_stop_what_a_backend_executes() -> None:
    manifest = judged(9, failure_criteria=("answered >= 1.5 after 3",))

    found = await execute(Scripted(number), manifest)

    assert found.stopped == "failure criterion holds: answered >= 1.5 after 3"
    assert states(found) == ["succeeded"] * 4 + ["cancelled"] * 5


def test_criteria_over_results_stop_what_a_function_executes() -> None:
    manifest = judged(9, success_criteria=("answered >= 1", "n >= 2"))

    found = ExecutorService(lambda task: {"answered": task.index}).execute_test_plan(manifest)

    assert [one.metadata["task_status"] for one in found] == ["succeeded"] * 3 + ["cancelled"] * 6
    assert found[8].error_message == "success criteria hold: answered >= 1, n >= 2"


async def test_a_criterion_that_could_never_be_judged_is_logged() -> None:
    with structlog.testing.capture_logs() as logs:
        found = await execute(Scripted(number), judged(2, failure_criteria=("anwsered > 1",)))

    assert found.stopped is None
    assert [one["criterion"] for one in logs if one["event"] == "criterion.not_judged"] == [
        "anwsered > 1: there is no anwsered yet"
    ]


async def test_a_given_stopper_replaces_the_criteria() -> None:
    manifest = judged(5, failure_criteria=("n >= 1", "loss < 0.1"))

    found = await execute(Scripted(), manifest, criteria=lambda one: "enough" if one.index == 2 else None)

    assert (found.stopped, found.statistics.succeeded) == ("enough", 3)


async def test_an_evaluator_without_criteria_stops_nothing() -> None:
    assert (await execute(Scripted(number), judged(3))).stopped is None


# -- over evaluations -----------------------------------------------------------------


async def test_a_criterion_over_evaluations_stops_a_plan_after_the_first_evaluation(lab: Laboratory) -> None:
    found = await execute(lab.backend, found_early())

    assert found.stopped == "success criteria hold: loss < 0.1"
    assert states(found) == ["succeeded"] * 2 + ["cancelled"] * 2


def test_a_service_with_processes_of_its_own_evaluates_too(tmp_path: Path) -> None:
    lab = Laboratory(tmp_path)
    lab.tool("tool", TOOL)
    places = RuntimeConfig(
        tools_path=lab.tools,
        artifacts=str(tmp_path / "store"),
        bundles_path=tmp_path / "bundles",
        environments_path=tmp_path / "environments",
    )

    found = ExecutorService(config=places).execute_test_plan(found_early())

    assert [one.metadata["task_status"] for one in found] == ["succeeded"] * 2 + ["cancelled"] * 2
    assert {one.error_message for one in found[2:]} == {"success criteria hold: loss < 0.1"}


async def test_a_criterion_that_nothing_can_evaluate_is_refused_at_the_start(tmp_path: Path) -> None:
    manifest, backend = judged(3, success_criteria=("n >= 1", "loss < 0.1")), Scripted(number)
    written = Plan.create(manifest, tmp_path / "p")

    with pytest.raises(PlanError, match=NEEDS):
        await execute(backend, manifest)
    with pytest.raises(PlanError, match=NEEDS):
        await ExecutorService(lambda task: 1).execute_test_plan_async(manifest)
    with pytest.raises(PlanError, match=NEEDS):
        await written.run(backend)  # type: ignore[arg-type]
    assert backend.calls == []


@pytest.mark.parametrize(
    ("text", "needs"),
    [
        ("loss < 1", True),
        ("not (n > 1 or diagnostics.a.b == 'x') after 3", True),
        ("n > 1 and outputs.x == 1", True),
        ("result.loss < 1 or losses < 1 or outputs_x < 1", False),
    ],
)
def test_criteria_that_need_evaluations_are_known_by_their_names(text: str, needs: bool) -> None:
    assert criteria_needing_evaluations(Evaluator(failure_criteria=(text,))) == ((text,) if needs else ())


async def test_names_of_evaluations_are_not_looked_up_in_results(lab: Laboratory) -> None:
    lab.tool("tool", TOOL.replace('{"x": x}', '{"x": x, "loss": 0}').replace("x > 100", "False"))

    found = await execute(lab.backend, found_early().model_copy(update={"evaluator": Evaluator(
        target_data=50, success_criteria=("loss < 0.1",))}))  # fmt: skip

    assert (found.stopped, found.statistics.succeeded) == (None, 4)


# -- a plan on disk -------------------------------------------------------------------


async def test_a_resumed_plan_counts_earlier_cases(tmp_path: Path) -> None:
    written = Plan.create(judged(9, failure_criteria=("answered >= 1.5",)), tmp_path / "p")
    backend: Any = Scripted(number)

    def second(one: TaskResult) -> str | None:
        return "two" if one.index == 1 else None

    first = await written.run(backend, stoppers=(second,))
    last = await written.resume(backend)

    assert (first.stopped, last.stopped) == ("two", "failure criterion holds: answered >= 1.5")
    assert backend.numbers == [0, 1, 2, 3]


async def test_a_resumed_plan_evaluates_earlier_and_new_replicates_together(
    lab: Laboratory, tmp_path: Path
) -> None:
    written = Plan.create(found_early(), tmp_path / "p")

    first = await written.run(lab.backend, stoppers=(lambda one: "one",))
    last = await written.resume(lab.backend)

    assert (first.stopped, first.statistics.succeeded) == ("one", 1)
    assert (last.stopped, last.statistics.succeeded) == ("success criteria hold: loss < 0.1", 2)


async def test_a_criterion_that_holds_already_lets_no_case_begin(tmp_path: Path) -> None:
    written = Plan.create(judged(4, failure_criteria=("n >= 2",)), tmp_path / "p")
    backend: Any = Scripted(number)
    await written.run(backend)

    again = await written.resume(backend)

    assert backend.numbers == [0, 1]
    assert again.stopped == "failure criterion holds: n >= 2"


def test_a_synchronous_call_is_refused_in_the_same_way() -> None:
    with pytest.raises(PlanError, match=NEEDS):
        TaskScheduler(Scripted()).run_manifest(judged(1, success_criteria=("loss < 0.1",)))
