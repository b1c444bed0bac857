"""The models of a manifest: which tool, which cases, under what policy.

Every model refuses unknown members, and its errors say which value is wrong and what is allowed.
Nothing is converted: neither a text nor true or false is accepted as a number.  Times are in
seconds.
"""

import math
import re
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    model_validator,
)

from services.planner.criteria import criterion

MAX_CASES: Final = 1_000_000
"""The most cases of a plan; a case takes about a kilobyte of memory before it has run."""

MAX_PAIRS: Final = 100_000
"""The most pairs of values that `pairwise` covers; that takes about ten seconds."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Whole = Annotated[int, Field(strict=True)]
Seconds = Annotated[Number, Field(gt=0)]
Positive = Annotated[Number, Field(gt=0)]
Pause = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(gt=0, le=1)]
Count = Annotated[Whole, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[Whole, Field(ge=0, lt=2**63)]
Switch = Annotated[bool, Field(strict=True)]
Parameters = dict[str, JsonValue]
METRICS: Final = {"ring": "services.planner.metrics:MetricsComputer"}
"""The metrics that have a short name, and the classes that compute them."""

_CLASS: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def metrics_name(name: str) -> str:
    """Return the name of metrics.  Raises `ValueError` unless it is in `METRICS` or a `module:Class`."""
    if name not in METRICS and not _CLASS.fullmatch(name):
        known = ", ".join(METRICS)
        raise ValueError(f"{name!r:.80} are no metrics; known are {known}, or give module:Class")
    return name


MetricsName = Annotated[str, AfterValidator(metrics_name)]
CriterionText = Annotated[str, AfterValidator(lambda text: criterion(text) and text)]


class StrictModel(BaseModel):
    """A frozen model without unknown members."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    __test__: ClassVar[bool] = False  # or pytest would collect the class TestCase


class TestCase(StrictModel):
    """One case: the parameters of one run.

    Attributes:
        dataset, scenario: groups that the case belongs to.
        parameters: keyword arguments of the tool.
        seed: of the run's random generators; None computes it from the content of the case.
        replicate: the number that distinguishes otherwise equal cases.
        replicates: how often the case is run, each time with another seed; `replicate` is the
            number of the first.
        metadata: is returned with the result.
    """

    dataset: str = ""
    scenario: str = ""
    parameters: Parameters = Field(default_factory=dict)
    seed: Seed | None = None
    replicate: Annotated[Whole, Field(ge=0)] = 0
    replicates: Count = 1
    metadata: Parameters = Field(default_factory=dict)


# -- policy ---------------------------------------------------------------------------


class RateLimit(StrictModel):
    """At most `per_minute` attempts a minute, retries included, of which `burst` may begin at once."""

    per_minute: Positive
    burst: Count = 1


class RetryPolicy(StrictModel):
    """How an attempt is repeated whose failure is retryable.

    The n-th pause is `backoff_seconds * backoff_multiplier ** (n - 1)`, changed at random by up to
    the fraction `jitter` of it.  With `seed: attempt` each attempt after the first has a seed of its own,
    which follows from that of the case and the number of the attempt; with `seed: case` all have that of
    the case.
    """

    max_attempts: Count = 1
    backoff_seconds: Pause = 1.0
    backoff_multiplier: Annotated[Number, Field(ge=1)] = 2.0
    jitter: Annotated[Number, Field(ge=0, le=1)] = 0.0
    seed: Literal["attempt", "case"] = "attempt"


class StopConditions(StrictModel):
    """What stops a plan before all its cases have run; the cases that are left are cancelled.

    Attributes:
        max_failures: the number of cases without success at which the plan stops.
        failure_rate: the fraction of ended cases without success at which the plan stops; it is
            looked at from the tenth ended case on.
        timeout: of the whole plan, in seconds.
        timeout_per_task: of one attempt, in seconds.
    """

    max_failures: Count | None = None
    failure_rate: Share | None = None
    timeout: Seconds | None = None
    timeout_per_task: Seconds | None = None


class ExecutionPolicy(StrictModel):
    """How a plan's cases are executed.

    Attributes:
        concurrency: how many cases run at once.
        batch_size: cases in a batch; None makes all cases one batch.
        backoff_seconds: the pause between the end of one batch and the next.
        rate_control: the rate limit; None for no limit.
        retry_policy: of one case.
        stop_conditions: of the plan.
        isolation: of each run; None for that of the tool or the executor.
    """

    concurrency: Count = 1
    batch_size: Count | None = None
    backoff_seconds: Pause = 0.0
    rate_control: RateLimit | None = None
    retry_policy: RetryPolicy = RetryPolicy()
    stop_conditions: StopConditions = StopConditions()
    isolation: Literal["warm", "fork", "spawn"] | None = None


