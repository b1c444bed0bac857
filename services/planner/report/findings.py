"""The contents of a report, gathered once from the results of a plan, and which of them are drawn."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from services.planner.cost import Usage
from services.planner.evaluation import Evaluation, group_key, group_replicates
from services.planner.metrics.plan_metrics import NO_METRICS, PlanMetrics
from services.planner.models import RunManifest, TestCase
from services.planner.plan.plan_usage import NO_PLAN_USAGE, PlanUsage
from services.planner.report.paired import PairedComparison
from services.planner.report.tables import Table, table_of
from services.planner.results import finite_number, flattened, numeric_members, returned_value
from services.planner.tasks import TaskResult, TaskStatus
from shared.canonical_json import canonical_json
from shared.documents import printable
from shared.errors import ArtifactError, PlanError


@dataclass(frozen=True, slots=True)
class Group:
    """The replicates of one case.

    Attributes:
        number: from 1, in the order of the plan.
        case: the first replicate.
        parameters: by their full names.
        cases: the indexes of the replicates.
        succeeded: how many replicates succeeded.
        samples: the numbers in the results of those that succeeded, by their full names, and their
            metrics, as `metric.NAME`.
        evaluation: of the replicates; None if there is none.
    """

    number: int
    case: TestCase
    parameters: Mapping[str, Any]
    cases: tuple[int, ...]
    succeeded: int
    samples: Mapping[str, Sequence[float]]
    evaluation: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of a sample; `sd` is the sample standard deviation."""

    n: int
    mean: float
    sd: float
    min: float
    median: float
    max: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> "Summary":
        """Return the summary of at least one number; the deviation of a single number is 0.

        Computes with exact fractions, so that sums of the largest floats don't overflow.
        """
        mean = statistics.mean(sample)
        sd = statistics.stdev(sample, mean) if len(sample) > 1 else 0.0
        middle = statistics.mean((statistics.median_low(sample), statistics.median_high(sample)))
        return cls(len(sample), mean, sd, min(sample), middle, max(sample))


@dataclass(frozen=True, slots=True)
class Findings:
    """The findings of a plan.

    Attributes:
        manifest: the plan.
        results: of its cases, in their order.
        table: the results as rows and columns.
        groups: the replicates of each case.
        evaluations: in the order of the cases.
        tool_digests: how many cases ran each version of the tool's code.
        warnings: why the findings may be doubtful or incomplete.
        metrics: of the cases.
        usage: what the runs have used of machines.
        paired: the comparison of the plan's arms, if there is one.
    """

    manifest: RunManifest
    results: Sequence[TaskResult]
    table: Table
    groups: Sequence[Group]
    evaluations: Sequence[Evaluation]
    tool_digests: Mapping[str, int]
    warnings: Sequence[str]
    metrics: PlanMetrics = NO_METRICS
    usage: PlanUsage = NO_PLAN_USAGE
    paired: PairedComparison | None = None

    @property
    def tool_cost(self) -> float:
        """The sum of `cost` in the tool's results, in the tool's own unit."""
        known = (finite_number(one) for one in self.table.columns.get("result.cost", ()))
        return math.fsum(one for one in known if one is not None and one >= 0)

    @property
    def counts(self) -> dict[str, int]:
        """The number of cases in each status."""
        found = Counter(str(one.task_status) for one in self.results)
        return {str(status): found[status] for status in TaskStatus if found[status]}

    @property
    def failures(self) -> list[TaskResult]:
        """The results without success; cancelled cases are left out."""
        good = {TaskStatus.SUCCEEDED, TaskStatus.CANCELLED}
        return [one for one in self.results if one.task_status not in good]


