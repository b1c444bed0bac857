"""Estimates how long a plan will take, from recorded durations of earlier runs of its tool."""

import contextlib
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from services.executor.store import Store
from services.planner.cases import all_cases
from services.planner.models import ExecutionPolicy, RunManifest
from services.planner.plan import PLANS, plans_in
from services.planner.plan.directory import registry_in
from services.planner.scheduling.budget import batch_size
from shared.errors import PlanError

MANY: Final = 10
"""The number of recorded runs from which on a spread is meaningful."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The 10th, 50th and 90th percentile of durations in seconds."""

    p10: float
    median: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Return the spread of at least one duration, in seconds."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0])
        cuts = statistics.quantiles(seconds, n=10, method="inclusive")
        # Sorted: interpolation between two equal values may be off by a rounding error.
        return cls(*sorted((cuts[0], statistics.median(seconds), cuts[8])))

    def map(self, function: Callable[[float], float]) -> "Spread":
        """Apply `function` to each percentile."""
        return Spread(function(self.p10), function(self.median), function(self.p90))


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a plan.

    Attributes:
        workflow_id, tool, backend: of the plan.
        cases: the number of runs if each succeeds at once.
        most_attempts: the number of runs if all attempts fail.
        at_once: how many of them run at once, by the policy and the backend.
        recorded: the number of earlier runs of the tool that the durations are from.
        sources: the number of recorded runs in each place that was searched.
        run_seconds: the duration of one run; None if none is recorded.
        plan_seconds: the duration of the plan with one attempt for each case, if every run took the
            10th, 50th or 90th percentile of the recorded durations; None if none is recorded.
        notes: further limits.
    """

    workflow_id: str
    tool: str
    backend: str
    cases: int
    most_attempts: int
    at_once: int
    recorded: int
    run_seconds: Spread | None
    plan_seconds: Spread | None
    notes: tuple[str, ...] = ()
    sources: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """Return the lines of text that describe it."""
        runs = f"{self.cases:,} {'run' if self.cases == 1 else 'runs'} of {self.tool}"
        if self.most_attempts != self.cases:
            runs += f", {self.most_attempts:,} with all retries"
        lines = [f"{runs}, {self.at_once} at once on {self.backend}"]
        if self.run_seconds is None or self.plan_seconds is None:
            places = f" in {' or in '.join(self.sources)}" if self.sources else ""
            lines.append(f"how long it takes is not known: no run of {self.tool} is recorded{places}")
        else:
            source = f"{self.recorded:,} recorded {'run' if self.recorded == 1 else 'runs'}"
            if self.sources:
                source += f" ({', '.join(f'{count:,} in {place}' for place, count in self.sources.items())})"
            lines.append(f"one run takes {_words(self.run_seconds)}, from {source}")
            lines.append(f"the plan takes {_words(self.plan_seconds)}")
        return (*lines, *self.notes)


def estimate(
    manifest: RunManifest,
    recorded: Mapping[str, Sequence[float]],
    backend: str,
    capacity: int,
    notes: Sequence[str] = (),
) -> Estimate:
    """Estimate the duration of a plan.

    Args:
        manifest: the plan.
        recorded: durations in seconds of earlier runs of its tool, by the place of their record.
        backend: the name of the backend.
        capacity: how many runs the backend takes at once.
        notes: further limits, for the reader.

    Raises:
        PlanError: the cases of the plan can't be generated.
    """
    cases, policy = len(all_cases(manifest)), manifest.execution_policy
    at_once = max(1, min(policy.concurrency, capacity, batch_size(policy, cases)))
    sources = {place: [one for one in seconds if 0 <= one < math.inf] for place, seconds in recorded.items()}
    known = [one for seconds in sources.values() for one in seconds]
    run = Spread.of(known) if known else None
    most = cases * policy.retry_policy.max_attempts
    return Estimate(
        workflow_id=manifest.workflow_id,
        tool=manifest.tool,
        backend=backend,
        cases=cases,
        most_attempts=min(most, manifest.budget.max_runs or most),
        at_once=at_once,
        recorded=len(known),
        run_seconds=run,
        plan_seconds=run and run.map(lambda seconds: _whole(seconds, cases, at_once, policy)),
        notes=(*_few(len(known)), *_limits(manifest, cases, run), *notes),
        sources={place: len(seconds) for place, seconds in sources.items()},
    )


def _whole(seconds: float, cases: int, at_once: int, policy: ExecutionPolicy) -> float:
    """Return the duration in seconds of all cases if each takes `seconds`.

    It is the larger of two: rounds of `at_once` cases and the pauses between batches; or the waiting
    that the rate limit imposes, and one run.
    """
    size = batch_size(policy, cases)
    full, rest = divmod(cases, size)
    turns = full * math.ceil(size / at_once) + math.ceil(rest / at_once)
    batches = full + bool(rest)
    needed = turns * seconds + max(0, batches - 1) * policy.backoff_seconds
    if policy.rate_control is None:
        return needed
    waiting = max(0, cases - policy.rate_control.burst) * 60 / policy.rate_control.per_minute
    return max(needed, waiting + (seconds if cases else 0))


def _few(recorded: int) -> list[str]:
    if not 0 < recorded < MANY:
        return []
    return [f"so few recorded runs ({recorded}) say little about the spread"]


def _limits(manifest: RunManifest, cases: int, run: Spread | None) -> list[str]:
    """Say what may stop the plan early."""
    budget, timeout = manifest.budget, manifest.execution_policy.stop_conditions.timeout
    notes = []
    if budget.max_runs is not None and budget.max_runs < cases:
        notes.append(f"the budget of {budget.max_runs:,} runs does not suffice for {cases:,} cases")
    if budget.max_seconds is not None:
        text = f"the budget is {_time(budget.max_seconds)} of all runs together"
        if run is not None and run.median * cases > budget.max_seconds:
            text += f", and {cases:,} runs take about {_time(run.median * cases)}"
        notes.append(text)
    if budget.max_cost is not None:
        notes.append(
            f"the budget is a cost of {budget.max_cost:g}; what a run costs is known when it has ended"
        )
    if timeout is not None:
        notes.append(f"the plan is stopped after {_time(timeout)}")
    return notes


def _words(spread: Spread) -> str:
    low, middle, high = _time(spread.p10), _time(spread.median), _time(spread.p90)
    return f"about {middle}" if low == high else f"about {middle} ({low} to {high})"


def _time(seconds: float) -> str:
    """Return a duration in at most two units: `90 ms`, `1.5 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for large, name, small, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= large:
            count, rest = divmod(round(seconds / small), large // small)
            return f"{count} {name} {rest} {part}" if rest else f"{count} {name}"
    raise AssertionError("durations of less than a minute have returned above")


MAX_RECORDS: Final = 10_000
"""How many of the newest records in Redis are read; they are not sorted by tool."""


@dataclass(frozen=True, slots=True)
class RecordedRuns:
    """The successful runs of a tool that are recorded in one place.

    Attributes:
        place: its description, such as `plans in .fullsend/plans`.
        seconds: the duration of each run.
        experiments: the experiments under which Redis may have records of the same runs.
    """

    place: str
    seconds: tuple[float, ...]
    experiments: frozenset[str] = frozenset()


def recorded_in_plans(tool: str, directory: Path = PLANS) -> RecordedRuns:
    """Return the runs in the registries of a directory of plans; skips registries that can't be read."""
    seconds: list[float] = []
    experiments: set[str] = set()
    for place in plans_in(directory):
        with contextlib.suppress(PlanError):
            registry = registry_in(place)
            if registry.fact("tool") == tool:
                seconds += registry.durations()
                experiments.add(f"plan:{registry.fact('name')}")
    return RecordedRuns(f"plans in {directory}", tuple(seconds), frozenset(experiments))


async def recorded_in_redis(store: Store, tool: str, known: Collection[str] = ()) -> RecordedRuns:
    """Return the runs that executors have recorded, without those of the experiments in `known`.

    Raises:
        StoreError: Redis doesn't answer.
    """
    records = await store.history.completed(tool, MAX_RECORDS)
    seconds = tuple(one.seconds for one in records if one.experiment_id not in known)
    return RecordedRuns("Redis", seconds)
