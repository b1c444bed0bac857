"""The registry of a plan: its rows, its sessions, and stale ones."""

import asyncio
import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.planner.models import TestCase
from services.planner.plan.recorder import Recorder
from services.planner.plan.registry import Registry
from services.planner.plan.session import Owner, exclusive_lock
from services.planner.plan.status import PlanState, plan_status
from services.planner.tasks import Task, TaskResult, TaskStatus
from shared.errors import PlanError

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
ROOT = Path(__file__).parents[2]


def make(folder: Path, count: int = 3) -> Registry:
    """A registry with so many cases."""
    facts = {"workflow_id": "w", "created_at": NOON.isoformat()}
    Registry.create(folder / "r.sqlite", [TestCase(parameters={"n": n}) for n in range(count)], facts)
    return Registry(folder / "r.sqlite", str(folder / "artifacts"))


def task(index: int, attempt: int = 1, status: TaskStatus = TaskStatus.RUNNING) -> Task:
    """A task of a case."""
    case = TestCase(parameters={"n": index})
    return Task(f"t{index}", "w", "tool", index, case, NOON, status, attempt_count=attempt, started_at=NOON)


def result(index: int, status: TaskStatus = TaskStatus.SUCCEEDED, attempts: int = 1) -> TaskResult:
    """The result of a case."""
    one = task(index)
    return TaskResult(one.task_id, "w", index, one.case, status, NOON, NOON, NOON, 0.5, attempts)


# -- sittings -------------------------------------------------------------------------


async def test_each_attempt_has_a_row_and_the_last_one_counts(tmp_path: Path) -> None:
    registry = make(tmp_path)

    for status in (TaskStatus.FAILED, TaskStatus.SUCCEEDED):
        number = registry.begin_session("local", 1)
        async with Recorder(registry, number) as recorder:
            recorder.on_status(task(1))
            recorder.on_status(task(1, 1, TaskStatus.QUEUED))
            recorder.on_status(task(1, 2))
            recorder.on_result(result(1, status, attempts=2))
        registry.end_session(number, None)

    assert _column(registry, "status") == ["retried", "failed", "retried", "succeeded"]
    assert registry.counts() == {"pending": 2, "succeeded": 1}
    assert [one.task_status for one in registry.results()] == ["pending", "succeeded", "pending"]
    assert [one.task_status for one in registry.history()] == ["failed", "succeeded"]
    assert registry.durations() == [0.5]


async def test_every_attempt_counts_as_used_even_without_a_recorded_end(tmp_path: Path) -> None:
    clock = [NOON]
    registry = Registry(make(tmp_path).path, now=lambda: clock[0])
    number = registry.begin_session("local", 3)
    async with Recorder(registry, number) as recorder:
        for move, seconds in (
            (task(0), 2),
            (task(0, 1, TaskStatus.QUEUED), 100),
            (task(0, 2), 3),
            (result(0, attempts=2), 0),
            (task(1), 4),
        ):
            recorder.on_result(move) if isinstance(move, TaskResult) else recorder.on_status(move)
            clock[0] += timedelta(seconds=seconds)
    registry.heartbeat(number)
    clock[0] += timedelta(days=1)

    before = registry.used()
    registry.begin_session("local", 2)

    assert _column(registry, "status") == ["retried", "succeeded", "lost"]
    assert before == registry.used()
    assert (before[0], round(before[1], 2)) == (3, 2 + 3 + 4)


def test_a_registry_without_runs_has_used_nothing(tmp_path: Path) -> None:
    assert make(tmp_path).used() == (0, 0)


async def test_a_case_cancelled_before_it_begins_keeps_its_earlier_result(tmp_path: Path) -> None:
    registry = make(tmp_path)
    async with Recorder(registry, registry.begin_session("local", 3)) as recorder:
        recorder.on_result(result(0, TaskStatus.CANCELLED, attempts=0))
        recorder.on_result(result(1, TaskStatus.CANCELLED, attempts=1))

    assert [one.task_status for one in registry.results()] == ["pending", "cancelled", "pending"]


