"""The page of a report is self-contained and well-formed, whatever it shows."""

import re
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.evaluation import Evaluation
from services.planner.models import TestCase
from services.planner.report import write_report
from services.planner.report.plots import lanes
from services.planner.report.tables import MAX_TEXT
from services.planner.tasks import TaskResult, TaskStatus
from shared.errors import PlanError
from tests.planner.ended import BEGIN, ended, failed, never_ran
from tests.planner.reports import PLAN, Reader, document, grid, page, rows, table, written

NASTY = "<script>alert('$x_1$ & \"y\"')</script>\n\x00\ud800 \u7b54 %s {{ 7 * 7 }}"


def test_the_page_stands_alone_and_is_well_formed(tmp_path: Path) -> None:
    text = page(written(tmp_path, [*grid(), failed(12)]))
    read = Reader(text)

    assert read.open == []
    assert read.tags.count("svg") == 2
    assert "script" not in read.tags
    assert all(link.startswith(("#", "data:")) for link in read.links)
    assert "url(http" not in text


def test_foreign_text_is_escaped_in_the_page(tmp_path: Path) -> None:
    case = TestCase(dataset=NASTY, scenario=NASTY, parameters={NASTY: NASTY, "x": 1})
    other = case.model_copy(update={"parameters": {NASTY: "other", "x": "$\\frac$"}})
    results = [
        ended(0, {NASTY: 1.0}, case=case),
        ended(1, {NASTY: 2.0}, case=other),
        failed(2, NASTY, NASTY, case=case),
    ]
    manifest = PLAN.model_copy(update={"workflow_id": NASTY[:100]})
    evaluation = Evaluation(NASTY, NASTY, case.parameters, (0, 2), error=NASTY)
    paths = write_report(tmp_path, manifest, results, [evaluation], notes=[NASTY])
    read = Reader(page(paths))

    assert read.open == []
    assert "script" not in read.tags
    assert any("<script>alert" in one for one in read.text)
    assert "{{ 7 * 7 }}" in page(paths)
    assert len(rows(paths)) == table(paths).num_rows == 3


def drawn(text: str) -> str:
    """The text in the first plot."""
    return " ".join(re.findall("<text[^>]*>([^<]*)", text[: text.index("</svg>")]))


def test_the_map_is_over_the_two_parameters_with_the_most_values(tmp_path: Path) -> None:
    results = [
        ended(n, {"v": n}, case=TestCase(parameters={"a": n % 2, "b": n % 5, "c": n % 3})) for n in range(30)
    ]
    default, given_ = written(tmp_path, results), written(tmp_path / "2", results, axes=("a", "c"))

    assert re.search(r"\bb\b.*\bc\b|\bc\b.*\bb\b", drawn(page(default)))
    assert not re.search(r"\ba\b", drawn(page(default)))
    assert re.search(r"\ba\b", drawn(page(given_)))


def test_a_loss_is_drawn_before_all_others_and_values_may_be_chosen(tmp_path: Path) -> None:
    evaluations = [Evaluation("", "", one.case.parameters, (one.index,), 1, 0.5) for one in grid(1)]
    texts = [
        drawn(page(written(tmp_path, grid(1), evaluations))),
        drawn(page(written(tmp_path, grid(1), evaluations, values=["deep.ok"]))),
    ]

    assert texts[0].index("mean of loss") < texts[0].index("mean of total")
    assert "mean of deep.ok" in texts[1]
    assert "total" not in texts[1]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"axes": ("x", "z")}, "no case has the parameter 'z'; there are x, y, fixed"),
        ({"values": ["gone"]}, "no result has the number 'gone'; there are total, deep.ok"),
        ({"values": ["loss"]}, "no result has the number 'loss'"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_known_ones(
    tmp_path: Path, options: Any, complaint: str
) -> None:
    with pytest.raises(PlanError, match=re.escape(complaint)):
        written(tmp_path, grid(), **options)


@pytest.mark.parametrize(
    "results",
    [
        [],
        [never_ran(0), never_ran(1, TaskStatus.PENDING)],
        [failed(0), failed(1)],
        [ended(0, {"v": 1})],
        [ended(n, {"v": n}) for n in range(3)],
        [ended(n, {"v": n}, case=TestCase(parameters={"x": "text"}, replicate=n)) for n in range(3)],
        [ended(n, {"v": n}, case=TestCase(parameters={"x": n * 0.1, "y": n * n})) for n in range(300)],
        [ended(n, {"v": 1e308 * (-1) ** n}) for n in range(4)],
        [ended(n, {"v": 10**400 + n}) for n in range(2)],
        [ended(n, {"v": n}, case=TestCase(parameters={"x": [0.0, -0.0, 1, 1.0, True][n]})) for n in range(5)],
        [
            ended(n, {"v": 1e-300 * n}, case=TestCase(parameters={"x": 10**400 + n, "y": {}}))
            for n in range(3)
        ],
    ],
    ids=["none", "pending", "failed", "one", "line", "same", "points", "huge", "larger", "zeros", "tiny"],
)
def test_a_report_needs_no_complete_results(tmp_path: Path, results: list[TaskResult]) -> None:
    paths = written(tmp_path, results)

    assert Reader(page(paths)).open == []
    assert len(rows(paths)) == table(paths).num_rows == len(results)
    assert document(paths)["statistics"]["total"] == len(results)


def test_many_cases_are_cut_where_a_page_would_be_too_long(tmp_path: Path) -> None:
    results = [failed(n, message="m" * 10 * MAX_TEXT) if n % 2 else ended(n, {"v": n}) for n in range(2_000)]
    text = page(written(tmp_path, results))

    assert "the first 200" in text
    assert "the first 500" in text
    assert len(text) < 1_000_000


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 10)), max_size=30))
def test_bars_in_one_row_never_overlap(spans: list[tuple[int, int]]) -> None:
    moments = sorted(
        (BEGIN + timedelta(seconds=begin), BEGIN + timedelta(seconds=begin + length))
        for begin, length in spans
    )
    placed = list(zip(lanes(moments), moments, strict=True))
    most = max((sum(b <= begin < e for b, e in moments) for begin, _ in moments), default=0)

    for row in {row for row, _ in placed}:
        bars = [bar for one, bar in placed if one == row]
        assert all(end <= begin for (_, end), (begin, _) in pairwise(bars))
    assert len({row for row, _ in placed}) == most
