"""Exceptions of asynchronous functions, also those that asyncio lets nobody catch; and a real Ctrl-C."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.planner.models import RunManifest
from services.planner.scheduler import TaskScheduler
from services.planner.service import ExecutorService
from services.planner.tasks import Task
from tests.planner.scripted import plan

ROOT = Path(__file__).parents[2]
Way = Callable[..., list[tuple[str, str | None]]]


class Odd(BaseException):
    """What `except Exception` doesn't catch."""


RAISED: list[Callable[[], BaseException]] = [
    lambda: Odd("no"),
    lambda: SystemExit(3),
    KeyboardInterrupt,
    GeneratorExit,
    StopAsyncIteration,
    asyncio.CancelledError,
]


def states(results: Sequence[Any]) -> list[tuple[str, str | None]]:
    """The state of each case, and why."""
    return [(one.task_status.value, one.error_message) for one in results]


def run_manifest(manifest: RunManifest, **options: Any) -> list[tuple[str, str | None]]:
    return states(TaskScheduler(**options).run_manifest(manifest).task_results)


def run_manifest_async(manifest: RunManifest, **options: Any) -> list[tuple[str, str | None]]:
    return states(asyncio.run(TaskScheduler(**options).run_manifest_async(manifest)).task_results)


def in_a_loop_by_hand(manifest: RunManifest, **options: Any) -> list[tuple[str, str | None]]:
    """Where nobody but Python itself handles Ctrl-C."""
    loop = asyncio.new_event_loop()
    with contextlib.closing(loop):
        found = loop.run_until_complete(TaskScheduler(**options).run_manifest_async(manifest))
    return states(found.task_results)


def execute_test_plan(manifest: RunManifest, **options: Any) -> list[tuple[str, str | None]]:
    found = ExecutorService(**options).execute_test_plan(manifest)
    return [(one.metadata["task_status"], one.error_message) for one in found]


def in_a_running_loop(manifest: RunManifest, **options: Any) -> list[tuple[str, str | None]]:
    async def main() -> list[tuple[str, str | None]]:
        return execute_test_plan(manifest, **options)

    return asyncio.run(main())


WAYS = [run_manifest, run_manifest_async, in_a_loop_by_hand, execute_test_plan, in_a_running_loop]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_function_that_cancels_its_own_task_is_one_failure(way: Way) -> None:
    async def second_cancels(task: Task) -> None:
        if task.index == 1:
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
            await asyncio.sleep(0)

    found = way(plan(3), task_execution_func=second_cancels)

    assert [state for state, _ in found] == ["succeeded", "failed", "succeeded"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("make", RAISED, ids=lambda make: type(make()).__name__)
def test_any_exception_of_a_coroutine_is_one_failure(way: Way, make: Callable[[], BaseException]) -> None:
    async def second_raises(task: Task) -> int:
        await asyncio.sleep(0)
        if task.index == 1:
            raise make()
        return task.index

    found = way(plan(3, concurrency=3), task_execution_func=second_raises)

    assert [state for state, _ in found] == ["succeeded", "failed", "succeeded"]
    assert found[1][1] is not None


SYNCHRONOUS = [run_manifest, execute_test_plan, in_a_running_loop]


@pytest.mark.parametrize(
    ("way", "error"),
    [
        *((way, GeneratorExit) for way in WAYS),
        *((way, error) for way in SYNCHRONOUS for error in (KeyboardInterrupt, SystemExit)),
    ],
    ids=lambda one: one.__name__,
)
def test_an_exception_of_a_functions_task_is_one_failure(way: Way, error: type[BaseException]) -> None:
    async def fail() -> None:
        raise error

    async def second_raises(task: Task) -> None:
        if task.index == 1:
            await asyncio.create_task(fail())
        await asyncio.sleep(0)

    found = way(plan(3, concurrency=3), task_execution_func=second_raises)

    assert [state for state, _ in found] == ["succeeded", "failed", "succeeded"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("make", RAISED, ids=lambda make: type(make()).__name__)
def test_any_exception_of_a_sleep_stops_the_plan(way: Way, make: Callable[[], BaseException]) -> None:
    async def sleep(seconds: float) -> None:
        raise make()

    manifest = plan(3, rate_control={"per_minute": 60})
    found = way(manifest, task_execution_func=lambda task: None, sleep_fn=sleep)

    assert [state for state, _ in found] == ["succeeded", "cancelled", "cancelled"]
    assert f"sleep_fn failed with {type(make()).__name__}" in str(found[1][1])


# -- a real Ctrl-C --------------------------------------------------------------------

PROGRAM = """
import asyncio, signal, sys, time
from services.planner.scheduler import TaskScheduler
from services.planner.service import ExecutorService
from tests.planner.scripted import plan
from tests.planner.test_raising_functions import {way}

async def function(task):
    if task.index == 1:
        raise KeyboardInterrupt
    if task.index == 2:
        print("running", flush=True)
        {wait}
    return task.index

{prepare}
print({way}(plan(3), task_execution_func=function))
"""
ASLEEP = "await asyncio.sleep(600)"
BUSY = "while True: sum(range(1_000))"
OWN_HANDLER = """
def stop(number, frame):
    raise {error}
signal.signal(signal.SIGINT, stop)
"""


def interrupted(way: Way, wait: str, *, prepare: str = "") -> int:
    """The exit code of a program that gets Ctrl-C while a case of its plan runs."""
    text = PROGRAM.format(way=way.__name__, wait=wait, prepare=prepare)
    command = [sys.executable, "-c", textwrap.dedent(text)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        too_late = threading.Timer(60, process.kill)
        too_late.start()
        assert process.stdout.read() == ""
        too_late.cancel()
    return process.returncode


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_ctrl_c_ends_the_plan(way: Way) -> None:
    assert interrupted(way, ASLEEP) == -signal.SIGINT


def test_ctrl_c_ends_a_function_that_is_busy_in_a_loop_that_nobody_guards() -> None:
    assert interrupted(in_a_loop_by_hand, BUSY) == -signal.SIGINT


@pytest.mark.parametrize(
    ("error", "code"), [("KeyboardInterrupt", -signal.SIGINT), ("SystemExit(7)", 7)], ids=["keyboard", "exit"]
)
def test_an_exception_of_a_signal_handler_ends_the_plan(error: str, code: int) -> None:
    assert interrupted(run_manifest, BUSY, prepare=OWN_HANDLER.format(error=error)) == code
