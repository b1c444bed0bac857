"""Estimates how long a plan will take, what it will use, and what it will cost.  Pure."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from services.planner.cases import all_cases
from services.planner.cost import UNPRICED, Tariff, Usage
from services.planner.cost.rates import money_text
from services.planner.cost.usage import GIB
from services.planner.models import ExecutionPolicy, RunManifest
from services.planner.plan.recorded_runs import RecordedRuns, SessionTimes
from services.planner.scheduling.budget import batch_size

MANY: Final = 10
"""The number of recorded runs from which on a spread is meaningful."""

ASSUMED_START_SECONDS: Final = 1.0
ASSUMED_REPORT_SECONDS: Final = 2.0
"""For plans without a record; a pilot and every executed plan leave one."""

REPORT_CASE_SECONDS: Final = 0.0005
"""What a case adds to the time of a report, about."""


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
class Use:
    """What a plan uses of machines, or costs, as an interval.

    Attributes:
        low: with one attempt for each case, of the duration of the 10th percentile.
        likely: with the recorded number of attempts, of the median duration, and what is paid around runs.
        high: the same with the 90th percentile, and with places that wait for others.
    """

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What a plan will use and cost.

    Attributes:
        attempts_per_case: as recorded; 1 if nothing is.
        core_seconds, gib_seconds, gpu_seconds: of all runs.
        money: in `currency`; None if no prices are known.
        most_money: if all attempts fail and each takes the 90th percentile; None if no prices are known.
        currency, prices: of the prices, and where these are from.
        missing: why no prices are known, and what to do.
    """

    attempts_per_case: float
    core_seconds: Use
    gib_seconds: Use
    gpu_seconds: Use
    money: Use | None
    most_money: float | None
    currency: str
    prices: str
    missing: str

    def lines(self, cases: int, most_attempts: int) -> Iterator[str]:
        """Yield the lines of text that describe it."""
        gpus = f", {_used(self.gpu_seconds, 'GPU seconds')}" if self.gpu_seconds.high else ""
        memory = f", {_used(self.gib_seconds, 'GiB seconds')} of memory" if self.gib_seconds.high else ""
        yield f"it uses {_used(self.core_seconds, 'core seconds')}{memory}{gpus}"
        if self.money is None or self.most_money is None:
            yield f"what that costs is not known: {self.missing or 'no prices are known'}"
            return
        low, likely, high = (
            money_text(one, self.currency) for one in (self.money.low, self.money.likely, self.money.high)
        )
        more = f"; {money_text(self.most_money, self.currency)} with all retries"
        yield f"it costs about {likely} ({low} to {high}{more if most_attempts > cases else ''})"
        yield f"prices: {self.prices}"


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a plan.

    Attributes:
        workflow_id, tool, backend: of the plan.
        cases: the number of runs if each succeeds at once.
        most_attempts: the number of runs if all attempts fail.
        at_once: how many of them run at once, by the policy and the backend.
        source: where durations are from: `recorded`, `pilot` or `declared`; empty if none are known.
        recorded: the number of runs that the durations are from.
        sources: the number of recorded runs in each place that was searched.
        run_seconds: the duration of one run; None if none is known.
        start_seconds, report_seconds: of the start and of the report; assumed if none is recorded.
        plan_seconds: the duration of the plan with one attempt for each case, with start and report, if
            every run took the 10th, 50th or 90th percentile of the durations; None if none is known.
        cost: what it will use and cost; None if no duration is known.
        notes: further limits.
    """

    workflow_id: str
    tool: str
    backend: str
    cases: int
    most_attempts: int
    at_once: int
    source: str
    recorded: int
    run_seconds: Spread | None
    start_seconds: float
    report_seconds: float
    plan_seconds: Spread | None
    cost: CostEstimate | None = None
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
        if self.run_seconds is None or self.plan_seconds is None or self.cost is None:
            places = f" in {' or in '.join(self.sources)}" if self.sources else ""
            lines.append(f"how long it takes is not known: no run of {self.tool} is recorded{places}")
            lines.append(
                "`--pilot 5` runs five cases and keeps them; `--run-seconds` says how long one takes"
            )
        else:
            lines.append(f"one run takes {_words(self.run_seconds)}, {self._from()}")
            around = f"start ({_time(self.start_seconds)}) and report ({_time(self.report_seconds)}) included"
            lines.append(f"the plan takes {_words(self.plan_seconds)}, {around}")
            lines += self.cost.lines(self.cases, self.most_attempts)
        return (*lines, *self.notes)

    def _from(self) -> str:
        runs = f"{self.recorded:,} {'run' if self.recorded == 1 else 'runs'}"
        match self.source:
            case "declared":
                return "as you say"
            case "pilot":
                return f"from {runs} of the pilot"
        places = f" ({', '.join(f'{count:,} in {place}' for place, count in self.sources.items())})"
        return f"from {self.recorded:,} recorded {runs.rpartition(' ')[2]}{places if self.sources else ''}"


def estimate(
    manifest: RunManifest,
    recorded: Sequence[RecordedRuns],
    backend: str,
    capacity: int,
    notes: Sequence[str] = (),
    *,
    tariff: Tariff = UNPRICED,
    source: str = "recorded",
) -> Estimate:
    """Estimate the duration of a plan, what it will use, and what it will cost.

    Args:
        manifest: the plan.
        recorded: runs of its tool, by the place of their record; or one run of a declared duration.
        backend: the name of the backend.
        capacity: how many runs the backend takes at once.
        notes: further limits, for the reader.
        tariff: what a run holds there, and what that costs.
        source: what the durations are: `recorded`, `pilot` or `declared`.

    Raises:
        PlanError: the cases of the plan can't be generated.
    """
    cases, policy = len(all_cases(manifest)), manifest.execution_policy
    at_once = max(1, min(policy.concurrency, capacity, batch_size(policy, cases)))
    known = [seconds for one in recorded for seconds in one.seconds if 0 <= seconds < math.inf]
    run = Spread.of(known) if known else None
    most = cases * policy.retry_policy.max_attempts
    most = min(most, manifest.budget.max_runs or most)
    start, report = around_seconds([times for one in recorded for times in one.sessions], cases)
    plan = run and run.map(lambda seconds: _whole(seconds, cases, at_once, policy))
    return Estimate(
        workflow_id=manifest.workflow_id,
        tool=manifest.tool,
        backend=backend,
        cases=cases,
        most_attempts=most,
        at_once=at_once,
        source=source if known else "",
        recorded=len(known),
        run_seconds=run,
        start_seconds=start,
        report_seconds=report,
        plan_seconds=plan and plan.map(lambda seconds: start + seconds + report),
        cost=_cost(recorded, tariff, run, plan, Counts(cases, most, at_once)) if run and plan else None,
        notes=(*_few(len(known), source), *_limits(manifest, cases, run), *notes),
        sources={one.place: len(one.seconds) for one in recorded},
    )


@dataclass(frozen=True, slots=True)
class Counts:
    """How many cases a plan has, how many attempts at most, and how many of them run at once."""

    cases: int
    most_attempts: int
    at_once: int


def around_seconds(sessions: Sequence[SessionTimes], cases: int) -> tuple[float, float]:
    """Return the seconds of the start and of the report of a plan with so many cases.

    They are those of recorded sessions (the median), or else assumed; a report grows with its cases.
    """
    if not sessions:
        return ASSUMED_START_SECONDS, ASSUMED_REPORT_SECONDS + REPORT_CASE_SECONDS * cases
    start = statistics.median(one.start_seconds for one in sessions)
    fixed = [
        max(0.0, one.report_seconds - REPORT_CASE_SECONDS * one.cases)
        for one in sessions
        if one.report_seconds is not None
    ]
    report = statistics.median(fixed) if fixed else ASSUMED_REPORT_SECONDS
    return start, report + REPORT_CASE_SECONDS * cases


def _cost(
    recorded: Sequence[RecordedRuns], tariff: Tariff, run: Spread, plan: Spread, counts: Counts
) -> CostEstimate:
    """Return what a plan uses and costs, if runs use in a second what recorded ones did, or hold."""
    used, known = Usage.total(one.used for one in recorded), sum(one.cases for one in recorded)
    cores = used.core_seconds / used.seconds if used.seconds else 0.0
    peak_bytes = round(GIB * used.gib_seconds / used.seconds) if used.seconds else 0
    attempts = min(max(1.0, used.attempts / known if known else 1.0), counts.most_attempts / counts.cases)

    def usage(seconds: float) -> Usage:
        return tariff.usage(seconds, cores * seconds, peak_bytes)

    idle_seconds = max(0.0, counts.at_once * plan.p90 - counts.cases * run.p90)
    overhead = counts.at_once * tariff.overhead_seconds
    low = usage(counts.cases * run.p10)
    likely = usage(counts.cases * attempts * run.median + overhead)
    high = usage(counts.cases * attempts * run.p90 + overhead + idle_seconds)
    most = usage(counts.most_attempts * run.p90 + overhead).money
    rates, has_money = tariff.rates, tariff.rates is not None

    def use(member: Callable[[Usage], float]) -> Use:
        return Use(*sorted((member(low), member(likely), member(high))))

    return CostEstimate(
        attempts_per_case=attempts,
        core_seconds=use(lambda one: one.core_seconds),
        gib_seconds=use(lambda one: one.gib_seconds),
        gpu_seconds=use(lambda one: one.gpu_seconds),
        money=use(lambda one: one.money or 0.0) if has_money else None,
        most_money=most,
        currency=rates.currency if rates else "",
        prices=rates.source if rates else "",
        missing=tariff.missing,
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


def _few(recorded: int, source: str) -> list[str]:
    if source == "declared" or not 0 < recorded < MANY:
        return []
    return [
        f"so few {'runs' if source == 'pilot' else 'recorded runs'} ({recorded}) say little about the spread"
    ]


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
    if budget.max_money is not None:
        notes.append(f"the plan is stopped before it costs more than {budget.max_money:g}")
    if timeout is not None:
        notes.append(f"the plan is stopped after {_time(timeout)}")
    return notes


def _words(spread: Spread) -> str:
    low, middle, high = _time(spread.p10), _time(spread.median), _time(spread.p90)
    return f"about {middle}" if low == high else f"about {middle} ({low} to {high})"


def _used(use: Use, unit: str) -> str:
    low, likely, high = (
        f"{one:,.0f}" if one >= 10 else f"{one:.2g}" for one in (use.low, use.likely, use.high)
    )
    return f"about {likely} {unit}" + (f" ({low} to {high})" if low != high else "")


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
