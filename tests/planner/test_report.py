"""Reports: the content of the files, and that two reports differ only in times."""

import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.executor.artifacts import open_blobs
from services.planner.cost import Usage
from services.planner.evaluation import Evaluation
from services.planner.models import TestCase
from services.planner.plan.plan_usage import PlanUsage
from services.planner.report import code_warning
from services.planner.report.tables import MAX_RESULT_COLUMNS, TIMES
from tests.planner.ended import BEGIN, Stored, ended, failed, never_ran
from tests.planner.reports import Reader, document, grid, page, rows, table, written

NAMES = ["cases.csv", "cases.parquet", "report.json", "report.html"]


def test_the_places_of_all_files_are_returned_and_nothing_else_is_there(tmp_path: Path) -> None:
    written(tmp_path, grid())
    paths = written(tmp_path, grid())

    assert paths == {name: tmp_path / "made" / "report" / name for name in NAMES}
    assert sorted(one.name for one in (tmp_path / "made" / "report").iterdir()) == sorted(NAMES)


UNKNOWN = ["", "", "", ""]
"""What a case has used, if nobody counted it."""


# -- tables ---------------------------------------------------------------------------


def test_the_table_has_a_row_for_each_case_in_order(tmp_path: Path) -> None:
    results = [ended(0, {"total": 1.5}), failed(1, message='a,\n"b"'), never_ran(2)]
    found = rows(written(tmp_path, results[::-1]))

    assert [list(row.values()) for row in found] == [
        ["0", "", "", "0", "0", "0", "succeeded", "1", "", "", "1.5",
         "2026-01-02T03:04:05+00:00", "2026-01-02T03:04:06+00:00", "1.0", *UNKNOWN],
        ["1", "", "", "0", "1", "1", "failed", "1", "ValueError", 'a,\n"b"', "",
         "2026-01-02T03:04:06+00:00", "2026-01-02T03:04:07+00:00", "1.0", *UNKNOWN],
        ["2", "", "", "0", "2", "2", "cancelled", "0", "", "", "", "", "", "0.0", *UNKNOWN],
    ]  # fmt: skip
    assert list(found[0]) == [
        "index", "dataset", "scenario", "replicate", "seed", "param.x", "status", "attempts", "error_type",
        "error", "result.total", *TIMES,
    ]  # fmt: skip


def test_members_are_named_in_full_and_lists_of_results_are_left_out(tmp_path: Path) -> None:
    case = TestCase(parameters={"a": {"b": [1, 2], "c": {}}, "d.e": None})
    found = rows(written(tmp_path, [ended(0, {"x": {"y": True}, "z": [1], "n": None}, case=case)]))[0]

    assert {name: value for name, value in found.items() if name.startswith(("param", "result"))} == {
        "param.a.b": "[1, 2]",
        "param.a.c": "{}",
        "param.d\\.e": "",
        "result.x.y": "true",
    }


def test_a_result_that_is_no_object_has_one_column(tmp_path: Path) -> None:
    assert rows(written(tmp_path, [ended(0, 7)]))[0]["result"] == "7"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, None, 2], "int64"),
        ([1, 2.5], "double"),
        ([2**60, 2.5], "string"),
        ([2**63, 1], "string"),
        ([True, False], "bool"),
        ([True, 1], "string"),
        (["a", 1], "string"),
        (["a", "b"], "string"),
    ],
)
def test_columns_have_the_type_that_holds_all_their_values(
    tmp_path: Path, values: list[Any], kind: str
) -> None:
    found = table(written(tmp_path, [ended(index, {"v": one}) for index, one in enumerate(values)]))

    assert str(found.schema.field("result.v").type) == kind
    assert str(found.schema.field("started_at").type) == "timestamp[us, tz=UTC]"
    expected = (
        values
        if kind != "string"
        else [{True: "true"}.get(one, str(one)) if one is True else str(one) for one in values]
    )
    assert found.column("result.v").to_pylist() == expected


def test_csv_and_parquet_have_the_same_columns_and_rows(tmp_path: Path) -> None:
    paths = written(tmp_path, [*grid(), failed(12), never_ran(13)])
    found = table(paths)

    assert found.column_names == list(rows(paths)[0])
    assert found.column("index").to_pylist() == list(range(14))
    assert found.column("result.total").to_pylist()[:3] == [1, 2, 1]


