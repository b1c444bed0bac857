"""Evaluations: each case as soon as its replicates have ended, and the criteria over them."""

import asyncio
import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.planner.cancellation import GoalReached
from services.planner.evaluation import Evaluation, Evaluations
from services.planner.execution import Execution, RunOptions
from services.planner.models import Evaluator, RunManifest, TestCase
from services.planner.report import write_report
from services.planner.scheduler import TaskScheduler
from services.planner.scheduling.early_stop import CriteriaTracker
from services.planner.tasks import TaskResult, TaskStatus
from shared.messages import Policy
from tests.planner.conftest import Laboratory, MakeLaboratory
from tests.planner.ended import Stored, ended, failed, never_ran

TOOL = """
def tool(x, fail=False):
    if fail: raise ValueError("this one fails")
    return {"x": x}

def aggregate(replicates, target_data):
    xs = [one["result"]["x"] for one in replicates]
    return {"loss": abs(sum(xs) / len(xs) - target_data), "diagnostics": {"count": len(xs)}}

def broken(replicates, target_data): raise KeyError("gone")
"""


def plan(xs: Sequence[int], replicates: int = 2, **evaluator: Any) -> RunManifest:
    cases = tuple(TestCase(parameters={"x": x}, replicates=replicates) for x in xs)
    return RunManifest(
        workflow_id="plan", tool="tool", cases=cases, evaluator=Evaluator(target_data=3, **evaluator)
    )


@pytest.fixture
async def lab(laboratory: MakeLaboratory) -> Laboratory:
    one = await laboratory()
    one.tool("tool", TOOL)
    return one


async def results(
    lab: Laboratory, xs: Sequence[int], replicates: int = 2, failing: int = -1
) -> list[TaskResult]:
    """What the cases of such a plan come to; the one with the index `failing` fails."""
    found = []
    for index, (x, replicate) in enumerate((x, one) for x in xs for one in range(replicates)):
        case = TestCase(parameters={"x": x}, replicate=replicate, seed=index)
        given = {"x": x, "fail": index == failing}
        call = Execution("tool", given, RunOptions(f"run-{index}", Policy(seed=index, timeout_seconds=5)))
        execution = await lab.backend.run(call)
        is_good = execution.error is None
        status = TaskStatus.SUCCEEDED if is_good else TaskStatus.FAILED
        made = ended(index, status=status, case=case, error=execution.error)
        found.append(replace(made, execution=execution))
    return found


async def evaluated(
    lab: Laboratory, manifest: RunManifest, ends: Sequence[TaskResult]
) -> tuple[Evaluation, ...]:
    return await Evaluations(manifest, lab.aggregator).finish(ends)


async def test_each_case_is_evaluated_over_its_replicates(lab: Laboratory) -> None:
    found = await evaluated(lab, plan([1, 5, 3]), (await results(lab, [1, 5, 3]))[::-1])

    assert [(one.parameters, one.cases, one.n, one.loss) for one in found] == [
        ({"x": 1}, (0, 1), 2, 2.0),
        ({"x": 5}, (2, 3), 2, 2.0),
        ({"x": 3}, (4, 5), 2, 0.0),
    ]
    assert [one.diagnostics for one in found] == [{"count": 2}] * 3
    assert [one.error for one in found] == [None] * 3
    assert len({one.aggregation_id for one in found}) == 3


async def test_evaluations_during_and_after_the_plan_are_equal(lab: Laboratory) -> None:
    ends, manifest = await results(lab, [1, 5]), plan([1, 5])
    async with Evaluations(manifest, lab.aggregator) as evaluations:
        reasons = [evaluations.stopper(one) for one in (ends[2], ends[0], ends[3], ends[1])]
        found = await evaluations.finish(ends)

    assert reasons == [None] * 4
    assert found == await evaluated(lab, manifest, ends)
    assert json.loads(json.dumps(found[0].to_json()))["loss"] == 2.0


async def test_a_failed_replicate_makes_an_error_that_names_the_case(lab: Laboratory) -> None:
    found = await evaluated(lab, plan([1, 5]), await results(lab, [1, 5], failing=3))

    assert [one.loss for one in found] == [2.0, None]
    assert found[1].error == (
        "ReplicateFailedError: case 3 is failed: ValueError: this one fails; 1 of 2 did not succeed "
        "(on_failed='skip' leaves them out)"
    )


async def test_a_failed_replicate_may_be_left_out(lab: Laboratory) -> None:
    found = await evaluated(lab, plan([1, 5], on_failed="skip"), await results(lab, [1, 5], failing=3))

    assert [(one.n, one.loss) for one in found] == [(2, 2.0), (1, 2.0)]


