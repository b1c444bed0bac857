"""Comparisons of two arms of a plan: differences of pairs that share everything but one parameter."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any, Final

from services.planner.metrics.plan_metrics import NO_METRICS, PlanMetrics
from services.planner.models import Comparison
from services.planner.report.tables import Table
from services.planner.results import flattened, numeric_members, returned_value
from services.planner.tasks import TaskResult, TaskStatus
from shared.canonical_json import canonical_json
from shared.errors import ArtifactError

CONFIDENCE: Final = 0.95
MAX_COMPARED: Final = 1e150
"""Larger absolute values are not compared: their squares overflow."""

EVENTS: Final = "events.jsonl"
_LEFT_OUT: Final = "seed"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two cases that differ in the compared parameter only.

    Attributes:
        control, treatment: the indexes of the cases.
        replicate: of both.
        seed: of both; None if their last attempts had different seeds.
        parameters: what they have in common, by full names.
        values: the numbers that both have, by full names: of control and of treatment.
    """

    control: int
    treatment: int
    replicate: int
    seed: int | None
    parameters: Mapping[str, Any]
    values: Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """The difference of a number between the arms: treatment minus control.

    Attributes:
        parameters: of the pairs; None for all pairs together.
        value: the full name of the number.
        pairs: how many pairs have it.
        control, treatment: the means of the arms.
        difference: the mean of the differences of the pairs.
        sd: the sample standard deviation of these; None for a single pair.
        low, high: the 95% confidence interval of the mean difference by Student's t, with pairs of one seed
            as one cluster; None for a single cluster.
    """

    parameters: Mapping[str, Any] | None
    value: str
    pairs: int
    control: float
    treatment: float
    difference: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PairedComparison:
    """The two arms of a plan, compared.

    Attributes:
        of: what is compared.
        pairs: those that count.
        differences: for each combination of the other parameters, and then of all pairs.
        warnings: which cases are in no pair that counts, and why.
    """

    of: Comparison
    pairs: Sequence[Pair]
    differences: Sequence[PairedDifference]
    warnings: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            **self.of.model_dump(mode="json"),
            "pairs": len(self.pairs),
            "differences": [asdict(one) for one in self.differences],
        }


def compare(
    comparison: Comparison, results: Sequence[TaskResult], metrics: PlanMetrics = NO_METRICS
) -> PairedComparison:
    """Compare the arms of a plan; blocks while it loads stored results and artifacts.

    A pair counts if both cases succeeded with the same seed; for a balanced comparison, also only if both
    runs started from the same state.  Its numbers are those of the results and the metrics that both have.

    Args:
        comparison: what is compared.
        results: of the plan's cases.
        metrics: of the cases.
    """
    arms: dict[bytes, dict[bool, TaskResult]] = {}
    for one in sorted(results, key=lambda one: one.index):
        arm = _arm(comparison, one)
        if arm is not None:
            arms.setdefault(_key(comparison, one), {})[arm] = one
    pairs, problems = [], {}
    for both in arms.values():
        reason = _problem(comparison, both)
        if reason is None:
            pairs.append(_pair(comparison, both[False], both[True], metrics))
        else:
            problems[min(one.index for one in both.values())] = reason
    return PairedComparison(
        comparison, pairs, list(_differences(pairs)), list(_warnings(len(arms), problems))
    )


# -- pairs ----------------------------------------------------------------------------


def _arm(comparison: Comparison, result: TaskResult) -> bool | None:
    """Return whether a case is in the treatment arm; None if it is in none."""
    parameters = result.case.parameters
    if comparison.parameter not in parameters:
        return None
    value = canonical_json(parameters[comparison.parameter])
    if value == canonical_json(comparison.treatment):
        return True
    return False if value == canonical_json(comparison.control) else None


def _key(comparison: Comparison, result: TaskResult) -> bytes:
    case = result.case
    return canonical_json([case.dataset, case.scenario, _others(comparison, result), case.replicate])


def _others(comparison: Comparison, result: TaskResult) -> dict[str, Any]:
    return {name: one for name, one in result.case.parameters.items() if name != comparison.parameter}


def _problem(comparison: Comparison, both: Mapping[bool, TaskResult]) -> str | None:
    """Return why two cases are no pair that counts; None if they are one."""
    if len(both) < 2:
        [(is_treatment, one)] = both.items()
        return f"case {one.index} has no case in the {'control' if is_treatment else 'treatment'} arm"
    for one in both.values():
        if one.task_status is not TaskStatus.SUCCEEDED:
            return f"case {one.index} is {one.task_status}"
    control, treatment = both[False], both[True]
    if control.seed != treatment.seed:
        return f"cases {control.index} and {treatment.index} ran with different seeds"
    return _imbalance(control, treatment) if comparison.balanced else None


def _imbalance(control: TaskResult, treatment: TaskResult) -> str | None:
    """Return in what the starts of two runs differ: their first events, until day 1; None if in nothing."""
    cases = f"cases {control.index} and {treatment.index}"
    try:
        for number, (one, other) in enumerate(zip_longest(_start(control), _start(treatment)), 1):
            if one != other:
                return f"{cases} start differently, from event {number} on: {one!s:.100} and {other!s:.100}"
    except (ArtifactError, OSError, ValueError, KeyError, TypeError) as exc:
        return f"the starts of {cases} can't be read: {exc}"
    return None


def _start(result: TaskResult) -> Iterator[str]:
    """Yield the events of day 0 of a run: what everybody has and owes before anything happens."""
    assert result.execution is not None, "it succeeded on a backend"
    if EVENTS not in result.execution.artifacts:
        raise ArtifactError(f"case {result.index} has no artifact {EVENTS}")
    for line in result.execution.loader.load_text(result.execution.artifacts[EVENTS]).splitlines():
        if json.loads(line)["day"] != 0:
            return
        yield line