class Budget(StrictModel):
    """What a plan may use, in all sessions together; it stops when one of these is used up.

    Attributes:
        max_runs: the number of attempts.
        max_seconds: the sum of the durations of all attempts.
        max_cost: the sum of `cost` in the tool's results, in the tool's unit.
        max_money: what the platform charges, in the currency of its prices; the plan stops before it would
            be more.
    """

    max_runs: Count | None = None
    max_seconds: Seconds | None = None
    max_cost: Positive | None = None
    max_money: Positive | None = None


# -- cases ----------------------------------------------------------------------------


class Range(StrictModel):
    """A range of numbers, for methods that choose points.

    Attributes:
        low, high: the bounds, both included.
        log: whether the logarithm is chosen evenly.
        integer: whether only whole numbers are chosen, the bounds as often as any other.
    """

    low: Number
    high: Number
    log: Switch = False
    integer: Switch = False

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range can't begin at {self.low:g}; it must be more than 0")
        if self.integer and not all(one.is_integer() and abs(one) <= 2**53 for one in (self.low, self.high)):
            raise ValueError(f"low ({self.low:g}) and high ({self.high:g}) must be whole numbers up to 2**53")
        return self


VALUES: Final = "a list of values"
RANGE: Final = "a range"
Values = Annotated[list[JsonValue], Field(min_length=1)]
Dimension = Annotated[
    Annotated[Values, Tag(VALUES)] | Annotated[Range, Tag(RANGE)],
    Discriminator(lambda given: RANGE if isinstance(given, dict | Range) else VALUES),
]


class SeedRule(StrictModel):
    """How the seeds of a sweep's runs are computed, besides from the content of each case.

    Attributes:
        base: another number gives all runs other random numbers; None for those of the content alone.
        common: dimensions whose values share random numbers: cases that differ in nothing else have the
            same seed (common random numbers).
    """

    base: Seed | None = None
    common: tuple[Name, ...] = ()


class Sweep(StrictModel):
    """Cases that are generated from dimensions.

    Attributes:
        method: `grid` takes every combination, the last dimension changing fastest; `zip` the n-th value
            of each; `pairwise` combinations that cover every pair of values; `latin_hypercube` and
            `sobol` choose `samples` points.
        dimensions: by parameter: a list of values, or, for the methods that choose points, a range.
            These methods take each value of a list about equally often.
        parameters: of every case, besides the dimensions.
        samples: how many points are chosen; required by the methods that choose points, and refused
            by the others.  `sobol` is balanced only for powers of two; other numbers take the first
            points of the next power.
        seed: of the choice of points, 0 by default.
        seeds: of the runs; None for seeds that follow from the content of each case, see `seed_of`.
        replicates: how often each combination is run, each time with another seed.
        dataset, scenario: of every case.
    """

    method: Literal["grid", "zip", "pairwise", "latin_hypercube", "sobol"] = "grid"
    dimensions: dict[Name, Dimension] = Field(min_length=1)
    parameters: Parameters = Field(default_factory=dict)
    samples: Annotated[Count, Field(le=MAX_CASES)] | None = None
    seed: Seed | None = None
    seeds: SeedRule | None = None
    replicates: Count = 1
    dataset: str = ""
    scenario: str = ""

    @property
    def chooses_points(self) -> bool:
        """Whether the method chooses points, and doesn't combine listed values."""
        return self.method in ("latin_hypercube", "sobol")

    @property
    def least_cases(self) -> int:
        """The number of cases; for `pairwise`, a lower bound of it."""
        lengths = [len(one) for one in self.dimensions.values() if not isinstance(one, Range)]
        match self.method:
            case "grid":
                count = math.prod(lengths)
            case "zip":
                count = lengths[0]
            case "pairwise":
                count = math.prod(sorted(lengths)[-2:])
            case "latin_hypercube" | "sobol":
                count = self.samples or 0
        return count * self.replicates

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = [name for name in self.dimensions if name in self.parameters]
        if twice:
            raise ValueError(f"{twice[0]!r} is both among the dimensions and among the parameters")
        for name in self.seeds.common if self.seeds else ():
            if name not in self.dimensions:
                known = ", ".join(map(repr, self.dimensions))
                raise ValueError(
                    f"'seeds.common' names {name!r:.80}, which is no dimension; known are {known}"
                )
        if self.chooses_points:
            if self.samples is None:
                raise ValueError(f"'{self.method}' needs 'samples', the number of points to choose")
        else:
            self._check_listed()
        return self

    def _check_listed(self) -> None:
        for name, one in self.dimensions.items():
            if isinstance(one, Range):
                raise ValueError(  # noqa: TRY004  (pydantic reports ValueErrors)
                    f"dimension {name!r} is a range; '{self.method}' takes lists of values, "
                    "'latin_hypercube' and 'sobol' choose points in ranges"
                )
        for name in ("samples", "seed"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"'{name}' is for 'latin_hypercube' and 'sobol', which choose points; "
                    f"'{self.method}' takes all listed values"
                )
        lengths = {name: len(one) for name, one in self.dimensions.items() if isinstance(one, list)}
        if self.method == "zip" and len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise ValueError(f"'zip' needs dimensions with equally many values; given are {listed}")
        pairs = (sum(lengths.values()) ** 2 - sum(one**2 for one in lengths.values())) // 2
        if self.method == "pairwise" and len(lengths) > 2 and pairs > MAX_PAIRS:
            raise ValueError(f"'pairwise' would have to cover {pairs:,} pairs; the limit is {MAX_PAIRS:,}")