@pytest.mark.parametrize("entry_point", ["broken", "missing"])
async def test_a_function_that_fails_is_the_evaluations_error(lab: Laboratory, entry_point: str) -> None:
    found = await evaluated(lab, plan([1, 5], entry_point=entry_point), await results(lab, [1, 5]))

    assert [one.loss for one in found] == [None, None]
    assert all(str(one.error).startswith("AggregationError: tool." + entry_point) for one in found)


async def test_a_case_without_runs_is_not_evaluated(lab: Laboratory) -> None:
    ends = await results(lab, [1, 5])
    ends[2:] = [never_ran(2, case=ends[2].case), never_ran(3, TaskStatus.PENDING, case=ends[3].case)]
    found = await evaluated(lab, plan([1, 5]), ends)

    assert [one.cases for one in found] == [(0, 1)]


async def test_without_an_evaluator_there_are_no_evaluations(lab: Laboratory) -> None:
    ends, manifest = await results(lab, [1]), plan([1]).model_copy(update={"evaluator": None})
    async with Evaluations(manifest, lab.aggregator) as evaluations:
        reasons = [evaluations.stopper(one) for one in ends]

        assert reasons == [None, None]
        assert await evaluations.finish(ends) == ()


async def test_an_evaluation_stops_the_plan_at_once(lab: Laboratory) -> None:
    stopped = asyncio.get_running_loop().create_future()
    ends, manifest = await results(lab, [3, 5]), plan([3, 5], success_criteria=("loss < 0.1", "n >= 2"))
    async with Evaluations(manifest, lab.aggregator, on_stop=stopped.set_result) as evaluations:
        before = [evaluations.stopper(one) for one in ends[:2]]
        reason = await asyncio.wait_for(stopped, 30)
        after = evaluations.stopper(ends[2])

    assert before == [None, None]
    assert reason == after == "success criteria hold: loss < 0.1, n >= 2"


async def test_a_resumed_plan_judges_criteria_over_earlier_results(lab: Laboratory) -> None:
    ends, told = await results(lab, [1, 5]), list[str]()
    manifest = plan([1, 5], failure_criteria=("n >= 3",))
    async with Evaluations(manifest, lab.aggregator, already=ends[:3], on_stop=told.append) as evaluations:
        reason = evaluations.stopper(ends[3])
        found = await evaluations.finish(ends)

    assert told == [reason] == ["failure criterion holds: n >= 3"]
    assert [one.loss for one in found] == [2.0, 2.0]


async def test_leaving_during_an_evaluation_leaves_no_task(lab: Laboratory) -> None:
    ends = await results(lab, [1, 5])

    async def broken_plan() -> None:
        async with Evaluations(plan([1, 5]), lab.aggregator) as evaluations:
            for one in ends:
                evaluations.stopper(one)
            raise LookupError("the plan broke")

    with pytest.raises(LookupError, match="the plan broke"):
        await broken_plan()
    assert "evaluations" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_a_plan_ends_as_soon_as_a_criterion_holds(lab: Laboratory, tmp_path: Path) -> None:
    manifest = plan([3, 5, 7], failure_criteria=("x >= 3.5 after 3",), on_failed="skip")
    async with Evaluations(manifest, lab.aggregator) as evaluations:
        scheduler = TaskScheduler(lab.backend, stoppers=[evaluations.stopper])
        result = await scheduler.run_manifest_async(manifest)
        found = await evaluations.finish(result.task_results)
    paths = write_report(tmp_path / "report", manifest, result.task_results, found)

    assert result.stopped == "failure criterion holds: x >= 3.5 after 3"
    assert [str(one.task_status) for one in result.task_results] == ["succeeded"] * 3 + ["cancelled"] * 3
    assert [(one.cases, one.n, one.loss) for one in found] == [((0, 1), 2, 0.0), ((2, 3), 1, 2.0)]
    assert [one["loss"] for one in json.loads(paths["report.json"].read_text())["evaluations"]] == [0.0, 2.0]


# -- verdicts -------------------------------------------------------------------------


def judged(
    ends: Sequence[TaskResult], success: Sequence[str] = (), failure: Sequence[str] = ()
) -> list[bool]:
    verdicts = CriteriaTracker(Evaluator(success_criteria=tuple(success), failure_criteria=tuple(failure)))
    return [verdicts.case_ended(one) is not None for one in ends]


def test_means_are_over_the_results_so_far() -> None:
    ends = [ended(index, {"answered": index % 4 == 0, "deep": {"x": index}}) for index in range(4)]

    assert judged(ends, failure=["answered < 0.3"]) == [False, False, False, True]
    assert judged(ends, failure=["result.deep.x >= 1"]) == [False, False, True, True]
    assert judged(ends, failure=["answered <= 0.5 after 3"]) == [False, False, True, True]


