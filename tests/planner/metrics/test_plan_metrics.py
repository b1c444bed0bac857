"""The metrics of all cases of a plan: computed from their artifacts, wherever these are, and reported."""

import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from services.executor.artifacts import ArtifactLoader, open_blobs
from services.planner.metrics.plan_metrics import metrics_class
from services.planner.models import RunManifest, TestCase
from services.planner.report import write_metrics, write_report
from services.planner.report.findings import gather_findings
from services.planner.report.paired import mean_interval
from services.planner.tasks import TaskResult
from shared.errors import PlanError
from tests.planner.ended import ended, failed, never_ran
from tests.planner.metrics.rings import EXPELLED, ROUND

PLAN = RunManifest(workflow_id="rings", tool="ring", metrics="ring")
FILES = ["metrics.csv", "metrics_days.csv", "metrics_debtor_shares.csv", "metrics_intraday.csv"]


def ring(store: Path, index: int, events: list[dict[str, Any]], **parameters: Any) -> TaskResult:
    """The result of a case whose events are in a store."""
    text = "".join(json.dumps(one) + "\n" for one in events)
    sha256 = open_blobs(store).put(text.encode()).sha256
    case = TestCase(parameters={"kappa": index, **parameters}, seed=index)
    return stored(store, index, case, {"events.jsonl": f"cas://{sha256}"})


def stored(store: Path, index: int, case: TestCase, artifacts: dict[str, str]) -> TaskResult:
    """The result of a case with these artifacts in a store."""
    result = ended(index, {"n": index}, case=case, artifacts=artifacts)
    assert result.execution is not None
    execution = replace(result.execution, storage_type="local", storage_base=str(store))
    return replace(result, execution=execution)


def bare(store: Path, index: int) -> TaskResult:
    """The result of a case without artifacts."""
    return stored(store, index, TestCase(seed=index), {})


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_case_that_succeeded_has_a_row_with_its_metrics(tmp_path: Path) -> None:
    results = [ring(tmp_path, 0, EXPELLED), failed(1), ring(tmp_path, 2, ROUND), never_ran(3)]

    found = write_metrics(tmp_path / "out", "ring", results)

    assert list(found.files) == FILES
    assert found.warning is None
    table = rows(found.files["metrics.csv"])
    assert [(one["index"], one["status"], one["metric.phi"]) for one in table] == [
        ("0", "succeeded", "0.5"),  # 60 of 160 on day 1 and 40 of 40 on day 2
        ("1", "failed", ""),
        ("2", "succeeded", "0.3"),  # 30 of 100
        ("3", "cancelled", ""),
    ]
    assert [(one["index"], one["day"], one["delta"]) for one in rows(found.files["metrics_days.csv"])] == [
        ("0", "1", "0.625"), ("0", "2", "0.0"), ("0", "3", ""), ("2", "1", "0.7"),
    ]  # fmt: skip


def test_metrics_are_the_same_to_the_byte_from_a_store_that_was_moved(tmp_path: Path) -> None:
    results = [ring(tmp_path / "here", index, EXPELLED) for index in range(3)]
    first = write_metrics(tmp_path / "first", "ring", results)
    (tmp_path / "here").rename(tmp_path / "there")

    again = write_metrics(tmp_path / "again", "ring", results[::-1], str(tmp_path / "there"))

    assert again.values == first.values
    assert [path.read_bytes() for path in again.files.values()] == [
        path.read_bytes() for path in first.files.values()
    ]
    assert {path.name for path in (tmp_path / "again").iterdir()} == set(FILES)


def test_a_case_without_its_artifacts_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    lost, broken = ring(tmp_path / "lost", 1, ROUND), ring(tmp_path, 2, [{"kind": "Nonsense"}])
    results = [ring(tmp_path, 0, ROUND), lost, broken, bare(tmp_path, 3)]
    shutil.rmtree(tmp_path / "lost")

    found = write_metrics(tmp_path / "out", "ring", results)

    assert sorted(found.values) == [0]
    assert sorted(found.missing) == [1, 2, 3]
    assert str(tmp_path / "lost") in found.missing[1]
    assert "line 1: kind 'Nonsense' is unknown" in found.missing[2]
    assert found.missing[3] == "metrics are computed from events.jsonl, the run's artifacts are: none"
    assert found.warning is not None
    assert found.warning.startswith("3 of 4 cases that succeeded have no metrics; case 1: ")
    assert [one["metrics_error"] for one in rows(found.files["metrics.csv"])] == [
        "",
        *(found.missing[n] for n in (1, 2, 3)),
    ]