def test_large_results_are_loaded_from_where_they_are_stored(tmp_path: Path) -> None:
    blobs = open_blobs(str(tmp_path / "store"))
    sha256 = blobs.put(json.dumps({"total": 5}).encode()).sha256
    result = ended(0, Stored(f"cas://{sha256}"))
    assert result.execution is not None
    stored = replace(result.execution, storage_type="local", storage_base=blobs.base)
    gone = replace(stored, result="cas://" + "0" * 64)
    paths = written(tmp_path, [replace(result, execution=stored), replace(result, index=1, execution=gone)])

    assert [row["result.total"] for row in rows(paths)] == ["5", ""]
    [warning] = document(paths)["warnings"]
    assert re.search("the results of 1 of 2 cases can't be read, .* that of case 1: .*0000", warning)


def test_results_with_too_many_members_are_cut_with_a_warning(tmp_path: Path) -> None:
    paths = written(tmp_path, [ended(0, {f"m{n}": n for n in range(MAX_RESULT_COLUMNS + 3)})])

    assert len([name for name in rows(paths)[0] if name.startswith("result.")]) == MAX_RESULT_COLUMNS
    assert document(paths)["warnings"] == ["results have 3 members for which the tables have no columns"]


# -- the document ---------------------------------------------------------------------


def test_the_document_has_plan_statistics_groups_and_evaluations(tmp_path: Path) -> None:
    results = [*grid(), failed(12)]
    evaluation = Evaluation("", "", {"x": 1, "y": 0.5, "fixed": True}, (0, 1), 2, 0.25, {"d": 1})
    found = document(written(tmp_path, results, [evaluation]))

    assert sorted(found) == [
        "artifacts", "evaluations", "groups", "manifest", "statistics", "times", "tool_digests", "warnings",
    ]  # fmt: skip
    assert found["statistics"] == {
        "total": 13, "attempts": 13, "by_status": {"succeeded": 12, "failed": 1},
        "evaluations": 1, "failed_evaluations": 0, "tool_cost": 0.0,
    }  # fmt: skip
    assert found["manifest"]["tool"] == "noop"
    assert [one["cases"] for one in found["groups"]] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
        [8, 9],
        [10, 11],
        [12],
    ]
    assert found["groups"][0]["values"]["total"] == {
        "n": 2, "mean": 1.5, "sd": pytest.approx(0.7071, abs=1e-4), "min": 1.0, "median": 1.5, "max": 2.0,
    }  # fmt: skip
    assert found["groups"][0]["values"]["deep.ok"]["mean"] == 1.0
    assert found["groups"][6]["succeeded"] == 0
    assert found["evaluations"][0]["loss"] == 0.25
    assert found["times"]["execution_seconds"] == 13.0


def test_its_keys_are_sorted(tmp_path: Path) -> None:
    text = written(tmp_path, grid())["report.json"].read_text()

    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_artifacts_are_named_with_their_places(tmp_path: Path) -> None:
    kept = {"b": "data:,x", "a": "cas://" + "1" * 64}
    found = document(written(tmp_path, [ended(0, artifacts=kept), ended(1)]))

    assert found["artifacts"] == {"0": {"a": "cas://" + "1" * 64, "b": "inline"}}


def test_a_change_of_the_code_is_reported(tmp_path: Path) -> None:
    results = [
        ended(0, digest="a" * 64),
        ended(1, digest="b" * 64),
        ended(2, digest="a" * 64),
        failed(3, digest=""),
    ]
    paths = written(tmp_path, results)
    expected = (
        "the tool's code changed while the plan ran, so its results may not be comparable: "
        "aaaaaaaaaaaa (2 runs), bbbbbbbbbbbb (1 runs)"
    )

    assert code_warning(results) == expected
    assert code_warning(results[::2]) is None
    assert document(paths)["warnings"] == [expected]
    assert document(paths)["tool_digests"] == {"a" * 64: 2, "b" * 64: 1}
    assert expected.replace("'", "&#39;") in page(paths)