def test_cancelled_cases_are_not_counted() -> None:
    ends = [ended(0), failed(1), never_ran(2), failed(3, "ToolTimeoutError"), ended(4)]

    assert judged(ends, failure=["failure_rate > 60%"]) == [False, False, False, True, False]
    assert judged(ends, failure=["n == 2"]) == [False, True, False, False, False]
    assert judged(ends, failure=["failed == 2 and succeeded == 2"]) == [False, False, False, False, True]
    assert judged(ends, failure=["error_type == 'ToolTimeoutError'"]) == [False, False, False, True, False]


def test_all_success_criteria_are_needed_and_any_failure_criterion() -> None:
    ends = [ended(0, {"x": 1}), ended(1, {"x": 3})]

    assert judged(ends, success=["x > 1", "n >= 1"]) == [False, True]
    assert judged(ends, success=["x > 9", "n >= 1"]) == [False, False]
    assert judged(ends, failure=["x > 9", "n >= 1"]) == [True, True]


def test_the_counts_are_not_hidden_by_what_the_tool_returns() -> None:
    ends = [ended(0, {"n": 100, "failure_rate": 1})]

    assert judged(ends, failure=["n > 1"]) == [False]
    assert judged(ends, failure=["result.n > 1"]) == [True]


@pytest.mark.parametrize(
    "result", [Stored("cas://" + "0" * 64), 7, "x", [1], None, {"x": None}, {"y": 10**400}]
)
def test_results_without_the_member_leave_the_criterion_open(result: Any) -> None:
    verdicts = CriteriaTracker(Evaluator(failure_criteria=("x < 1",)))

    assert verdicts.case_ended(ended(0, result)) is None
    assert verdicts.notes[0] == "x < 1: there is no x yet"


def test_results_left_out_by_criteria_are_counted_and_can_be_fetched() -> None:
    verdicts = CriteriaTracker(Evaluator(failure_criteria=("x < 1",)))
    for index, result in ((3, {"x": 5}), (2, Stored("cas://two")), (1, Stored("cas://one"))):
        verdicts.case_ended(ended(index, result))

    [note] = verdicts.notes
    assert note.startswith("criteria leave out the results of 2 of 3 cases that succeeded")
    assert "case 1: `fullsend artifacts get cas://one`" in note


def test_stored_results_do_not_matter_to_criteria_that_name_no_result() -> None:
    verdicts = CriteriaTracker(Evaluator(failure_criteria=("loss < 1", "n > 5")))
    verdicts.case_ended(ended(0, Stored("cas://one")))

    assert verdicts.notes == ("loss < 1: there is no loss yet",)


def test_only_success_criteria_make_it_a_success() -> None:
    success = CriteriaTracker(Evaluator(success_criteria=("n >= 1",)))
    failure = CriteriaTracker(Evaluator(failure_criteria=("n >= 1",)))

    assert isinstance(success.case_ended(failed(0)), GoalReached)
    assert not isinstance(failure.case_ended(ended(0)), GoalReached)


def test_a_criterion_that_could_be_judged_once_is_not_noted() -> None:
    verdicts = CriteriaTracker(Evaluator(failure_criteria=("x < 1", "y < 1 after 9")))
    for index in range(2):
        verdicts.case_ended(ended(index, {"x": 5} if index else {}))

    assert verdicts.notes == ()


def test_a_note_gives_the_reason_and_does_not_depend_on_the_order_of_the_cases() -> None:
    texts = ("x == 'a'", "loss == 'a'", "error_type > 3")
    ends = [ended(0, {}), ended(1, {"x": 1}), ended(2, {"x": 5}), failed(3)]
    notes = set()
    for order in itertools.permutations(ends):
        verdicts = CriteriaTracker(Evaluator(failure_criteria=texts))
        for one in order:
            verdicts.case_ended(one)
            verdicts.evaluated(one.index, {}, {})
        notes.add(verdicts.notes)

    assert notes == {
        (
            'x == "a": x is a number and can\'t be compared with a text',
            'loss == "a": loss is a number and can\'t be compared with a text',
            "error_type > 3: error_type is a text and can't be compared with a number",
        )
    }


def test_an_evaluation_is_judged_with_its_diagnostics_and_outputs() -> None:
    verdicts = CriteriaTracker(Evaluator(success_criteria=("diagnostics.a.b == 1 and outputs.c == 'd'",)))
    first = verdicts.evaluated(0.5, {"a": {"b": 2}}, {"c": "d"})
    second = verdicts.evaluated(0.5, {"a": {"b": 1}}, {"c": "d"})

    assert first is None
    assert second is not None
