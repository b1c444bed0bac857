"""A plan as its author writes it: which tool, which cases, under what policy.

Every model refuses members that it doesn't know, and says which value is wrong and
what is allowed.  A number is a number: neither the text of one nor true or false is
taken for it.  Times are in seconds.
"""

import math
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
"""A case takes about a kilobyte of memory before it has run."""

MAX_PAIRS: Final = 100_000
"""Of values to be covered by `pairwise`; choosing for so many takes about ten seconds."""

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
CriterionText = Annotated[str, AfterValidator(lambda text: criterion(text) and text)]


class StrictModel(BaseModel):
    """Nothing is ignored, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    __test__: ClassVar[bool] = False  # for pytest, which takes a class called TestCase for its own


class TestCase(StrictModel):
    """One case: the parameters of one run.

    Attributes:
        dataset, scenario: what the case belongs to, for grouping and for people.
        parameters: of the tool.
        seed: of the run's random generators; None has it computed from the case's content.
        replicate: tells cases apart that are otherwise the same.
        replicates: how often the case is run, each time with another seed; `replicate` counts on.
        metadata: comes back with the result.
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
    """At most `per_minute` attempts a minute, retries included, `burst` of them at once."""

    per_minute: Positive
    burst: Count = 1


class RetryPolicy(StrictModel):
    """What follows an attempt that failed in a way that is worth another.

    The n-th pause is `backoff_seconds * backoff_multiplier ** (n - 1)`, more or less by the
    part `jitter` of it.
    """

    max_attempts: Count = 1
    backoff_seconds: Pause = 1.0
    backoff_multiplier: Annotated[Number, Field(ge=1)] = 2.0
    jitter: Annotated[Number, Field(ge=0, le=1)] = 0.0


class StopConditions(StrictModel):
    """When a plan ends before all its cases have run; those that are left are cancelled.

    Attributes:
        max_failures: so many cases did not succeed.
        failure_rate: this part of the cases that ended did not succeed; looked at from the tenth on.
        timeout: of the whole plan.
        timeout_per_task: of one attempt.
    """

    max_failures: Count | None = None
    failure_rate: Share | None = None
    timeout: Seconds | None = None
    timeout_per_task: Seconds | None = None


class ExecutionPolicy(StrictModel):
    """How a plan's cases are executed.

    Attributes:
        concurrency: cases at once.
        batch_size: cases in a batch; None makes all of them one.
        backoff_seconds: between one batch, wholly ended, and the next.
        rate_control: None for as fast as it goes.
        retry_policy: of one case.
        stop_conditions: of the plan.
        isolation: of each run; None leaves it to the tool and the executor.
    """

    concurrency: Count = 1
    batch_size: Count | None = None
    backoff_seconds: Pause = 0.0
    rate_control: RateLimit | None = None
    retry_policy: RetryPolicy = RetryPolicy()
    stop_conditions: StopConditions = StopConditions()
    isolation: Literal["warm", "fork", "spawn"] | None = None


class Budget(StrictModel):
    """What a plan may use; it stops when one of them is used up.

    Attributes:
        max_runs: attempts.
        max_seconds: of all runs together, not of the clock on the wall.
        max_cost: the sum of `cost` in the tool's results, in whatever unit the tool counts.
    """

    max_runs: Count | None = None
    max_seconds: Seconds | None = None
    max_cost: Positive | None = None


# -- cases ----------------------------------------------------------------------------


class Range(StrictModel):
    """Numbers from `low` to `high`, for designs that choose for themselves.

    Attributes:
        low, high: both included.
        log: chosen evenly by their logarithm.
        integer: whole numbers only, the two ends as often as any other.
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


class Sweep(StrictModel):
    """Cases made from dimensions.

    Attributes:
        method: `grid` takes every combination, the last dimension changing fastest; `zip` the n-th value
            of each; `pairwise` combinations that cover every pair of values; `latin_hypercube` and
            `sobol` choose `samples` points.
        dimensions: by parameter; a list of values, or, for the methods that choose points, a range.
            Of a list these take every value about as often as the others.
        parameters: of every case, besides the dimensions.
        samples: how many points; needed by, and only by, the methods that choose them.  Any number works
            with `sobol`, but only powers of two are balanced: others are the first of the next power.
        seed: of the choice of points, 0 by default.  The seeds of runs are something else, see `seed_of`.
        replicates: how often each combination is run, each time with another seed.
        dataset, scenario: of every case.
    """

    method: Literal["grid", "zip", "pairwise", "latin_hypercube", "sobol"] = "grid"
    dimensions: dict[Name, Dimension] = Field(min_length=1)
    parameters: Parameters = Field(default_factory=dict)
    samples: Annotated[Count, Field(le=MAX_CASES)] | None = None
    seed: Seed | None = None
    replicates: Count = 1
    dataset: str = ""
    scenario: str = ""

    @property
    def chooses_points(self) -> bool:
        """Whether the method chooses points, rather than combining what is listed."""
        return self.method in ("latin_hypercube", "sobol")

    @property
    def least_cases(self) -> int:
        """How many cases it makes; with `pairwise`, how many it makes at least."""
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
                    f"'{self.method}' takes all that is listed"
                )
        lengths = {name: len(one) for name, one in self.dimensions.items() if isinstance(one, list)}
        if self.method == "zip" and len(set(lengths.values())) > 1:
            listed = ", ".join(f"{name!r} {length}" for name, length in lengths.items())
            raise ValueError(f"'zip' needs dimensions with equally many values; there are of {listed}")
        pairs = (sum(lengths.values()) ** 2 - sum(one**2 for one in lengths.values())) // 2
        if self.method == "pairwise" and len(lengths) > 2 and pairs > MAX_PAIRS:
            raise ValueError(f"'pairwise' would have to cover {pairs:,} pairs; at most {MAX_PAIRS:,} are")


class Evaluator(StrictModel):
    """What is computed over the replicates of each case once they have ended.

    Attributes:
        entry_point: a function of the plan's tool, see `services.planner.aggregation`.
        target_data: what it compares the replicates with.
        on_failed: whether a failed replicate is an error, or left out.
        success_criteria, failure_criteria: such as `response_rate < 0.02 after 100`; the plan stops
            as soon as all of the former, or any of the latter, hold.
    """

    entry_point: Name = "aggregate"
    target_data: JsonValue = None
    on_failed: Literal["fail", "skip"] = "fail"
    success_criteria: tuple[CriterionText, ...] = ()
    failure_criteria: tuple[CriterionText, ...] = ()


class RunManifest(StrictModel):
    """A plan: many cases of one tool.

    Attributes:
        workflow_id, workflow_version: name it for people and for its results.
        tool: its name, or a bundle reference.
        cases: one run each, or `replicates` of them; what `sweep` makes comes after them.
        sweep: makes cases.  `services.planner.cases.all_cases` has the two together.
        execution_policy: how they are executed.
        budget: what they may use.
        evaluator: what is computed over replicates; None computes nothing.
        metadata: comes back with every result.
    """

    workflow_id: Name
    workflow_version: str = "1"
    tool: Name
    cases: tuple[TestCase, ...] = ()
    sweep: Sweep | None = None
    execution_policy: ExecutionPolicy = ExecutionPolicy()
    budget: Budget = Budget()
    evaluator: Evaluator | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _of_a_size(self) -> Self:
        count = sum(one.replicates for one in self.cases) + (self.sweep.least_cases if self.sweep else 0)
        if count > MAX_CASES:
            raise ValueError(f"it has {count:,} cases; at most {MAX_CASES:,} make a plan")
        return self
