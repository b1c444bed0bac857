"""Every case has one result, whatever the policy, the failures and the moment of a stop."""

import asyncio
from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.outcome import Status
from services.planner.cancellation import CancellationToken
from services.planner.execution import Execution, ExecutionResult
from services.planner.models import Budget
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import TERMINAL, TRANSITIONS, RunExecutionResult
from tests.planner.scripted import FakeTime, Recorded, Scripted, plan, result, until_cancelled


class Odd(BaseException):
    """What `except Exception` doesn't catch."""


ACTS = ["succeed", "fail", "stumble", "time out", "crash", "exit", "cancel", "lie", "wait", "ignore"]


async def act(name: str, call: Execution, cancel: asyncio.Event) -> Any:
    """One way for a call to go."""
    await asyncio.sleep(0)
    match name:
        case "succeed":
            return result(call)
        case "fail":
            return result(call, Status.FAILED, error="ValueError")
        case "stumble":
            return result(call, Status.FAILED, error="ConnectionError", retryable=True)
        case "time out":
            return result(call, Status.TIMEOUT, error="ToolTimeoutError")
        case "crash":
            raise Odd
        case "exit":
            raise SystemExit(1)
        case "cancel":
            raise asyncio.CancelledError
        case "lie":
            return None
        case "wait":
            return await until_cancelled(call, cancel)
        case _:
            return await asyncio.Event().wait()


class Acting(Scripted):
    """Each case goes its own way, each attempt the next step of it; cancels the token at a certain call."""

    def __init__(self, ways: list[list[str]], token: CancellationToken, cancel_at: int | None) -> None:
        super().__init__(self._act)
        self._ways = ways
        self._token = token
        self._cancel_at = cancel_at

    async def _act(self, call: Execution, cancel: asyncio.Event) -> ExecutionResult:
        if len(self.calls) == self._cancel_at:
            self._token.cancel("as the test wants")
        way = self._ways[call.parameters["n"]]
        step = way[min(self.numbers.count(call.parameters["n"]), len(way)) - 1]
        return await act(step, call, cancel)  # type: ignore[no-any-return]


pauses = st.sampled_from([0.0, 0.5, 30.0])
policies = st.fixed_dictionaries(
    {
        "concurrency": st.integers(1, 5),
        "batch_size": st.none() | st.integers(1, 4),
        "backoff_seconds": pauses,
        "rate_control": st.none()
        | st.fixed_dictionaries({"per_minute": st.floats(1, 1_000), "burst": st.integers(1, 3)}),
        "retry_policy": st.fixed_dictionaries(
            {"max_attempts": st.integers(1, 4), "backoff_seconds": pauses, "jitter": st.floats(0, 1)}
        ),
        "stop_conditions": st.fixed_dictionaries(
            {
                "max_failures": st.none() | st.integers(1, 6),
                "failure_rate": st.none() | st.floats(0.1, 1),
                # Acts that wait for a stop must have one.
                "timeout": st.sampled_from([0.01, 0.03]),
            }
        ),
    }
)
ways = st.lists(st.lists(st.sampled_from(ACTS), min_size=1, max_size=4), max_size=14)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(policies, ways, st.none() | st.integers(0, 20), st.none() | st.integers(1, 12))
def test_every_case_has_one_result_in_its_place(
    policy: Mapping[str, Any], ways: list[list[str]], cancel_at: int | None, max_runs: int | None
) -> None:
    token, time, listener = CancellationToken(), FakeTime(), Recorded()
    if cancel_at == 0:
        token.cancel()
    backend = Acting(ways, token, cancel_at)
    scheduler = TaskScheduler(
        backend, now_fn=time, sleep_fn=time.sleep, listener=listener, cancel_seconds=0.01
    )
    manifest = plan(len(ways), **policy).model_copy(update={"budget": Budget(max_runs=max_runs)})

    found = scheduler.run_manifest(manifest, token)

    assert [one.index for one in found.task_results] == list(range(len(ways)))
    assert all(one.task_status in TERMINAL for one in found.task_results)
    assert sorted(one.index for one in listener.results) == list(range(len(ways)))
    assert all(after in TRANSITIONS[before] for before, after in listener.transitions)
    assert backend.busy == 0
    assert backend.most_busy <= policy["concurrency"]
    assert max_runs is None or len(backend.calls) <= max_runs
    _check_attempts(found, backend, policy)
    _check_counts(found)


def _check_attempts(found: RunExecutionResult, backend: Scripted, policy: Mapping[str, Any]) -> None:
    for one in found.task_results:
        assert one.attempt_count == backend.numbers.count(one.index)
        assert one.attempt_count <= policy["retry_policy"]["max_attempts"]
        assert (one.started_at is None) == (one.finished_at is None) == (one.attempt_count == 0)
    run_ids = [call.options.run_id for call in backend.calls]
    assert len(set(run_ids)) == len(run_ids)


def _check_counts(found: RunExecutionResult) -> None:
    counted = found.statistics
    parts = (counted.succeeded, counted.failed, counted.timeout, counted.cancelled, counted.error)
    assert sum(parts) == counted.total == len(found.task_results)
    assert counted.attempts == sum(one.attempt_count for one in found.task_results)
    assert (found.stopped is None) == (counted.cancelled == 0)
    for one in found.task_results:
        assert (one.error_message is None) == (one.task_status.value == "succeeded")
