"""Recorded runs of a tool, from which estimates are made: in plans, and in Redis."""

import contextlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.executor.store import Store
from services.planner.cost import NO_USAGE, Usage
from services.planner.plan import PLANS, plans_in
from services.planner.plan.directory import registry_in
from services.planner.plan.registry import Registry
from shared.errors import PlanError

MAX_RECORDS: Final = 10_000
"""How many of the newest records in Redis are read; they are not sorted by tool."""

_USED: Final = """
SELECT count(*), coalesce(sum(json_extract(result, '$.used.attempts')), 0),
    sum(json_extract(result, '$.used.seconds')), sum(json_extract(result, '$.used.core_seconds')),
    sum(json_extract(result, '$.used.gib_seconds')), max(json_extract(result, '$.used.peak_bytes'))
FROM runs WHERE status = 'succeeded' AND json_extract(result, '$.used.attempts') > 0
"""
_TIMES: Final = "times:"


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """How long a session took besides its cases.

    Attributes:
        start_seconds: until the first case could begin.
        report_seconds: to write the report; None if it was not written.
        cases: in the report.
    """

    start_seconds: float
    report_seconds: float | None
    cases: int


@dataclass(frozen=True, slots=True)
class RecordedRuns:
    """The successful runs of a tool that are recorded in one place.

    Attributes:
        place: its description, such as `plans in .fullsend/plans`.
        seconds: the duration of each run.
        experiments: the experiments under which Redis may have records of the same runs.
        cases: how many cases `used` is of.
        used: what all attempts of these cases have used.
        sessions: how long sessions took besides their cases.
    """

    place: str
    seconds: tuple[float, ...]
    experiments: frozenset[str] = frozenset()
    cases: int = 0
    used: Usage = NO_USAGE
    sessions: tuple[SessionTimes, ...] = ()


def record_times(registry: Registry, number: int, times: SessionTimes) -> None:
    """Record how long a session took besides its cases.  Raises `PlanError` if that can't be written."""
    members = [times.start_seconds, times.report_seconds, times.cases]
    registry.note(f"{_TIMES}{number}", json.dumps(members))


def recorded_in_plan(registry: Registry, place: str) -> RecordedRuns:
    """Return the successful runs of one plan.  Raises `PlanError` if its registry can't be read."""
    seconds = tuple(registry.durations())
    with registry.connected() as file:
        cases, attempts, whole, cores, gib, peak_bytes = file.execute(_USED).fetchone()
    times = [json.loads(text) for text in registry.facts(_TIMES).values()]
    return RecordedRuns(
        place,
        seconds,
        frozenset({f"plan:{registry.fact('name')}"}),
        cases,
        Usage(attempts, whole or 0.0, cores or 0.0, gib or 0.0, peak_bytes=peak_bytes),
        tuple(SessionTimes(*one) for one in times),
    )


def recorded_in_plans(tool: str, directory: Path = PLANS) -> RecordedRuns:
    """Return the runs in the registries of a directory of plans; skips registries that can't be read."""
    found: list[RecordedRuns] = []
    for place in plans_in(directory):
        with contextlib.suppress(PlanError):
            registry = registry_in(place)
            if registry.fact("tool") == tool:
                found.append(recorded_in_plan(registry, str(place)))
    return RecordedRuns(
        f"plans in {directory}",
        tuple(seconds for one in found for seconds in one.seconds),
        frozenset[str]().union(*(one.experiments for one in found)),
        sum(one.cases for one in found),
        Usage.total(one.used for one in found),
        tuple(times for one in found for times in one.sessions),
    )


async def recorded_in_redis(store: Store, tool: str, known: Collection[str] = ()) -> RecordedRuns:
    """Return the runs that executors have recorded, without those of the experiments in `known`.

    Raises:
        StoreError: Redis doesn't answer.
    """
    records = await store.history.completed(tool, MAX_RECORDS)
    seconds = tuple(one.seconds for one in records if one.experiment_id not in known)
    return RecordedRuns("Redis", seconds)
