"""A plan as its author writes it: which tool, which cases, under what policy.

Every model refuses members that it doesn't know, and says which value is wrong and
what is allowed.  Times are in seconds.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Pause = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Parameters = dict[str, JsonValue]


class Strict(BaseModel):
    """Nothing is ignored, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    __test__: ClassVar[bool] = False  # for pytest, which takes a class called TestCase for its own


class TestCase(Strict):
    """One case: the parameters of one run.

    Attributes:
        dataset, scenario: what the case belongs to, for grouping and for people.
        parameters: of the tool.
        seed: of the run's random generators; None has it computed from the case's content.
        replicate: tells cases apart that are otherwise the same.
        metadata: comes back with the result.
    """

    dataset: str = ""
    scenario: str = ""
    parameters: Parameters = Field(default_factory=dict)
    seed: Seed | None = None
    replicate: Annotated[int, Field(ge=0)] = 0
    metadata: Parameters = Field(default_factory=dict)


# -- policy ---------------------------------------------------------------------------


class RateLimit(Strict):
    """At most `per_minute` attempts a minute, retries included, `burst` of them at once."""

    per_minute: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    burst: Count = 1


class RetryPolicy(Strict):
    """What follows an attempt that failed in a way that is worth another.

    The n-th pause is `backoff_seconds * backoff_multiplier ** (n - 1)`, more or less by the
    part `jitter` of it.
    """

    max_attempts: Count = 1
    backoff_seconds: Pause = 1.0
    backoff_multiplier: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0


class StopConditions(Strict):
    """When a plan ends before all its cases have run; those that are left are cancelled.

    Attributes:
        max_failures: so many cases did not succeed.
        failure_rate: this part of the cases that ended did not succeed; looked at from the tenth on.
        timeout: of the whole plan.
        timeout_per_task: of one attempt.
    """

    max_failures: Count | None = None
    failure_rate: Annotated[float | None, Field(gt=0, le=1)] = None
    timeout: Seconds | None = None
    timeout_per_task: Seconds | None = None


class ExecutionPolicy(Strict):
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


class Budget(Strict):
    """What a plan may use; it stops when one of them is used up.

    Attributes:
        max_runs: attempts.
        max_seconds: of all runs together, not of the clock on the wall.
        max_cost: the sum of `cost` in the tool's results, in whatever unit the tool counts.
    """

    max_runs: Count | None = None
    max_seconds: Seconds | None = None
    max_cost: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None


# -- cases ----------------------------------------------------------------------------


class Range(Strict):
    """Numbers from `low` to `high`, for designs that choose for themselves.

    Attributes:
        low, high: both included.
        log: chosen evenly by their logarithm.
        integer: whole numbers only.
    """

    low: Finite
    high: Finite
    log: bool = False
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be less than high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range can't begin at {self.low:g}; it must be more than 0")
        return self


class Sweep(Strict):
    """Cases made from dimensions.

    Attributes:
        method: `grid` takes every combination, `zip` the n-th value of each, `pairwise` combinations that
            cover every pair of values, `latin_hypercube` and `sobol` choose `samples` points in the ranges.
        dimensions: by parameter; a list of values, or a range for the methods that choose points.
        parameters: of every case, besides the dimensions.
        samples: how many points; needed by, and only by, the methods that choose them.
        seed: of the choice of points.
        replicates: how often each combination is run, each time with another seed.
        dataset, scenario: of every case.
    """

    method: Literal["grid", "zip", "pairwise", "latin_hypercube", "sobol"] = "grid"
    dimensions: dict[Name, Annotated[list[JsonValue], Field(min_length=1)] | Range] = Field(min_length=1)
    parameters: Parameters = Field(default_factory=dict)
    samples: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    seed: Seed = 0
    replicates: Count = 1
    dataset: str = ""
    scenario: str = ""


class Evaluator(Strict):
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
    success_criteria: tuple[str, ...] = ()
    failure_criteria: tuple[str, ...] = ()


class RunManifest(Strict):
    """A plan: many cases of one tool.

    Attributes:
        workflow_id, workflow_version: name it for people and for its results.
        tool: its name, or a bundle reference.
        cases: one run each; what `sweep` makes comes after them.
        sweep: makes cases.
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
