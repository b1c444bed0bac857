"""Custom functions that take too long delay nothing."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from services.planner.cancellation import CancellationToken
from services.planner.scheduler import TaskScheduler
from services.planner.scheduling.attempts import GRACE_SECONDS
from services.planner.tasks import Task
from tests.planner.scripted import (
    PROMPT_SECONDS,
    plan,
    states,
)


def test_a_function_that_sleeps_delays_no_other_case() -> None:
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
def test_a_function_over_its_time_limit_is_a_timeout_at_once(number: int) -> None:
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
