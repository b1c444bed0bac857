"""Writes the files of a report; makes its JSON document."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from services.planner.evaluation import Evaluation
from services.planner.metrics.plan_metrics import NO_METRICS, PlanMetrics, compute_metrics
from services.planner.models import RunManifest
from services.planner.plan.plan_usage import PlanUsage
from services.planner.report.findings import Findings, Group, Summary, gather_findings, times
from services.planner.report.paired import PairedComparison, differences_table, pairs_table
from services.planner.report.tables import csv_text, metrics_table, parquet_bytes
from services.planner.tasks import TaskResult

METRICS_FILE: Final = "metrics.csv"


def write_report(
    directory: Path,
    manifest: RunManifest,
    results: Sequence[TaskResult],
    evaluations: Sequence[Evaluation] = (),
    *,
    notes: Sequence[str] = (),
    axes: tuple[str, str] | None = None,
    values: Sequence[str] = (),
    metrics: PlanMetrics = NO_METRICS,
    usage: PlanUsage | None = None,
    paired: PairedComparison | None = None,
) -> dict[str, Path]:
    """Write `cases.csv`, `cases.parquet`, `report.json` and `report.html`; return their paths by name.

    With a comparison, also `comparison.csv` and `comparison_pairs.csv`.

    Creates the directory if it is missing, and replaces the files in it.  Blocks while it loads
    stored results from a disk or a network.

    Args:
        directory: where to.
        manifest: the plan.
        results: of its cases, all or some, in any order.
        evaluations: of its replicates.
        notes: further warnings for the reader.
        axes: the two parameters over which maps are drawn; None chooses those with the most values.
        values: the numbers of the results that are drawn, or `loss`; empty chooses up to four.
        metrics: of its cases, such as `write_metrics` returns.
        usage: what its runs have used of machines, such as `plan_usage` returns for all sessions; None for
            what the results say.
        paired: the comparison of the plan's arms, such as `compare` returns.

    Raises:
        PlanError: there is no such parameter or value; the message lists those there are.
    """
    # Imported here: drawing takes half a second to import, and few commands need it.
    from services.planner.report.page import page

    found = gather_findings(manifest, results, evaluations, notes, metrics, usage, paired)
    contents = {
        "cases.csv": csv_text(found.table).encode(),
        "cases.parquet": parquet_bytes(found.table),
        "report.json": document(found).encode(),
        "report.html": page(found, axes, values).encode(),
    }
    if paired is not None:
        contents["comparison.csv"] = csv_text(differences_table(paired)).encode()
        contents["comparison_pairs.csv"] = csv_text(pairs_table(paired)).encode()
    directory.mkdir(parents=True, exist_ok=True)
    paths = {name: directory / name for name in contents}
    for name, content in contents.items():
        _put(paths[name], content)
    return paths


def write_metrics(
    directory: Path, name: str, results: Sequence[TaskResult], store: str | None = None
) -> PlanMetrics:
    """Compute the metrics of a plan, and write `metrics.csv` and their tables; blocks on stores and disks.

    The files have no times: written again from the same artifacts, they have the same bytes.

    Args:
        directory: where to; created if it is missing.
        name: of the metrics.
        results: of the plan's cases, in any order.
        store: where the artifacts are now; None for where the runs have stored them.

    Raises:
        PlanError: there are no such metrics.
        ArtifactError: `store` is not a place for artifacts.
    """
    found = compute_metrics(name, results, directory, store)
    path = directory / METRICS_FILE
    table = metrics_table(sorted(results, key=lambda one: one.index), found)
    _put(path, csv_text(table).encode())
    return replace(found, files={METRICS_FILE: path, **found.files})


def _put(path: Path, content: bytes) -> None:
    """Write a file atomically: no reader sees a part of it, and a kill leaves none."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def document(found: Findings) -> str:
    """Return the report as JSON with sorted keys; the times are in `times` alone."""
    members = {
        "manifest": _finite(found.manifest.model_dump(mode="json", fallback=str)),
        "statistics": {
            "total": len(found.results),
            "by_status": found.counts,
            "attempts": sum(one.attempt_count for one in found.results),
            "evaluations": len(found.evaluations),
            "failed_evaluations": sum(one.error is not None for one in found.evaluations),
            "tool_cost": found.tool_cost,
        },
        "tool_digests": found.tool_digests,
        "warnings": found.warnings,
        "groups": [_group(one) for one in found.groups],
        "evaluations": [one.to_json() for one in found.evaluations],
        "artifacts": {
            str(one.index): _places(one.execution.artifacts)
            for one in found.results
            if one.execution is not None and one.execution.artifacts
        },
        "times": times(found),
    }
    if found.paired is not None:
        members["comparison"] = found.paired.to_json()
    return json.dumps(members, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """Replace numbers that JSON can't hold by None; `metadata` is not validated."""
    match value:
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list():
            return [_finite(one) for one in value]
        case float():
            return value if math.isfinite(value) else None
        case _:
            return value


def _places(artifacts: Mapping[str, str]) -> dict[str, str]:
    """Return the references of artifacts; inline content is left out."""
    return {name: "inline" if one.startswith("data:") else one for name, one in artifacts.items()}


def _group(one: Group) -> dict[str, Any]:
    return {
        "number": one.number,
        "dataset": one.case.dataset,
        "scenario": one.case.scenario,
        "parameters": one.case.parameters,
        "cases": one.cases,
        "n": len(one.cases),
        "succeeded": one.succeeded,
        "values": {name: asdict(Summary.of(sample)) for name, sample in one.samples.items()},
    }