class Evaluator(StrictModel):
    """What is computed over the replicates of each case when they have ended.

    Attributes:
        entry_point: the name of a function of the plan's tool, see `services.planner.aggregation`.
        target_data: what the function compares the replicates with; JSON.
        on_failed: whether a failed replicate is an error (`fail`) or left out (`skip`).
        success_criteria, failure_criteria: such as `response_rate < 0.02 after 100`; the plan stops
            as soon as all success criteria hold, or any failure criterion does.
    """

    entry_point: Name = "aggregate"
    target_data: JsonValue = None
    on_failed: Literal["fail", "skip"] = "fail"
    success_criteria: tuple[CriterionText, ...] = ()
    failure_criteria: tuple[CriterionText, ...] = ()


class Comparison(StrictModel):
    """Two arms of a plan that differ in one parameter, in pairs with common random numbers.

    Attributes:
        parameter: its name.
        control, treatment: its values in the two arms.
        balanced: whether the runs of a pair must start from the same balance sheets: the events of day 0 in
            their artifacts `events.jsonl` must be equal.
    """

    parameter: Name
    control: JsonValue
    treatment: JsonValue
    balanced: Switch = False

    @model_validator(mode="after")
    def _of_two_arms(self) -> Self:
        if self.control == self.treatment:
            raise ValueError(f"control and treatment are both {self.control!r:.80}; they must differ")
        return self


class RunManifest(StrictModel):
    """A plan: many cases of one tool.

    Attributes:
        workflow_id, workflow_version: the name of the plan, which its results carry.
        tool: its name, or a bundle reference.
        cases: the listed cases, of one run or of `replicates` runs each.
        sweep: generates cases, which follow the listed ones; see `services.planner.cases.all_cases`.
        execution_policy: how the cases are executed.
        budget: what all runs together may use.
        evaluator: what is computed over replicates; None for nothing.
        metrics: what is computed from each case's artifacts, see `services.planner.metrics.plan_metrics`.
        comparison: what is compared between pairs of cases; None for nothing.
        metadata: is returned with every result.
    """

    workflow_id: Name
    workflow_version: str = "1"
    tool: Name
    cases: tuple[TestCase, ...] = ()
    sweep: Sweep | None = None
    execution_policy: ExecutionPolicy = ExecutionPolicy()
    budget: Budget = Budget()
    evaluator: Evaluator | None = None
    metrics: MetricsName | None = None
    comparison: Comparison | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_a_size(self) -> Self:
        count = sum(one.replicates for one in self.cases) + (self.sweep.least_cases if self.sweep else 0)
        if count > MAX_CASES:
            raise ValueError(f"it has {count:,} cases; a plan has at most {MAX_CASES:,}")
        return self

    @model_validator(mode="after")
    def _pairs_share_seeds(self) -> Self:
        comparison, sweep = self.comparison, self.sweep
        if comparison is None or sweep is None:
            return self
        name = comparison.parameter
        listed = sweep.dimensions.get(name)
        for value in (comparison.control, comparison.treatment):
            if not isinstance(listed, list) or value not in listed:
                raise ValueError(f"'comparison' needs {value!r:.80} in the list 'sweep.dimensions.{name}'")
        if name not in (sweep.seeds.common if sweep.seeds else ()):
            raise ValueError(f"'comparison' needs common random numbers: {name!r} in 'sweep.seeds.common'")
        return self