async def test_many_writers_lose_nothing(tmp_path: Path) -> None:
    registry, sittings, each = make(tmp_path, 100), 6, 100
    numbers = [registry.begin_session("local", each) for _ in range(sittings)]

    def write(number: int) -> None:
        async def record() -> None:
            async with Recorder(Registry(registry.path), number) as recorder:
                for index in range(each):
                    recorder.on_status(task(index))
                    recorder.on_result(result(index))
                    Registry(registry.path).heartbeat(number) if index % 10 == 0 else None

        asyncio.run(record())

    threads = [threading.Thread(target=write, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)

    assert _column(registry, "status") == ["succeeded"] * sittings * each


async def test_an_error_of_the_file_stops_the_plan(tmp_path: Path) -> None:
    registry = make(tmp_path)
    number = registry.begin_session("local", 3)
    with closing(sqlite3.connect(registry.path)) as file:
        file.execute("DROP TABLE runs")

    async with Recorder(registry, number) as recorder:
        recorder.on_status(task(0))

    assert recorder.stopper(result(0)) is not None
    assert str(recorder.trouble).startswith("the registry can't be written: ")


def test_rows_of_a_dead_process_are_stale_then_lost(tmp_path: Path) -> None:
    registry = make(tmp_path)
    _elsewhere(registry, "INSERT INTO runs VALUES (1, 1, 2, 1, 't', 'running', '', NULL, NULL)")

    stale = plan_status(registry)
    number = registry.begin_session("local", 3)
    after = plan_status(registry)

    assert (stale.state, stale.stale, stale.running, stale.left) == (PlanState.STALE, 1, 0, 3)
    assert (number, after.state, after.stale, after.left) == (2, PlanState.RUNNING, 0, 3)
    assert _column(registry, "status") == ["lost"]
    [lost] = registry.history()
    assert (lost.index, lost.task_status, lost.attempt_count) == (2, TaskStatus.ERROR, 1)
    assert lost.error_type == "PlannerLostError"


def test_a_request_to_stop_reaches_only_the_current_session(tmp_path: Path) -> None:
    registry = make(tmp_path)
    none = registry.request_cancel("early")
    first = registry.begin_session("local", 3)
    asked = registry.request_cancel("enough")

    assert none is None
    assert asked is not None
    assert registry.heartbeat(first) == "enough"
    registry.end_session(first, "enough")
    assert registry.request_cancel("late") is None
    assert registry.heartbeat(registry.begin_session("local", 3)) is None


def test_cancelling_a_plan_whose_process_is_gone_closes_its_session(tmp_path: Path) -> None:
    registry = make(tmp_path)
    _elsewhere(registry, "INSERT INTO runs VALUES (1, 1, 2, 1, 't', 'running', '', NULL, NULL)")

    registry.request_cancel("cancelled")

    found = plan_status(registry)
    assert (found.state, found.stale) == (PlanState.STOPPED, 0)
    assert found.session is not None
    assert found.session.stopped == "cancelled"


def test_a_process_on_another_host_is_judged_by_its_heartbeat() -> None:
    other = Owner("another host", os.getpid(), "1")
    reborn = replace(Owner.myself(), started="1")

    assert Owner.myself().is_alive(NOON, NOON + timedelta(days=1))
    assert not reborn.is_alive(NOON, NOON)
    assert other.is_alive(NOON, NOON + timedelta(seconds=5))
    assert not other.is_alive(NOON, NOON + timedelta(seconds=60))


def test_rate_and_eta_are_those_of_the_session(tmp_path: Path) -> None:
    clock = [NOON]
    registry = Registry(make(tmp_path, 10).path, now=lambda: clock[0])
    number = registry.begin_session("local", 10)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as file:
        for index in range(4):
            file.execute(
                "INSERT INTO runs VALUES (NULL, ?, ?, 1, 't', 'succeeded', '', '', NULL)", (number, index)
            )

    clock[0] += timedelta(seconds=8)
    found = plan_status(registry)

    assert (found.rate_per_second, found.eta_seconds) == (0.5, 12.0)
    assert (found.total, found.done, found.left) == (10, 4, 6)


# -- files ----------------------------------------------------------------------------


def test_only_one_process_holds_the_lock_and_the_error_names_it(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(exclusive_lock(tmp_path / "lock"))
        with pytest.raises(PlanError, match=rf"being executed by process {os.getpid()} on "):
            stack.enter_context(exclusive_lock(tmp_path / "lock"))

    with exclusive_lock(tmp_path / "lock"):
        pass


def test_a_registry_of_another_version_is_refused(tmp_path: Path) -> None:
    registry = make(tmp_path)
    with closing(sqlite3.connect(registry.path)) as file:
        file.execute("PRAGMA user_version = 9")

    with pytest.raises(PlanError, match="has version 9 of the registry; this program knows 1"):
        registry.results()


def test_a_file_that_is_no_registry_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sqlite").write_text("just a text, long enough not to be taken for an empty file" * 20)

    with pytest.raises(PlanError, match="there is no registry at"):
        Registry(tmp_path / "nothing").results()
    with pytest.raises(PlanError, match="file is not a database"):
        Registry(tmp_path / "text.sqlite").results()
    with pytest.raises(PlanError, match="exists already"):
        Registry.create(make(tmp_path).path, [], {})


def _elsewhere(registry: Registry, statement: str) -> None:
    """Begin a session in another process, which then ends without closing it."""
    code = (
        "import sqlite3, sys; from pathlib import Path; from services.planner.plan.registry import Registry;"
        "Registry(Path(sys.argv[1])).begin_session('local', 3);"
        "file = sqlite3.connect(sys.argv[1]); file.execute(sys.argv[2]); file.commit()"
    )
    subprocess.run([sys.executable, "-c", code, str(registry.path), statement], check=True, cwd=ROOT)


def _column(registry: Registry, name: str) -> list[str]:
    with closing(sqlite3.connect(registry.path)) as file:
        return [value for (value,) in file.execute(f"SELECT {name} FROM runs ORDER BY run")]