def gather_findings(
    manifest: RunManifest,
    results: Sequence[TaskResult],
    evaluations: Sequence[Evaluation] = (),
    notes: Sequence[str] = (),
    metrics: PlanMetrics = NO_METRICS,
    usage: PlanUsage | None = None,
    paired: PairedComparison | None = None,
) -> Findings:
    """Gather the findings; blocks while it loads stored results from a disk or a network.

    Args:
        manifest: the plan.
        results: of its cases, in any order.
        evaluations: of its replicates, in any order.
        notes: further warnings.
        metrics: of the cases.
        usage: what the runs have used in all sessions; None for what the results say.
        paired: the comparison of the plan's arms.
    """
    ordered = sorted(results, key=lambda one: one.index)
    returns, unreadable = _returns(ordered)
    used = usage or usage_of(ordered)
    table, left_out = table_of(ordered, returns, metrics, used.cases)
    made = sorted(evaluations, key=lambda one: one.cases)
    changed = code_warning(ordered)
    warnings = [
        *([changed] if changed else []),
        *_incomplete(unreadable, len(ordered), left_out, made),
        *([metrics.warning] if metrics.warning else []),
        *(paired.warnings if paired else ()),
        *notes,
    ]
    values = {one.index: value for one, value in zip(ordered, returns, strict=True)}
    groups = _groups(ordered, values, made, metrics)
    return Findings(
        manifest, ordered, table, groups, made, tool_digests(ordered), warnings, metrics, used, paired
    )


def tool_digests(results: Sequence[TaskResult]) -> dict[str, int]:
    """Count the runs of each version of the tool's code, by digest, in the order of the cases."""
    executed = (one.execution for one in results if one.execution is not None)
    return dict(Counter(one.tool_digest for one in executed if one.tool_digest))


def code_warning(results: Sequence[TaskResult]) -> str | None:
    """Return a warning if the tool's code changed while the plan was executed, else None."""
    digests = tool_digests(results)
    if len(digests) < 2:
        return None
    versions = ", ".join(f"{digest[:12]} ({count:,} runs)" for digest, count in digests.items())
    return f"the tool's code changed while the plan ran, so its results may not be comparable: {versions}"


def _returns(results: Sequence[TaskResult]) -> tuple[list[Any], dict[int, str]]:
    """Return what the tool returned for each case, and why it can't be read, by index, for some."""
    values: list[Any] = []
    unreadable: dict[int, str] = {}
    for result in results:
        try:
            values.append(returned_value(result))
        except ArtifactError as exc:
            values.append(None)
            unreadable[result.index] = str(exc)
    return values, unreadable


def _incomplete(
    unreadable: Mapping[int, str], cases: int, left_out: int, made: Sequence[Evaluation]
) -> list[str]:
    warnings = []
    if unreadable:
        first = min(unreadable)
        warnings.append(
            f"the results of {len(unreadable):,} of {cases:,} cases can't be read, and are in no table and "
            f"no plot; that of case {first}: {unreadable[first]}"
        )
    if left_out:
        warnings.append(f"results have {left_out:,} members for which the tables have no columns")
    failed = [one.error for one in made if one.error]
    if failed:
        warnings.append(f"{len(failed):,} of {len(made):,} evaluations failed, the first with {failed[0]}")
    return warnings


def _groups(
    results: Sequence[TaskResult],
    values: Mapping[int, Any],
    made: Sequence[Evaluation],
    metrics: PlanMetrics,
) -> list[Group]:
    evaluations = {_key(one): one for one in made}
    groups = []
    for number, replicates in enumerate(group_replicates(results), 1):
        case = replicates[0].case
        good = [one for one in replicates if one.task_status is TaskStatus.SUCCEEDED]
        samples: dict[str, list[float]] = {}
        for one in good:
            for name, value in numeric_members(values[one.index]):
                samples.setdefault(name, []).append(value)
            for name, metric in metrics.values.get(one.index, {}).items():
                if metric is not None:
                    samples.setdefault(f"{METRIC}{name}", []).append(metric)
        parameters = dict(flattened(case.parameters)) if case.parameters else {}
        cases = tuple(one.index for one in replicates)
        evaluation = evaluations.get(group_key(case))
        groups.append(Group(number, case, parameters, cases, len(good), samples, evaluation))
    return groups


def _key(evaluation: Evaluation) -> bytes:
    return group_key(
        TestCase(
            dataset=evaluation.dataset, scenario=evaluation.scenario, parameters=dict(evaluation.parameters)
        )
    )


def loss_of(group: Group) -> float | None:
    """Return the loss of a group's evaluation; None without one."""
    return finite_number(group.evaluation.loss) if group.evaluation else None


MAX_VALUES: Final = 4
LOSS: Final = "loss"
METRIC: Final = "metric."
"""Begins the names of metrics among the numbers of a group."""

MAX_LABEL: Final = 24
MAX_DRAWN: Final = 1e300
"""The largest absolute value that is drawn; larger ones overflow the axes."""


