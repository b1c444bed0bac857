"""What a plan will take, before it starts."""

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
from services.planner.scheduling.pace import batch_size
from shared.errors import PlanError

MANY: Final = 10
"""Recorded runs from which on the slowest and fastest tenth mean something."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds: a tenth of what was recorded is below `p10`, half below `median`, a tenth above `p90`."""

    p10: float
    median: float
    p90: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """The spread of at least one value."""
        if len(seconds) == 1:
            return cls(seconds[0], seconds[0], seconds[0])
        cuts = statistics.quantiles(seconds, n=10, method="inclusive")
        # Sorted, as what is computed between two equal values may be off by a rounding.
        return cls(*sorted((cuts[0], statistics.median(seconds), cuts[8])))

    def map(self, function: Callable[[float], float]) -> "Spread":
        """The same with `function` applied to each."""
        return Spread(function(self.p10), function(self.median), function(self.p90))


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a plan will take.

    Attributes:
        workflow_id, tool, backend: which plan, and where.
        cases: runs, if each succeeds at once.
        most_attempts: runs, if none ever does.
        at_once: how many of them, by the policy and the backend.
        recorded: from how many earlier runs of the tool the times are.
        sources: where these are recorded, and how many in each place that was looked at.
        run_seconds: of one run; None when none was recorded.
        plan_seconds: of all cases, each tried once, if all took as long as the tenth, half or
            nine tenths of the recorded ones; None when none was recorded.
        notes: what limits it besides.
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
        """Plain values."""
        return asdict(self)

    def lines(self) -> tuple[str, ...]:
        """The same for people, line by line."""
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
    """What a plan will take.

    Args:
        manifest: the plan.
        recorded: seconds of earlier runs of its tool, as many as there are, by where they are recorded.
        backend: its name.
        capacity: how many runs at once it takes.
        notes: what else limits it.

    Raises:
        PlanError: the plan's cases can't be made.
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
    """How long all cases take if each takes `seconds`: by turns, batches and the rate limit."""
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
    """What may end the plan before its time."""
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
    """With two units at most: `90 ms`, `1.5 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 1:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    for large, name, small, part in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= large:
            count, rest = divmod(round(seconds / small), large // small)
            return f"{count} {name} {rest} {part}" if rest else f"{count} {name}"
    raise AssertionError("all that is less than a minute was answered above")


NEWEST: Final = 10_000
"""Records in Redis that are looked at; those of all tools are in one heap."""


@dataclass(frozen=True, slots=True)
class RecordedRuns:
    """What one place knows of the runs of a tool that succeeded.

    Attributes:
        place: in words, such as `plans in .fullsend/plans`.
        seconds: of each run.
        experiments: under which ids of experiments the same runs are recorded elsewhere.
    """

    place: str
    seconds: tuple[float, ...]
    experiments: frozenset[str] = frozenset()


def recorded_in_plans(tool: str, directory: Path = PLANS) -> RecordedRuns:
    """The runs in the registries of the plans in a directory, as far as these can be read."""
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
    """The runs that executors have recorded, without those of experiments that are `known` already.

    Raises:
        StoreError: Redis can't be asked.
    """
    records = await store.history.completed(tool, NEWEST)
    seconds = tuple(one.seconds for one in records if one.experiment_id not in known)
    return RecordedRuns("Redis", seconds)