def _pair(comparison: Comparison, control: TaskResult, treatment: TaskResult, metrics: PlanMetrics) -> Pair:
    before, after = _numbers(control, metrics), _numbers(treatment, metrics)
    others = _others(comparison, control)
    return Pair(
        control.index,
        treatment.index,
        control.case.replicate,
        control.seed,
        dict(flattened(others)) if others else {},
        {name: (one, after[name]) for name, one in before.items() if name in after},
    )


def _numbers(result: TaskResult, metrics: PlanMetrics) -> dict[str, float]:
    try:
        value = returned_value(result)
    except ArtifactError:  # the report says which results can't be read
        value = None
    found = {name: one for name, one in numeric_members(value) if name and name != _LEFT_OUT}
    computed = metrics.values.get(result.index, {})
    found = {**{f"metric.{name}": one for name, one in computed.items() if one is not None}, **found}
    return {name: one for name, one in found.items() if abs(one) <= MAX_COMPARED}


def _warnings(groups: int, problems: Mapping[int, str]) -> Iterator[str]:
    if problems:
        first = problems[min(problems)]
        yield f"{len(problems):,} of {groups:,} pairs are left out of the comparison; the first: {first}"


# -- differences ----------------------------------------------------------------------


def _differences(pairs: Sequence[Pair]) -> Iterator[PairedDifference]:
    groups: dict[bytes, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(canonical_json(pair.parameters), []).append(pair)
    for group in groups.values():
        yield from _of_group(group[0].parameters, group)
    if len(groups) > 1:
        yield from _of_group(None, pairs)


def _of_group(parameters: Mapping[str, Any] | None, pairs: Sequence[Pair]) -> Iterator[PairedDifference]:
    names = dict.fromkeys(name for pair in pairs for name in pair.values)
    for name in names:
        having = [pair for pair in pairs if name in pair.values]
        sample = [pair.values[name] for pair in having]
        differences = [treatment - control for control, treatment in sample]
        mean, sd, _ = mean_interval(differences)
        margin = _clustered_margin([pair.seed for pair in having], differences)
        yield PairedDifference(
            parameters=parameters,
            value=name,
            pairs=len(sample),
            control=statistics.fmean(control for control, _ in sample),
            treatment=statistics.fmean(treatment for _, treatment in sample),
            difference=mean,
            sd=sd,
            low=None if margin is None else mean - margin,
            high=None if margin is None else mean + margin,
        )


def _clustered_margin(seeds: Sequence[int | None], differences: Sequence[float]) -> float | None:
    """Return half of the 95% confidence interval of the mean of differences; None for a single cluster.

    Pairs of one seed have the same random numbers, so they are not independent: they are one cluster (the
    cluster-robust variance of a mean, with one degree of freedom less than there are clusters).  If no two
    pairs share a seed, it is the margin of `mean_interval`.
    """
    sums: dict[Any, float] = {}
    mean = statistics.fmean(differences)
    for number, (seed, one) in enumerate(zip(seeds, differences, strict=True)):
        cluster = ("pair", number) if seed is None else seed
        sums[cluster] = sums.get(cluster, 0.0) + (one - mean)
    if len(sums) == len(differences):
        return mean_interval(differences)[2]
    _, sd, margin = mean_interval(list(sums.values()))
    return None if sd is None or margin is None else margin * len(sums) / len(differences)


def mean_interval(sample: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return mean, sample standard deviation and half of the 95% confidence interval of the mean.

    The interval is by Student's t, with one degree of freedom less than there are numbers; for differences of
    pairs it is that of the paired t-test.  Deviation and interval are None for a single number.
    """
    from scipy.special import stdtrit  # imported here: few commands need it

    mean, count = statistics.fmean(sample), len(sample)
    if count < 2:
        return mean, None, None
    sd = statistics.stdev(sample)
    return mean, sd, float(stdtrit(count - 1, (1 + CONFIDENCE) / 2)) * sd / math.sqrt(count)


# -- tables ---------------------------------------------------------------------------


def differences_table(found: PairedComparison) -> Table:
    """Return a row for each difference; those of all pairs together are `all` and have no parameters."""
    known = [one.parameters or {} for one in found.differences]
    names = list(dict.fromkeys(name for parameters in known for name in parameters))
    columns: dict[str, Sequence[Any]] = {
        "over": ["all" if one.parameters is None else "replicates" for one in found.differences],
        **{f"param.{name}": [parameters.get(name) for parameters in known] for name in names},
    }
    for name in ("value", "pairs", "control", "treatment", "difference", "sd", "low", "high"):
        columns[name] = [getattr(one, name) for one in found.differences]
    return Table(columns, len(found.differences))


def pairs_table(found: PairedComparison) -> Table:
    """Return a row for each pair, with three columns for each number."""
    names = list(dict.fromkeys(name for pair in found.pairs for name in pair.values))
    parameters = list(dict.fromkeys(name for pair in found.pairs for name in pair.parameters))
    columns: dict[str, Sequence[Any]] = {
        name: [getattr(pair, name) for pair in found.pairs]
        for name in ("control", "treatment", "replicate", "seed")
    }
    columns |= {f"param.{name}": [pair.parameters.get(name) for pair in found.pairs] for name in parameters}
    for name in names:
        both = [pair.values.get(name) for pair in found.pairs]
        columns[f"{name}.control"] = [one and one[0] for one in both]
        columns[f"{name}.treatment"] = [one and one[1] for one in both]
        columns[f"{name}.difference"] = [one and one[1] - one[0] for one in both]
    return Table(columns, len(found.pairs))