def choose_axes(groups: Sequence[Group], axes: tuple[str, str] | None) -> tuple[str, ...]:
    """Return the parameters to draw over: the given ones, or the two that vary over the most values.

    Raises:
        PlanError: no case has such a parameter.
    """
    counts: dict[str, set[bytes]] = {}
    for group in groups:
        for name, value in group.parameters.items():
            counts.setdefault(name, set()).add(key_of(value))
    for name in axes or ():
        if name not in counts:
            raise PlanError(f"no case has the parameter {name!r}; there are {_listed(counts)}")
    varying = sorted((name for name in counts if len(counts[name]) > 1), key=lambda name: -len(counts[name]))
    return axes or tuple(varying[:2])


def choose_values(
    groups: Sequence[Group], values: Sequence[str], main_metrics: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return the values to draw: the given ones, or four of the loss, the metrics and numbers that vary.

    Raises:
        PlanError: no result has such a number.
    """
    found = dict.fromkeys(name for group in groups for name in group.samples if name != LOSS)
    first = [f"{METRIC}{name}" for name in main_metrics if f"{METRIC}{name}" in found]
    first += [name for name in found if name.startswith(METRIC) and name not in first]
    known = [*first, *(name for name in found if name not in first)]
    if any(sample_of(group, LOSS) for group in groups):
        known.insert(0, LOSS)
    for name in values:
        if name not in known:
            raise PlanError(f"no result has the number {name!r}; there are {_listed(known)}")
    if values:
        return tuple(values)
    return tuple(name for name in known if name == LOSS or _varies(groups, name))[:MAX_VALUES]


def sample_of(group: Group, name: str) -> list[float]:
    """Return the numbers of this name in a group; `loss` is that of the evaluation, if there is one."""
    loss = loss_of(group) if name == LOSS else None
    sample = group.samples.get(name, ()) if loss is None else (loss,)
    return [one for one in sample if abs(one) <= MAX_DRAWN]


def ordered(values: Sequence[Any]) -> list[Any]:
    """Return the distinct values: numbers by size, then others by their JSON."""
    distinct: Mapping[bytes, Any] = {key_of(one): one for one in values}
    return [distinct[key] for key in sorted(distinct, key=lambda key: _rank(distinct[key], key))]


def label(value: Any) -> str:
    """Return the label of a value on an axis."""
    text = (
        f"{value:g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else canonical_json(value).decode()
    )
    text = printable(text)
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 3] + "..."


def key_of(value: Any) -> bytes:
    """Return a key that distinguishes the values of a parameter."""
    return canonical_json(value)


def is_number(value: Any) -> bool:
    """Return whether a value can be drawn on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_DRAWN


def _rank(value: Any, key: bytes) -> tuple[int, float, bytes]:
    return (0, float(value), key) if is_number(value) else (1, 0.0, key)


def _varies(groups: Sequence[Group], name: str) -> bool:
    return name != "seed" and len({one for group in groups for one in group.samples.get(name, ())}) > 1


def _listed(names: Any) -> str:
    return ", ".join(list(names)[:50]) or "none"


def times(found: Findings) -> dict[str, Any]:
    """Return when the cases ran (ISO 8601), how long, in seconds, what they used, and what was lost."""
    begun = [one.started_at for one in found.results if one.started_at is not None]
    ended = [one.finished_at for one in found.results if one.finished_at is not None]
    seconds = [one.execution_time for one in found.results if one.started_at is not None]
    return {
        "started_at": _text(min(begun, default=None)),
        "finished_at": _text(max(ended, default=None)),
        "wall_seconds": (max(ended) - min(begun)).total_seconds() if begun and ended else 0.0,
        "execution_seconds": sum(seconds),
        "case_seconds": asdict(Summary.of(seconds)) if seconds else None,
        "lost_attempts": sum(one.execution.lost_attempts for one in found.results if one.execution),
        "used": {
            **found.usage.total.to_json(),
            "currency": found.usage.currency or None,
            "prices": found.usage.sources,
            "no_price": found.usage.missing or None,
        },
    }


def usage_of(results: Sequence[TaskResult]) -> PlanUsage:
    """Return what the results say that their runs have used."""
    cases = {one.index: one.used for one in results if one.used.attempts}
    return PlanUsage(Usage.total(cases.values()), cases)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()