def test_notes_and_failed_evaluations_are_among_the_warnings(tmp_path: Path) -> None:
    evaluation = Evaluation("", "", {"x": 0}, (0,), error="AggregationError: no")
    found = document(written(tmp_path, [ended(0)], [evaluation], notes=["note"]))

    assert found["warnings"] == ["1 of 1 evaluations failed, the first with AggregationError: no", "note"]


# -- sameness -------------------------------------------------------------------------


def test_a_report_says_what_each_case_and_all_have_used_and_cost(tmp_path: Path) -> None:
    results = [ended(0, {"cost": 2.5}), ended(1, {"cost": "much"}), ended(2, {"cost": 1})]
    cases = {0: Usage(2, 3.0, 6.0, 1.5, 3.0, 2**20, 0.5), 2: Usage(1, 1.0, 2.0, 0.5, 1.0, None, 0.25)}
    total = Usage.total(cases.values()).with_overhead(0.25)
    used = PlanUsage(total, cases, "EUR", ("a price list of today",), "nobody knows")
    paths = written(tmp_path, results, usage=used)

    found, text = document(paths), " ".join(" ".join(Reader(page(paths)).text).split())
    assert [list(row.values())[-4:] for row in rows(paths)] == [
        ["6.0", "3.0", "1048576", "0.5"], UNKNOWN, ["2.0", "1.0", "", "0.25"],
    ]  # fmt: skip
    assert found["statistics"]["tool_cost"] == 3.5
    assert found["times"]["used"] == {
        **total.to_json(), "currency": "EUR", "prices": ["a price list of today"], "no_price": "nobody knows",
    }  # fmt: skip
    assert (found["times"]["used"]["attempts"], found["times"]["used"]["money"]) == (3, 1.0)
    assert "All 3 attempts, of all sessions, used 8 core seconds, 2 GiB seconds of memory" in text
    assert "By a price list of today, this costs 1.00 EUR, 0.25 EUR of it for starts and waiting." in text
    assert "Not priced: nobody knows." in text
    assert "The cost that the tool reports is 3.5 in all, in its own unit." in text


def without_times(paths: dict[str, Path]) -> list[Any]:
    members = document(paths)
    del members["times"]
    return [
        [{name: value for name, value in row.items() if name not in TIMES} for row in rows(paths)],
        table(paths).drop_columns(list(TIMES)),
        json.dumps(members),
        re.sub(r'(?s)<section id="times">.*?</section>', "", page(paths)),
    ]


def test_the_same_results_make_the_same_bytes(tmp_path: Path) -> None:
    one, other = written(tmp_path / "1", grid()), written(tmp_path / "2", grid()[::-1])

    assert [one[name].read_bytes() for name in NAMES] == [other[name].read_bytes() for name in NAMES]


def test_reports_of_two_executions_differ_in_times_only(tmp_path: Path) -> None:
    results = [*grid(), failed(12)]
    later = [
        replace(
            one,
            task_id=f"other-{one.index}",
            created_at=BEGIN + timedelta(days=1),
            started_at=BEGIN + timedelta(days=1, seconds=13 - one.index),
            finished_at=BEGIN + timedelta(days=2),
            execution_time=7.0,
            execution=one.execution
            and replace(one.execution, run_id="other", execution_time_ms=9, storage_base="x"),
        )
        for one in results
    ]
    paths, others = written(tmp_path / "1", results), written(tmp_path / "2", later)

    assert paths["report.html"].read_bytes() != others["report.html"].read_bytes()
    assert without_times(paths) == without_times(others)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
RETURNED = st.lists(st.tuples(st.dictionaries(st.text(max_size=3), JSON, max_size=3), JSON), max_size=4)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RETURNED)
def test_any_result_of_tools_makes_a_report(
    tmp_path: Path, content: list[tuple[dict[str, Any], Any]]
) -> None:
    results = [
        ended(index, value, case=TestCase(parameters=parameters, replicate=index))
        for index, (parameters, value) in enumerate(content)
    ]
    paths = written(tmp_path, results)

    assert Reader(page(paths)).open == []
    assert len(rows(paths)) == table(paths).num_rows == len(results)
