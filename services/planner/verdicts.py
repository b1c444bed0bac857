"""Watches a plan's criteria while its cases end, and says when the plan may stop."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.planner.criteria import Criterion, Verdict, criterion
from services.planner.models import Evaluator
from services.planner.returned import at_hand, numbers
from services.planner.tasks import TaskResult, TaskStatus


class Verdicts:
    """Judges all criteria of an evaluator over what is known so far; never waits.

    These can be named:

    - `n`, `succeeded`, `failed`, `failure_rate`: of the cases that have ended; cancelled ones
      don't count, and whatever else didn't succeed has failed.  `after N` counts as `n` does;
    - `error_type`: of the case that ended last, empty if it succeeded;
    - `loss`, `diagnostics.x`, `outputs.x`: of the evaluation that was made last;
    - `result.x`, or just `x` where it is none of the above: the mean of this member over all that
      the tool has returned, where it is a number (truth is 1, falsehood 0).  A result so large
      that it would have to be loaded is left out.
    """

    def __init__(self, evaluator: Evaluator | None) -> None:
        self._success = _read(evaluator.success_criteria if evaluator else ())
        self._failure = _read(evaluator.failure_criteria if evaluator else ())
        self._n = self._failed = 0
        self._error_type = ""
        self._means: dict[str, tuple[int, float]] = {}
        self._evaluation: dict[str, Any] = {}
        self._open: dict[str, tuple[str, ...]] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """The criteria that could never be judged although it was their time, and why."""
        return tuple(f"{text}: {', '.join(why)}" for text, why in self._open.items() if why)

    def case_ended(self, result: TaskResult) -> str | None:
        """Take a case into account; why the plan may stop now, if it may."""
        if result.task_status is TaskStatus.CANCELLED or not (self._success or self._failure):
            return None
        is_success = result.task_status is TaskStatus.SUCCEEDED
        self._n += 1
        self._failed += not is_success
        self._error_type = "" if is_success else result.error_type or ""
        for name, number in numbers(at_hand(result)) if is_success else ():
            count, mean = self._means.get(name, (0, 0.0))
            self._means[name] = (count + 1, mean + (number - mean) / (count + 1))
        return self._judged()

    def evaluated(
        self, loss: float, diagnostics: Mapping[str, Any], outputs: Mapping[str, Any]
    ) -> str | None:
        """Take an evaluation into account; why the plan may stop now, if it may."""
        self._evaluation = {"loss": loss, "diagnostics": diagnostics, "outputs": outputs}
        return self._judged()

    def _judged(self) -> str | None:
        values = self._values()
        for one in self._failure:
            if self._verdict(one, values).holds:
                return f"failure criterion holds: {one}"
        # All of them, though one would do to know: what none can judge is to be noted.
        success = [self._verdict(one, values).holds for one in self._success]
        if success and all(success):
            return f"success criteria hold: {', '.join(map(str, self._success))}"
        return None

    def _values(self) -> dict[str, Any]:
        means = {name: mean for name, (_, mean) in self._means.items()}
        counts: dict[str, Any] = {"n": self._n, "succeeded": self._n - self._failed, "failed": self._failed}
        if self._n:
            counts |= {"failure_rate": self._failed / self._n, "error_type": self._error_type}
        return {
            **means,
            **{f"result.{name}": mean for name, mean in means.items()},
            **counts,
            **self._evaluation,
        }

    def _verdict(self, one: Criterion, values: Mapping[str, Any]) -> Verdict:
        verdict = one.judge(values, self._n)
        if verdict.holds is not None:
            self._open[str(one)] = ()
        elif verdict.notes:
            # Once it could be judged, that it can't be for a moment is no news.
            self._open.setdefault(str(one), verdict.notes)
        return verdict


def _read(texts: Sequence[str]) -> tuple[Criterion, ...]:
    return tuple(map(criterion, texts))