def test_the_report_has_the_metrics_in_every_file(tmp_path: Path) -> None:
    results = [ring(tmp_path, index, EXPELLED if index % 2 else ROUND, c=index // 2) for index in range(4)]
    metrics = write_metrics(tmp_path / "out", "ring", results)

    files = write_report(tmp_path / "out", PLAN, results, metrics=metrics)

    assert [one["metric.phi"] for one in rows(files["cases.csv"])] == ["0.3", "0.5", "0.3", "0.5"]
    columns = parquet.read_table(files["cases.parquet"])
    assert columns.column("metric.phi").to_pylist() == [0.3, 0.5, 0.3, 0.5]
    groups = json.loads(files["report.json"].read_text())["groups"]
    assert [one["values"]["metric.phi"]["mean"] for one in groups] == [0.3, 0.5, 0.3, 0.5]
    page = files["report.html"].read_text()
    assert "mean of metric.phi" in page
    assert "metric.phi: mean, 95% interval" in page


def test_a_report_warns_of_missing_metrics(tmp_path: Path) -> None:
    results = [ring(tmp_path, 0, ROUND), bare(tmp_path, 1)]
    metrics = write_metrics(tmp_path / "out", "ring", results)

    assert list(gather_findings(PLAN, results, metrics=metrics).warnings) == [metrics.warning]


@pytest.mark.parametrize(
    ("sample", "margin"),
    [([1.0, 1.0], 0.0), ([1.0, 2.0, 3.0], 4.30265 / 3**0.5), ([0.0, 1.0], 12.7062 / 2)],
)
def test_an_interval_is_students(sample: list[float], margin: float) -> None:
    mean, _, found = mean_interval(sample)

    assert mean == sum(sample) / len(sample)
    assert found == pytest.approx(margin, rel=1e-4)


# -- metrics of one's own -------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How large a case's artifacts are."""

    values: dict[str, Any]
    tables: dict[str, list[dict[str, Any]]]


class SizeComputer:
    """Metrics as somebody else would write them."""

    main = ("largest",)

    def __init__(self, loader: ArtifactLoader) -> None:
        self.loader = loader

    def compute(self, artifacts: dict[str, str]) -> Sizes:
        sizes = {name: len(self.loader.load_bytes(one)) for name, one in artifacts.items()}
        values = {"total": sum(sizes.values()), "odd": float("nan"), "largest": max(sizes.values())}
        return Sizes(values, {"sizes": [{"name": name, "bytes": size} for name, size in sizes.items()]})


OWN = f"{__name__}:SizeComputer"


def test_a_class_of_ones_own_computes_metrics(tmp_path: Path) -> None:
    one = ring(tmp_path, 0, ROUND)
    assert one.execution is not None
    size = len(one.execution.loader.load_bytes(one.execution.artifacts["events.jsonl"]))

    found = write_metrics(tmp_path / "out", OWN, [one, bare(tmp_path, 1)])

    assert found.names == ["largest", "total", "odd"]
    assert found.values == {0: {"largest": size, "total": size, "odd": None}}
    assert found.missing == {1: "ValueError: max() arg is an empty sequence"}
    assert rows(found.files["metrics_sizes.csv"]) == [
        {"index": "0", "name": "events.jsonl", "bytes": str(size)}
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("rings", "'rings' are no metrics; known are ring, or give module:Class"),
        ("nothing.there:Metrics", "the metrics 'nothing.there:Metrics' can't be imported"),
        ("json:Nothing", "can't be imported"),
        ("json:JSONDecoder", "has no method `compute(artifacts)`"),
    ],
)
def test_names_of_no_metrics_are_refused(name: str, complaint: str) -> None:
    with pytest.raises(PlanError, match=complaint.replace("(", r"\(").replace(")", r"\)")):
        metrics_class(name)


def test_a_manifest_refuses_a_name_of_no_metrics() -> None:
    with pytest.raises(ValueError, match="'rings' are no metrics; known are ring, or give module:Class"):
        RunManifest(workflow_id="w", tool="t", metrics="rings")
