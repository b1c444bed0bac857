"""What stops a plan, and that it answers promptly, whatever it was waiting for."""

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner import course
from services.planner.attempts import GRACE_SECONDS
from services.planner.cancellation import CancellationToken
from services.planner.execution import Execution, ExecutionResult
from services.planner.models import RunManifest
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import RunExecutionResult, Task, TaskResult, TaskStatus
from tests.planner.conftest import MakeLaboratory
from tests.planner.scripted import Recorded, Script, Scripted, plan, result, states, success, until_cancelled

PROMPT_SECONDS = 3.0
"""For an answer that takes milliseconds, on a machine that has other things to do."""


async def failure(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
    return result(call, Status.FAILED, error="ValueError")


async def transient_failure(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
    return result(call, Status.FAILED, error="ConnectionError", retryable=True)


async def run(backend: Any, manifest: RunManifest, **options: Any) -> RunExecutionResult:
    return await TaskScheduler(backend, **options).run_manifest_async(manifest)


# -- conditions -----------------------------------------------------------------------


async def test_two_failures_are_exactly_two_calls() -> None:
    backend = Scripted(failure)

    found = await run(backend, plan(10, concurrency=1, stop_conditions={"max_failures": 2}))

    assert backend.numbers == [0, 1]
    assert states(found) == ["failed"] * 2 + ["cancelled"] * 8
    assert found.stopped == "max_failures: 2 of 2 cases did not succeed"
    assert {one.error_message for one in found.task_results[2:]} == {found.stopped}
    assert [one.attempt_count for one in found.task_results] == [1] * 2 + [0] * 8
    assert found.task_results[5].started_at is None


async def test_a_retried_attempt_is_no_failure_yet() -> None:
    policy = {
        "retry_policy": {"max_attempts": 3, "backoff_seconds": 0},
        "stop_conditions": {"max_failures": 2},
    }
    backend = Scripted(transient_failure)

    found = await run(backend, plan(3, **policy))

    assert backend.numbers == [0, 0, 0, 1, 1, 1]
    assert states(found) == ["failed", "failed", "cancelled"]


async def test_a_failure_rate_counts_from_the_tenth_case_on() -> None:
    async def every_second_fails(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        return await (failure if call.parameters["n"] % 2 == 0 else success)(call, cancel)

    backend = Scripted(every_second_fails)
    found = await run(backend, plan(30, stop_conditions={"failure_rate": 0.5}))

    assert len(backend.calls) == 10
    assert found.stopped == "failure_rate: 5 of 10 cases did not succeed; the limit is 0.5"


async def test_cases_that_somebody_cancelled_count_neither_way() -> None:
    async def last_fails(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if call.parameters["n"] == 9:
            return await failure(call, cancel)
        return result(call, Status.CANCELLED, error="RunCancelledError")

    found = await run(Scripted(last_fails), plan(11, stop_conditions={"failure_rate": 0.1}))

    assert found.stopped is None
    assert found.statistics.failed == 1


async def test_what_runs_is_ended_when_a_condition_is_met() -> None:
    async def last_fails(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        return await (failure if call.parameters["n"] == 2 else until_cancelled)(call, cancel)

    backend = Scripted(last_fails)
    found = await run(backend, plan(4, concurrency=3, stop_conditions={"max_failures": 1}))

    assert states(found) == ["cancelled", "cancelled", "failed", "cancelled"]
    assert [one.attempt_count for one in found.task_results] == [1, 1, 1, 0]
    assert backend.busy == 0


async def test_the_time_of_the_plan_is_limited() -> None:
    found = await run(Scripted(until_cancelled), plan(2, stop_conditions={"timeout": 0.05}))

    assert states(found) == ["cancelled", "cancelled"]
    assert found.stopped == "timeout: the plan took more than 0.05 s"


async def test_a_condition_met_by_the_last_case_stops_nothing() -> None:
    found = await run(Scripted(failure), plan(2, stop_conditions={"max_failures": 2}))

    assert states(found) == ["failed", "failed"]
    assert found.stopped is None


async def test_stoppers_hear_every_completion_in_order_until_one_stops_the_plan() -> None:
    heard: list[int] = []

    def third(result: TaskResult) -> str | None:
        heard.append(result.index)
        return "enough is known" if len(heard) == 3 else None

    found = await run(Scripted(), plan(9), stoppers=[lambda result: None, third])

    assert heard == [0, 1, 2]
    assert found.stopped == "enough is known"
    assert found.statistics.cancelled == 6


async def test_a_stopper_that_raises_stops_the_plan() -> None:
    def broken(result: TaskResult) -> str | None:
        raise ZeroDivisionError("a fault in it")

    found = await run(Scripted(), plan(3), stoppers=[broken])

    assert found.stopped == "a stop condition failed with ZeroDivisionError: a fault in it"
    assert states(found) == ["succeeded", "cancelled", "cancelled"]


@pytest.mark.parametrize("deaf_to", ["moved", "ended"])
async def test_a_listener_that_raises_stops_the_plan_and_no_result_is_lost(deaf_to: str) -> None:
    class Deaf(Recorded):
        def moved(self, task: Task) -> None:
            if deaf_to == "moved" and task.task_status is TaskStatus.RUNNING:
                raise OSError("no space left")

        def ended(self, result: TaskResult) -> None:
            if deaf_to == "ended":
                raise OSError("no space left")

    found = await run(Scripted(), plan(3), listener=Deaf())

    assert found.stopped == "the listener failed with OSError: no space left"
    assert states(found)[1:] == ["cancelled", "cancelled"]


async def test_a_sleep_that_raises_stops_the_plan() -> None:
    async def broken(seconds: float) -> None:
        raise RuntimeError("no sleep")

    found = await run(Scripted(), plan(2, rate_control={"per_minute": 1}), sleep_fn=broken)

    assert found.stopped == "sleep_fn failed with RuntimeError: no sleep"
    assert states(found) == ["succeeded", "cancelled"]


# -- cancellation ---------------------------------------------------------------------


class Waiting:
    """Sleeps for as long as it is told, and says that it does; asynchronous, or synchronous in a thread."""

    def __init__(self) -> None:
        self.began = threading.Event()

    async def sleep(self, seconds: float) -> None:
        """For real."""
        self.began.set()
        await asyncio.sleep(seconds)

    def block(self, seconds: float) -> None:
        """A thread; it goes on in vain afterwards, so not for long."""
        self.began.set()
        time.sleep(min(seconds, PROMPT_SECONDS + 1))


WAITS: dict[str, tuple[Script, dict[str, Any]]] = {
    "back-off": (transient_failure, {"retry_policy": {"max_attempts": 2, "backoff_seconds": 600}}),
    "batch pause": (success, {"batch_size": 1, "backoff_seconds": 600}),
    "rate limit": (success, {"rate_control": {"per_minute": 0.1}}),
}


@pytest.mark.parametrize("how", ["sleep", "block"])
@pytest.mark.parametrize("wait", WAITS)
def test_cancelling_from_another_thread_is_answered_promptly(wait: str, how: str) -> None:
    script, policy = WAITS[wait]
    token, waiting = CancellationToken(), Waiting()
    scheduler = TaskScheduler(Scripted(script), sleep_fn=getattr(waiting, how))

    def cancel_then() -> None:
        waiting.began.wait(30)
        cancelled_at.append(time.monotonic())
        token.cancel("no longer wanted")

    cancelled_at: list[float] = []
    thread = threading.Thread(target=cancel_then)
    thread.start()
    found = scheduler.run_manifest(plan(2, **policy), token)
    thread.join()

    assert time.monotonic() - cancelled_at[0] < PROMPT_SECONDS
    assert found.stopped == "no longer wanted"
    assert found.task_results[1].task_status is TaskStatus.CANCELLED
    assert len(found.task_results) == 2


async def test_a_case_cancelled_before_its_retry_keeps_what_its_attempt_came_to() -> None:
    token = CancellationToken()

    async def cancelling(seconds: float) -> None:
        token.cancel()
        await asyncio.sleep(600)

    manifest = plan(1, retry_policy={"max_attempts": 2})
    scheduler = TaskScheduler(Scripted(transient_failure), sleep_fn=cancelling)
    (one,) = (await scheduler.run_manifest_async(manifest, token)).task_results

    assert (one.task_status, one.attempt_count) == (TaskStatus.CANCELLED, 1)
    assert one.execution is not None
    assert one.execution.status is Status.FAILED
    assert one.finished_at is not None


async def test_a_token_that_was_cancelled_before_lets_nothing_begin() -> None:
    backend, token, listener = Scripted(), CancellationToken(), Recorded()
    token.cancel("too late")

    found = await TaskScheduler(backend, listener=listener).run_manifest_async(plan(3), token)

    assert backend.calls == []
    assert states(found) == ["cancelled"] * 3
    assert [one.index for one in listener.results] == [0, 1, 2]
    assert found.stopped == "too late"


async def test_a_call_that_succeeds_although_it_was_to_end_has_succeeded() -> None:
    token = CancellationToken()

    async def finishing(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        token.cancel()
        await cancel.wait()
        return result(call)

    found = await TaskScheduler(Scripted(finishing)).run_manifest_async(plan(2), token)

    assert states(found) == ["succeeded", "cancelled"]


async def test_a_failure_after_the_stop_is_not_retried() -> None:
    token = CancellationToken()

    async def failing(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        token.cancel()
        await cancel.wait()
        return await transient_failure(call, cancel)

    backend = Scripted(failing)
    manifest = plan(1, retry_policy={"max_attempts": 5, "backoff_seconds": 0})
    found = await TaskScheduler(backend).run_manifest_async(manifest, token)

    assert (states(found), len(backend.calls)) == (["failed"], 1)


async def test_a_backend_that_does_not_end_its_call_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "PATIENCE_SECONDS", 0.05)
    token = CancellationToken()

    async def deaf(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        token.cancel()
        await asyncio.sleep(600)
        raise AssertionError

    backend = Scripted(deaf)
    found = await TaskScheduler(backend).run_manifest_async(plan(2), token)

    assert states(found) == ["cancelled", "cancelled"]
    assert backend.busy == 0


async def test_whoever_cancels_the_execution_itself_leaves_nothing_running() -> None:
    backend, listener = Scripted(until_cancelled), Recorded()
    scheduler = TaskScheduler(backend, listener=listener)
    execution = asyncio.create_task(scheduler.run_manifest_async(plan(3, concurrency=2)))
    await backend.begun.wait()

    execution.cancel()
    with pytest.raises(asyncio.CancelledError):
        await execution

    assert backend.busy == 0
    assert [one.task_status for one in listener.results] == [TaskStatus.CANCELLED] * 3
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_backend_that_keeps_its_cancellation_to_itself_holds_nobody_up() -> None:
    async def swallowing(call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            return await transient_failure(call, cancel)
        raise AssertionError

    backend = Scripted(swallowing)
    manifest = plan(1, retry_policy={"max_attempts": 5, "backoff_seconds": 600})
    execution = asyncio.create_task(TaskScheduler(backend).run_manifest_async(manifest))
    await backend.begun.wait()

    execution.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(PROMPT_SECONDS):
            await execution

    assert len(backend.calls) == 1


async def test_nothing_is_left_in_the_loop_after_a_stop() -> None:
    manifest = plan(5, concurrency=2, stop_conditions={"timeout": 0.05})
    await run(Scripted(until_cancelled), manifest)

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelling_ends_the_processes_of_real_tools(laboratory: MakeLaboratory) -> None:
    lab = await laboratory()
    lab.tool(
        "tool", "import time, os\ndef tool(n):\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
    )
    token, listener = CancellationToken(), Said(2)
    scheduler = TaskScheduler(lab.backend, listener=listener)
    execution = asyncio.create_task(scheduler.run_manifest_async(plan(5, concurrency=2), token))
    await listener.all_have_said(execution)
    started = time.monotonic()

    token.cancel()
    found = await execution

    assert time.monotonic() - started < PROMPT_SECONDS
    assert states(found) == ["cancelled"] * 5
    assert lab.bench.pool.counts()["busy"] == 0
    assert not [pid for pid in listener.pids if _is_alive(pid)]


async def test_a_real_tool_past_its_time_limit_is_gone(laboratory: MakeLaboratory) -> None:
    lab = await laboratory()
    lab.tool(
        "tool", "import time, os\ndef tool(n):\n    print(os.getpid(), flush=True)\n    time.sleep(600)\n"
    )
    listener = Said(1)
    manifest = plan(1, stop_conditions={"timeout_per_task": 0.2})

    found = await run(lab.backend, manifest, listener=listener)

    (one,) = found.task_results
    assert one.task_status is TaskStatus.TIMEOUT
    assert one.execution_time < PROMPT_SECONDS
    assert not [pid for pid in listener.pids if _is_alive(pid)]


class Said(Recorded):
    """Collects the process ids that tools print."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.pids: list[int] = []
        self._all_said = asyncio.Event()
        self._expected = expected

    def said(self, task: Task, event: Any) -> None:
        """Note the process id."""
        self.pids.append(int(event.text))
        if len(self.pids) == self._expected:
            self._all_said.set()

    async def all_have_said(self, execution: asyncio.Task[RunExecutionResult]) -> None:
        """Wait for as many as are expected; fails at once if the execution ends before."""
        waiting = asyncio.create_task(self._all_said.wait())
        await asyncio.wait({waiting, execution}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert not execution.done(), execution.result().task_results


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- custom functions -----------------------------------------------------------------


def test_a_function_that_sleeps_keeps_nobody_waiting() -> None:
    release = threading.Event()
    token = CancellationToken()

    def stuck(task: Task) -> None:
        token.cancel()
        release.wait(60)

    started = time.monotonic()
    found = TaskScheduler(task_execution_func=stuck).run_manifest(plan(3), token)
    seconds = time.monotonic() - started
    release.set()

    assert seconds < PROMPT_SECONDS
    assert states(found) == ["cancelled"] * 3


def _sleeping(release: threading.Event) -> list[Callable[[Task], Any]]:
    def in_a_thread(task: Task) -> None:
        release.wait(60)

    async def in_the_loop(task: Task) -> None:
        await asyncio.sleep(60)

    async def not_to_be_cancelled(task: Task) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(GRACE_SECONDS / 2)

    return [in_a_thread, in_the_loop, not_to_be_cancelled]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_function_past_its_time_limit_is_a_timeout_in_time(number: int) -> None:
    release = threading.Event()
    scheduler = TaskScheduler(task_execution_func=_sleeping(release)[number])
    started = time.monotonic()

    found = scheduler.run_manifest(plan(1, stop_conditions={"timeout_per_task": 0.2}))
    seconds = time.monotonic() - started
    release.set()

    assert states(found) == ["timeout"]
    assert seconds < PROMPT_SECONDS
    assert found.task_results[0].error_message == "the function was still running after 0.2 s"


async def test_a_coroutine_past_its_time_limit_is_cancelled() -> None:
    seen: list[str] = []

    async def slow(task: Task) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("ended")

    scheduler = TaskScheduler(task_execution_func=slow)
    await scheduler.run_manifest_async(plan(1, stop_conditions={"timeout_per_task": 0.05}))

    assert seen == ["ended"]
    assert asyncio.all_tasks() == {asyncio.current_task()}
