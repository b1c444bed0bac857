"""Writes the files of a report."""

import os
from collections.abc import Sequence
from pathlib import Path

from services.planner.evaluation import Evaluation
from services.planner.models import RunManifest
from services.planner.report.findings import gathered
from services.planner.report.summary import document
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

    found = gathered(manifest, results, evaluations, notes)
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
