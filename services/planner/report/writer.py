"""Writes the files of a report."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.planner.evaluation import Evaluation
from services.planner.models import RunManifest
from services.planner.report.findings import Findings, Group, Summary, gather_findings, times
from services.planner.report.tables import csv_text, parquet_bytes
from services.planner.tasks import TaskResult


def write_report(
    directory: Path,
    manifest: RunManifest,
    results: Sequence[TaskResult],
    evaluations: Sequence[Evaluation] = (),
    *,
    notes: Sequence[str] = (),
    axes: tuple[str, str] | None = None,
    values: Sequence[str] = (),
) -> dict[str, Path]:
    """Write `cases.csv`, `cases.parquet`, `report.json` and `report.html`; their places by name.

    The directory is made if it isn't there, files in it are replaced.  May wait for a disk
    or a network, for results that are stored beside the artifacts.

    Args:
        directory: where to.
        manifest: the plan.
        results: of its cases, as many as there are, in any order.
        evaluations: what was found over replicates.
        notes: what readers should know besides.
        axes: the two parameters that the maps are drawn over; None takes those with the most values.
        values: members of the tool's result that are drawn, or `loss`; empty leaves the choice.

    Raises:
        PlanError: there is no such parameter or value; says which there are.
    """
    # Here, as drawing takes half a second to import and few commands need it.
    from services.planner.report.page import page

    found = gather_findings(manifest, results, evaluations, notes)
    contents = {
        "cases.csv": csv_text(found.table).encode(),
        "cases.parquet": parquet_bytes(found.table),
        "report.json": document(found).encode(),
        "report.html": page(found, axes, values).encode(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    paths = {name: directory / name for name in contents}
    for name, content in contents.items():
        _put(paths[name], content)
    return paths


def _put(path: Path, content: bytes) -> None:
    """All of it or nothing: readers, and those who are killed here, leave no half of a file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def document(found: Findings) -> str:
    """Plan, statistics, groups and evaluations; `times` apart from them."""
    members = {
        "manifest": _finite(found.manifest.model_dump(mode="json", fallback=str)),
        "statistics": {
            "total": len(found.results),
            "by_status": found.counts,
            "attempts": sum(one.attempt_count for one in found.results),
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
    return json.dumps(members, indent=2, sort_keys=True, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """The same without numbers that JSON doesn't have; what is in `metadata` nobody has looked at."""
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
    """Where artifacts are; what has no place of its own is too much for here, and is just named."""
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
