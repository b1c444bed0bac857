"""All that a report says, gathered once from the results of a plan."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.planner.evaluation import Evaluation, group_of, grouped
from services.planner.models import RunManifest, TestCase
from services.planner.report.tables import Table, table_of
from services.planner.returned import as_number, flat, numbers, returned
from services.planner.tasks import TaskResult, TaskStatus
from shared.errors import ArtifactError


@dataclass(frozen=True, slots=True)
class Group:
    """The replicates of one case.

    Attributes:
        number: counts from 1, in the order of the cases.
        case: the first of them.
        parameters: by their full names.
        cases: indexes of all of them.
        succeeded: how many did.
        samples: the numbers in the results of those, by their full names.
        evaluation: what was found over them, if anything was looked for.
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
    """How some numbers are distributed."""

    n: int
    mean: float
    sd: float
    min: float
    median: float
    max: float

    @classmethod
    def of(cls, sample: Sequence[float]) -> "Summary":
        """The summary of at least one number; the deviation of a single one is 0.

        Exact until it is rounded, so that sums of the largest numbers don't overflow.
        """
        mean = statistics.mean(sample)
        sd = statistics.stdev(sample, mean) if len(sample) > 1 else 0.0
        middle = statistics.mean((statistics.median_low(sample), statistics.median_high(sample)))
        return cls(len(sample), mean, sd, min(sample), middle, max(sample))


@dataclass(frozen=True, slots=True)
class Findings:
    """What a plan came to.

    Attributes:
        manifest: the plan.
        results: of its cases, in their order.
        table: the same as rows and columns.
        groups: replicates by case.
        evaluations: in the order of the cases.
        tool_digests: how many cases ran which version of the code.
        warnings: what makes the findings doubtful or incomplete.
    """

    manifest: RunManifest
    results: Sequence[TaskResult]
    table: Table
    groups: Sequence[Group]
    evaluations: Sequence[Evaluation]
    tool_digests: Mapping[str, int]
    warnings: Sequence[str]

    @property
    def counts(self) -> dict[str, int]:
        """How many cases are in which state."""
        found = Counter(str(one.task_status) for one in self.results)
        return {str(status): found[status] for status in TaskStatus if found[status]}

    @property
    def failures(self) -> list[TaskResult]:
        """The cases that ended without success; cancelled ones are none of them."""
        good = {TaskStatus.SUCCEEDED, TaskStatus.CANCELLED}
        return [one for one in self.results if one.task_status not in good]


def gathered(
    manifest: RunManifest,
    results: Sequence[TaskResult],
    evaluations: Sequence[Evaluation] = (),
    notes: Sequence[str] = (),
) -> Findings:
    """What the results say; may wait for a disk or a network, for those that are stored."""
    ordered = sorted(results, key=lambda one: one.index)
    returns, unreadable = _returns(ordered)
    table, left_out = table_of(ordered, returns)
    made = sorted(evaluations, key=lambda one: one.cases)
    changed = code_warning(ordered)
    warnings = [
        *([changed] if changed else []),
        *_incomplete(unreadable, len(ordered), left_out, made),
        *notes,
    ]
    values = {one.index: value for one, value in zip(ordered, returns, strict=True)}
    return Findings(
        manifest, ordered, table, _groups(ordered, values, made), made, tool_digests(ordered), warnings
    )


def tool_digests(results: Sequence[TaskResult]) -> dict[str, int]:
    """How many runs there were of each version of the tool's code, in the order of the cases."""
    executed = (one.execution for one in results if one.execution is not None)
    return dict(Counter(one.tool_digest for one in executed if one.tool_digest))


def code_warning(results: Sequence[TaskResult]) -> str | None:
    """What to say if the tool's code changed in the middle of the plan, None if it did not."""
    digests = tool_digests(results)
    if len(digests) < 2:
        return None
    versions = ", ".join(f"{digest[:12]} ({count:,} runs)" for digest, count in digests.items())
    return f"the tool's code changed in the middle of the plan, its results may not be comparable: {versions}"


def _returns(results: Sequence[TaskResult]) -> tuple[list[Any], dict[int, str]]:
    """What the tool returned for each, and of which cases it can't be read, and why."""
    values: list[Any] = []
    unreadable: dict[int, str] = {}
    for result in results:
        try:
            values.append(returned(result))
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
        warnings.append(f"results have {left_out:,} members more than the tables have columns for them")
    failed = [one.error for one in made if one.error]
    if failed:
        warnings.append(f"{len(failed):,} of {len(made):,} evaluations failed, the first with {failed[0]}")
    return warnings


def _groups(
    results: Sequence[TaskResult], values: Mapping[int, Any], made: Sequence[Evaluation]
) -> list[Group]:
    evaluations = {_key(one): one for one in made}
    groups = []
    for number, replicates in enumerate(grouped(results), 1):
        case = replicates[0].case
        good = [one for one in replicates if one.task_status is TaskStatus.SUCCEEDED]
        samples: dict[str, list[float]] = {}
        for one in good:
            for name, value in numbers(values[one.index]):
                samples.setdefault(name, []).append(value)
        parameters = dict(flat(case.parameters)) if case.parameters else {}
        cases = tuple(one.index for one in replicates)
        evaluation = evaluations.get(group_of(case))
        groups.append(Group(number, case, parameters, cases, len(good), samples, evaluation))
    return groups


def _key(evaluation: Evaluation) -> bytes:
    return group_of(
        TestCase(
            dataset=evaluation.dataset, scenario=evaluation.scenario, parameters=dict(evaluation.parameters)
        )
    )


def loss_of(group: Group) -> float | None:
    """The loss that was found for a group."""
    return as_number(group.evaluation.loss) if group.evaluation else None
