"""A plan on disk: created, executed, resumed, moved."""

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from services.executor.isolation.calls import Event, Report
from services.executor.outcome import Status
from services.planner.backends.local import LocalBackend
from services.planner.cancellation import CancellationToken
from services.planner.execution import ErrorInfo, Execution, ExecutionResult
from services.planner.models import Budget, ExecutionPolicy, RetryPolicy, RunManifest, Sweep, TestCase
from services.planner.plan import Plan, plans_in
from services.planner.plan.recorded_runs import recorded_in_plans
from services.planner.plan.status import PlanState, Progress
from services.planner.runtime import RuntimeConfig, ToolRuntime
from services.planner.tasks import Task, TaskResult, TaskStatus
from shared.errors import ArtifactError, ExecutorException, PlanError


class Scripted:
    """A backend that answers what `answer(n)` says, for a case's parameter `n`, after `gate(n)`."""

    capacity = 8

    def __init__(self, answer: Callable[[int], Status] = lambda n: Status.COMPLETED) -> None:
        self.answer = answer
        self.calls: list[tuple[int, int | None]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def check_open(self) -> None:
        """It is open everywhere."""

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        n, seed = call.parameters["n"], call.options.policy.seed
        self.calls.append((n, seed))
        assert cancel is not None
        ways = [asyncio.create_task(one.wait()) for one in (self.is_open, cancel)]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        status = Status.CANCELLED if cancel.is_set() else self.answer(n)
        error = None if status is Status.COMPLETED else ErrorInfo("OddError", f"{n} is odd", retryable=True)
        return ExecutionResult(
            call.options.run_id, status, "local", "/fleet", result=str(n), seed=seed, error=error,
            tool_digest="d",
        )  # fmt: skip

    @property
    def called(self) -> list[int]:
        """The cases that were called, in order."""
        return sorted(n for n, _ in self.calls)


def odd_fail(n: int) -> Status:
    return Status.FAILED if n % 2 else Status.COMPLETED


def manifest(count: int = 6, **members: Any) -> RunManifest:
    """A manifest of so many cases, two at once."""
    given = {"execution_policy": ExecutionPolicy(concurrency=2), **members}
    cases = tuple(TestCase(parameters={"n": n}) for n in range(count))
    return RunManifest(workflow_id="My plan!", tool="tool", cases=cases, **given)


class Heard:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.ends: list[int] = []
        self.begun: list[int] = []

    def on_status(self, task: Task) -> None:
        if task.task_status is TaskStatus.RUNNING:
            assert task.case.parameters["n"] == task.index
            self.begun.append(task.index)

    def on_result(self, result: TaskResult) -> None:
        assert result.case.parameters["n"] == result.index
        self.ends.append(result.index)

    def on_event(self, task: Task, event: Event) -> None:
        pass


# -- created --------------------------------------------------------------------------


def test_a_plan_holds_every_case_with_its_seed(tmp_path: Path) -> None:
    sweep = Sweep(dimensions={"n": [1, 1.5, "a"], "m": [None, {"x": [1]}]}, replicates=2)
    plan = Plan.create(manifest(2, sweep=sweep), tmp_path / "p")

    again = Plan.open(tmp_path / "p")

    assert again == plan
    assert len(again.manifest.cases) == 2 + 12
    assert again.manifest.sweep is None
    assert all(case.seed is not None for case in again.manifest.cases)
    assert repr(again.manifest.cases) == repr(plan.manifest.cases)
    assert [one.case for one in again.results()] == list(again.manifest.cases)
    assert again.status().state is PlanState.NEW


def test_a_plan_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()

    with pytest.raises(PlanError, match="taken is not empty; `fullsend plan resume`"):
        Plan.create(manifest(), tmp_path / "taken")
    with pytest.raises(ExecutorException, match=r"RunManifest\.cases cannot be empty"):
        Plan.create(manifest(0), tmp_path / "p")
    with pytest.raises(PlanError, match="there is no plan in"):
        Plan.open(tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_manifest_that_was_edited_badly_says_so(tmp_path: Path) -> None:
    plan = Plan.create(manifest(), tmp_path / "p")
    (plan.directory / "manifest.json").write_text("{}")

    with pytest.raises(PlanError, match=r"manifest\.json can't be read"):
        Plan.open(plan.directory)


def test_plans_are_named_after_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = Plan.create(manifest()), Plan.create(manifest())

    assert one.plan_id.startswith("my-plan-2")
    assert (one.name, one.directory.parent) == (one.plan_id, tmp_path / ".fullsend" / "plans")
    assert sorted(path.name for path in plans_in()) == sorted([one.plan_id, other.plan_id])


# -- executed -------------------------------------------------------------------------


async def test_only_what_is_unfinished_or_failed_runs_again_with_its_seed(tmp_path: Path) -> None:
    plan, first, second, third = (
        Plan.create(manifest(), tmp_path / "p"),
        Scripted(odd_fail),
        Scripted(),
        Scripted(),
    )

    one = await plan.run(first)
    two = await plan.resume(second)
    three = await plan.resume(third)

    assert [result.task_status for result in one.task_results] == ["succeeded", "failed"] * 3
    assert [result.task_status for result in two.task_results] == ["succeeded"] * 6
    assert [result.index for result in two.task_results] == list(range(6))
    assert (two.statistics.total, two.statistics.succeeded) == (6, 6)
    assert second.called == [1, 3, 5]
    assert set(second.calls) <= set(first.calls)
    assert (third.calls, three.statistics.succeeded, three.stopped) == ([], 6, None)
    assert len(plan.registry.history()) == 9
    assert [(one.task_status, one.task_id) for one in plan.results()] == [
        (one.task_status, one.task_id) for one in two.task_results
    ]


async def test_failed_cases_need_not_run_again(tmp_path: Path) -> None:
    plan, again = Plan.create(manifest(), tmp_path / "p"), Scripted()
    await plan.run(Scripted(odd_fail))

    result = await plan.resume(again, failed=False)

    assert again.calls == []
    assert (result.statistics.succeeded, result.statistics.failed) == (3, 3)
    assert [one.index for one in plan.settled(failed=False)] == list(range(6))
    assert [one.index for one in plan.settled()] == [0, 2, 4]


async def test_listeners_and_stoppers_get_the_index_in_the_plan(tmp_path: Path) -> None:
    plan, heard, judged = Plan.create(manifest(), tmp_path / "p"), Heard(), list[int]()
    await plan.run(Scripted(odd_fail))

    def stopper(result: TaskResult) -> str | None:
        judged.append(result.index)
        return "that will do" if result.index == 3 else None

    result = await plan.resume(Scripted(), listener=heard, stoppers=(stopper,))

    assert judged[:2] == [1, 3]
    assert heard.begun[:2] == [1, 3]
    assert result.stopped in ("that will do", None)  # None if the last one had begun, and ended


async def test_a_plan_is_run_once_and_then_resumed(tmp_path: Path) -> None:
    plan = Plan.create(manifest(), tmp_path / "p")
    await plan.run(Scripted())

    with pytest.raises(PlanError, match="p has been executed before; resume it"):
        await plan.run(Scripted())


async def test_only_one_executes_a_plan(tmp_path: Path) -> None:
    plan, backend = Plan.create(manifest(), tmp_path / "p"), Scripted()
    backend.is_open.clear()
    first = asyncio.create_task(plan.run(backend))
    while not backend.calls:
        await asyncio.sleep(0)

    with pytest.raises(PlanError, match=f"p is being executed by process {os.getpid()}"):
        await Plan.open(plan.directory).resume(Scripted())
    backend.is_open.set()
    assert (await first).statistics.succeeded == 6


@pytest.mark.parametrize("by_token", [True, False])
async def test_a_plan_that_is_cancelled_can_be_resumed(tmp_path: Path, by_token: bool) -> None:
    plan, backend, token = Plan.create(manifest(), tmp_path / "p"), Scripted(), CancellationToken()
    backend.is_open.clear()
    under_way = asyncio.create_task(plan.run(backend, token))
    while len(backend.calls) < 2:
        await asyncio.sleep(0)

    token.cancel("enough") if by_token else plan.cancel("enough")
    stopped = await under_way
    standing = plan.status()
    again = Scripted()
    await plan.resume(again, CancellationToken())

    assert (stopped.stopped, stopped.statistics.cancelled) == ("enough", 6)
    assert token.is_cancelled == by_token
    assert (standing.state, standing.left) == (PlanState.STOPPED, 6)
    assert again.called == list(range(6))
    assert plan.status().state is PlanState.COMPLETED
    assert not plan.cancel("late")


async def test_attempts_are_kept_apart(tmp_path: Path) -> None:
    tries: dict[int, int] = {}

    def third_time(n: int) -> Status:
        tries[n] = tries.get(n, 0) + 1
        return Status.COMPLETED if tries[n] == 3 else Status.FAILED

    policy = ExecutionPolicy(retry_policy=RetryPolicy(max_attempts=3, backoff_seconds=0))
    plan = Plan.create(manifest(1, execution_policy=policy), tmp_path / "p")
    await plan.run(Scripted(third_time))

    with plan.registry.connected() as file:
        rows = file.execute("SELECT attempt, status FROM runs ORDER BY run").fetchall()
    assert rows == [(1, "retried"), (2, "retried"), (3, "succeeded")]
    assert plan.results()[0].attempt_count == 3


async def test_a_budget_counts_what_was_used_before(tmp_path: Path) -> None:
    policy = ExecutionPolicy(concurrency=1)
    plan = Plan.create(manifest(budget=Budget(max_runs=4), execution_policy=policy), tmp_path / "p")
    token, backend = CancellationToken(), Scripted()
    first = await plan.run(backend, token, stoppers=(lambda result: "three" if result.index == 2 else None,))
    second = await plan.resume(backend)

    assert (first.stopped, second.stopped) == (
        "three",
        "the budget of 4 runs is used up; raise `budget.max_runs` to go on",
    )
    assert backend.called == [0, 1, 2, 3]
    with pytest.raises(PlanError, match="nothing left of the plan's budget: the budget of 4 runs"):
        await plan.resume(backend)


async def test_results_are_the_same_in_whatever_order_and_pieces_a_plan_ran(tmp_path: Path) -> None:
    whole, pieces = (Plan.create(manifest(20), tmp_path / name) for name in ("whole", "pieces"))
    await whole.run(Scripted())

    while pieces.status().state is not PlanState.COMPLETED:
        left = random.randrange(1, 6)

        def stopper(result: TaskResult) -> str | None:
            nonlocal left
            left -= 1
            return "so far" if left == 0 else None

        await pieces.resume(Scripted(), stoppers=(stopper,))

    assert pieces.registry.last_session() is not None
    one, other = whole.results(), pieces.results()
    assert [(a.case, a.execution and a.execution.seed) for a in one] == [
        (b.case, b.execution and b.execution.seed) for b in other
    ]


async def test_durations_are_those_of_this_tool_in_all_plans(tmp_path: Path) -> None:
    for name, tool in (("a", "tool"), ("b", "tool"), ("c", "other")):
        plan = Plan.create(manifest(2).model_copy(update={"tool": tool}), tmp_path / name)
        await plan.run(Scripted())
    (tmp_path / "b" / "registry.sqlite").write_text("broken")

    assert len(recorded_in_plans("tool", tmp_path).seconds) == 2


async def test_progress_counts_what_was_done_before(tmp_path: Path) -> None:
    plan, clock = Plan.create(manifest(), tmp_path / "p"), [0.0]
    await plan.run(Scripted(odd_fail))
    progress = Progress(6, done=3, clock=lambda: clock[0])
    before = progress.snapshot()

    await plan.resume(Scripted(lambda n: Status.FAILED if n == 5 else Status.COMPLETED), listener=progress)
    clock[0] = 2.0
    after = progress.snapshot()

    assert (before.done, before.failed, before.rate_per_second, before.eta_seconds) == (3, 0, None, None)
    assert (after.done, after.failed, after.running, after.total) == (5, 1, 0, 6)
    assert (after.rate_per_second, after.eta_seconds) == (1.5, 0.0)


async def test_a_plan_is_whole_after_its_directory_was_moved(tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "tool.py").write_text(
        "from shared import toolkit\n"
        "def tool(n): toolkit.artifact('a.txt', str(n).encode() * 100_000); return n\n"
    )
    plan = Plan.create(manifest(2), tmp_path / "p")
    places = RuntimeConfig(
        tmp_path / "tools", str(plan.artifacts), environments_path=tmp_path / "environments"
    )
    async with LocalBackend(ToolRuntime(places, 2, os.environ), 2) as backend:
        await plan.run(backend)
    before = [_artifact(one) for one in plan.results()]

    plan.directory.rename(tmp_path / "q")

    assert before == [b"0" * 100_000, b"1" * 100_000]
    assert [_artifact(one) for one in Plan.open(tmp_path / "q").results()] == before
    with pytest.raises(ArtifactError):
        _artifact(replace_base(Plan.open(tmp_path / "q").results()[0], str(plan.artifacts)))


def replace_base(result: TaskResult, base: str) -> TaskResult:
    assert result.execution is not None
    return TaskResult(
        result.task_id, result.workflow_id, result.index, result.case, result.task_status, result.created_at,
        execution=result.execution.moved_to(base),
    )  # fmt: skip


def _artifact(result: TaskResult) -> bytes:
    execution = result.execution
    assert execution is not None
    return execution.loader.load_bytes(execution.artifacts["a.txt"])
