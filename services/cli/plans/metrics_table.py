"""The metrics of a plan as a table for people, and as JSON for other programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.cli.output import Cell, Column
from services.planner.evaluation import group_replicates
from services.planner.metrics.plan_metrics import PlanMetrics
from services.planner.results import flattened
from services.planner.tasks import TaskResult


def varying_parameters(results: Sequence[TaskResult]) -> list[str]:
    """Return the full names of the parameters in which cases differ, in the order of the first case."""
    found: dict[str, set[str]] = {}
    for one in results:
        for name, value in _parameters(one).items():
            found.setdefault(name, set()).add(repr(value))
    return [name for name, values in found.items() if len(values) > 1]


def metric_columns(metrics: PlanMetrics) -> list[Column]:
    """Return a column for each metric; on a narrow terminal, the last ones are left out first."""
    names = metrics.names
    return [Column(name.upper(), right=True, drop=len(names) - number) for number, name in enumerate(names)]


def metric_cells(group: Sequence[TaskResult], metrics: PlanMetrics) -> list[Cell]:
    """Return the mean of each metric over the replicates that have it."""
    means = group_means(group, metrics)
    return [_short(means[name]) if name in means else "" for name in metrics.names]


def parameter_cells(names: Sequence[str], group: Sequence[TaskResult]) -> list[Cell]:
    """Return the values of these parameters in a group of replicates."""
    parameters = _parameters(group[0])
    return [str(parameters.get(name, "")) for name in names]


def group_means(group: Sequence[TaskResult], metrics: PlanMetrics) -> dict[str, float]:
    """Return the mean of each metric over the replicates that have it, by name."""
    samples: dict[str, list[float]] = {}
    for one in group:
        for name, value in metrics.values.get(one.index, {}).items():
            if value is not None:
                samples.setdefault(name, []).append(value)
    return {name: sum(sample) / len(sample) for name, sample in samples.items()}


def metrics_json(results: Sequence[TaskResult], metrics: PlanMetrics) -> dict[str, Any]:
    """Return the metrics of each case, and why some have none, as plain values."""
    cases = [
        {"index": one.index, "parameters": one.case.parameters, "metrics": metrics.values[one.index]}
        for one in results
        if one.index in metrics.values
    ]
    return {"cases": cases, "missing": {str(index): why for index, why in metrics.missing.items()}}


def metrics_rows(
    results: Sequence[TaskResult], metrics: PlanMetrics
) -> tuple[list[Column], list[list[Cell]]]:
    """Return columns and rows: a row for each combination of parameters, with means over its replicates."""
    names = varying_parameters(results)
    columns = [*(Column(name.upper(), right=True) for name in names), Column("RUNS", right=True)]
    rows = [
        [
            *parameter_cells(names, group),
            f"{sum(one.index in metrics.values for one in group)}/{len(group)}",
            *metric_cells(group, metrics),
        ]
        for group in group_replicates(results)
    ]
    return [*columns, *metric_columns(metrics)], rows


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1_000 else f"{number:.4g}"


def _parameters(result: TaskResult) -> Mapping[str, Any]:
    return dict(flattened(result.case.parameters)) if result.case.parameters else {}
