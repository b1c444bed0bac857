"""Results for reports, and readers of reports."""

import csv
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pyarrow import parquet

from services.planner.models import RunManifest, TestCase
from services.planner.report import write_report
from services.planner.tasks import TaskResult
from tests.planner.ended import ended

PLAN = RunManifest(workflow_id="plan", tool="noop")


def grid(replicates: int = 2, result: Any = None) -> list[TaskResult]:
    """Results of cases over two parameters."""
    found: list[TaskResult] = []
    for x in (1, 2, 10):
        for y in (0.5, "b"):
            for replicate in range(replicates):
                case = TestCase(
                    parameters={"x": x, "y": y, "fixed": True}, replicate=replicate, seed=len(found)
                )
                value = {"total": x + replicate, "deep": {"ok": True}, "name": "n", "many": [1]}
                found.append(ended(len(found), result or value, case=case))
    return found


def written(directory: Path, results: Sequence[TaskResult], *rest: Any, **options: Any) -> dict[str, Path]:
    return write_report(directory / "made" / "report", PLAN, results, *rest, **options)


def rows(paths: dict[str, Path]) -> list[dict[str, str]]:
    with paths["cases.csv"].open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(paths: dict[str, Path]) -> Any:
    return parquet.read_table(paths["cases.parquet"])


def document(paths: dict[str, Path]) -> Any:
    return json.loads(paths["report.json"].read_text())


def page(paths: dict[str, Path]) -> str:
    return paths["report.html"].read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects the elements, links and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name.endswith(("href", "src"))]
        if tag not in {"meta", "br", "path", "use", "rect", "image"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"path", "use", "rect", "image"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
