"""What stops a plan before all its cases have run: limits on failures, and the evaluator's criteria."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, assert_never

from services.planner.cancellation import GoalReached
from services.planner.criteria import Comparison, Condition, Criterion, Joined, Not, Verdict, criterion
from services.planner.models import Evaluator, StopConditions
from services.planner.results import inline_value, is_stored, numeric_members
from services.planner.tasks import UNSUCCESSFUL, TaskResult, TaskStatus

Stopper = Callable[[TaskResult], str | None]
"""Is called with every result, in the order in which cases end; a reason that it returns stops the plan."""

FAILURE_RATE_FROM = 10
"""The number of ended cases from which on the failure rate is looked at."""


class FailureLimits:
    """The stop conditions that count failures, as a stopper for one execution."""

    def __init__(self, conditions: StopConditions) -> None:
        self._conditions = conditions
        self._ended = 0
        self._unsuccessful = 0

    def __call__(self, result: TaskResult) -> str | None:
        """Count the case and return the reason to stop, if there is one.  Cancelled cases don't count."""
        if result.task_status is TaskStatus.CANCELLED:
            return None
        self._ended += 1
        self._unsuccessful += result.task_status in UNSUCCESSFUL
        return self._too_many() or self._too_large_a_part()

    def _too_many(self) -> str | None:
        limit = self._conditions.max_failures
        if limit is None or self._unsuccessful < limit:
            return None
        return f"max_failures: {self._unsuccessful} of {self._ended} cases did not succeed"

    def _too_large_a_part(self) -> str | None:
        limit = self._conditions.failure_rate
        if limit is None or self._ended < FAILURE_RATE_FROM or self._unsuccessful < limit * self._ended:
            return None
        counts = f"{self._unsuccessful} of {self._ended} cases did not succeed"
        return f"failure_rate: {counts}; the limit is {limit:g}"


OF_EVALUATIONS: Final = frozenset({"loss", "diagnostics", "outputs"})
"""The first parts of the names of what evaluations find."""

COUNTED: Final = frozenset({"n", "succeeded", "failed", "failure_rate", "error_type"})
"""The names whose values are known without reading results."""


def criteria_needing_evaluations(evaluator: Evaluator | None) -> tuple[str, ...]:
    """Return the criteria that name what evaluations find (`loss`, `diagnostics.x`, `outputs.x`)."""
    if evaluator is None:
        return ()
    texts = (*evaluator.success_criteria, *evaluator.failure_criteria)
    return tuple(text for text in texts if any(map(_is_found, _names(criterion(text).condition))))


class CriteriaTracker:
    """Judges all criteria of an evaluator over what is known so far; never blocks.

    Criteria may name:

    - `n`, `succeeded`, `failed`, `failure_rate`: of the cases that have ended.  Cancelled cases don't
      count, all others without success have failed.  `after N` counts as `n` does;
    - `error_type`: of the case that ended last, empty if it succeeded;
    - `loss`, `diagnostics.x`, `outputs.x`: of the evaluation that was made last;
    - `result.x`, or `x` if it is none of the above: the mean of this member over all results in which
      it is a number (true is 1, false is 0).  A stored result, which would have to be loaded, is
      left out.
    """

    def __init__(self, evaluator: Evaluator | None) -> None:
        self._success = _read(evaluator.success_criteria if evaluator else ())
        self._failure = _read(evaluator.failure_criteria if evaluator else ())
        self._n = self._failed = 0
        self._error_type = ""
        self._means: dict[str, tuple[int, float]] = {}
        self._evaluation: dict[str, Any] = {}
        self._open: dict[str, tuple[str, ...]] = {}
        self._stored: dict[int, str] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """Criteria that could never be judged, with the reasons, and how many results were left out."""
        never = (f"{text}: {', '.join(why)}" for text, why in self._open.items() if why)
        return (*never, *self._left_out())

    def case_ended(self, result: TaskResult) -> str | None:
        """Add the result of a case; return why the plan may stop, if it may."""
        if result.task_status is TaskStatus.CANCELLED or not (self._success or self._failure):
            return None
        is_success = result.task_status is TaskStatus.SUCCEEDED
        self._n += 1
        self._failed += not is_success
        self._error_type = "" if is_success else result.error_type or ""
        if is_success and is_stored(result) and result.execution is not None:
            self._stored[result.index] = result.execution.result or ""
        for name, number in numeric_members(inline_value(result)) if is_success else ():
            count, mean = self._means.get(name, (0, 0.0))
            self._means[name] = (count + 1, mean + (number - mean) / (count + 1))
        return self._judged()

    def evaluated(
        self, loss: float, diagnostics: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> str | None:
        """Add an evaluation; return why the plan may stop, if it may."""
        self._evaluation = {"loss": loss, "diagnostics": diagnostics, "outputs": outputs}
        return self._judged()

    def _judged(self) -> str | None:
        values = self._values()
        for one in self._failure:
            if self._verdict(one, values).holds:
                return f"failure criterion holds: {one}"
        # All of them, though the first that doesn't hold decides: each one's notes are recorded.
        success = [self._verdict(one, values).holds for one in self._success]
        if success and all(success):
            return GoalReached(f"success criteria hold: {', '.join(map(str, self._success))}")
        return None

    def _left_out(self) -> Iterator[str]:
        """Say which results are in no mean, if a criterion names a mean."""
        names = {name for one in (*self._success, *self._failure) for name in _names(one.condition)}
        if self._stored and any(name not in COUNTED and not _is_found(name) for name in names):
            first, succeeded = min(self._stored), self._n - self._failed
            yield (
                f"criteria leave out the results of {len(self._stored):,} of {succeeded:,} cases that "
                "succeeded: they are too large for a record, and stored as artifacts; to see that of "
                f"case {first}: `fullsend artifacts get {self._stored[first]}` (if it ran on `local`, in the "
                "plan's directory, with ARTIFACTS=artifacts)"
            )

    def _values(self) -> dict[str, Any]:
        means = {name: mean for name, (_, mean) in self._means.items()}
        counts: dict[str, Any] = {"n": self._n, "succeeded": self._n - self._failed, "failed": self._failed}
        if self._n:
            counts |= {"failure_rate": self._failed / self._n, "error_type": self._error_type}
        return {
            **{name: mean for name, mean in means.items() if not _is_found(name)},
            **{f"result.{name}": mean for name, mean in means.items()},
            **counts,
            **self._evaluation,
        }

    def _verdict(self, one: Criterion, values: Mapping[str, Any]) -> Verdict:
        verdict = one.judge(values, self._n)
        if verdict.holds is not None:
            self._open[str(one)] = ()
        elif verdict.notes and self._open.get(str(one)) != ():
            # A criterion that could be judged once has no notes: values may be missing for a moment.
            self._open[str(one)] = verdict.notes
        return verdict


def _is_found(name: str) -> bool:
    """Return whether evaluations find what has this name."""
    return name.partition(".")[0] in OF_EVALUATIONS


def _names(condition: Condition) -> Iterator[str]:
    match condition:
        case Comparison(name):
            yield name
        case Not(part):
            yield from _names(part)
        case Joined(_, parts):
            for part in parts:
                yield from _names(part)
        case _:
            assert_never(condition)


def _read(texts: Sequence[str]) -> tuple[Criterion, ...]:
    return tuple(map(criterion, texts))
