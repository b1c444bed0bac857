"""Comparisons of two arms: pairs on common random numbers, and differences with paired intervals."""

import json
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.planner.cases import all_cases
from services.planner.documents import manifest_of
from services.planner.metrics.plan_metrics import PlanMetrics
from services.planner.models import Comparison, RunManifest, TestCase
from services.planner.report import PairedComparison, compare
from services.planner.report.paired import mean_interval
from services.planner.tasks import TaskResult, TaskStatus
from shared.errors import PlanError
from tests.planner.ended import ended, failed
from tests.planner.reports import Reader, document, page, written

HANDLING = Comparison(parameter="h", control="old", treatment="new")
START = ['{"day": 0, "cash": 1}', '{"day": 0, "cash": 2}']


def case(index: int, h: Any, x: Any = 1, replicate: int = 0, **members: Any) -> TaskResult:
    """A case of one arm; its result has the number `y`."""
    y = members.pop("y", 0.0)
    seed = members.pop("seed", 100 + replicate)
    of = TestCase(parameters={"x": x, "h": h}, replicate=replicate, seed=seed)
    return ended(index, {"y": y, "seed": seed}, case=of, **members)


def grid(differences: Mapping[Any, list[float]], shared: bool = False) -> list[TaskResult]:
    """For each x and each difference a pair: y is the replicate's number, and more in the treatment arm.

    Each pair has a seed of its own; if `shared`, each replicate has one for all x.
    """
    found: list[TaskResult] = []
    for x, several in differences.items():
        for replicate, difference in enumerate(several):
            seed = 100 + (replicate if shared else len(found))
            found.append(case(len(found), "old", x, replicate, y=10.0 * replicate, seed=seed))
            found.append(case(len(found), "new", x, replicate, y=10.0 * replicate + difference, seed=seed))
    return found


def rows(found: PairedComparison) -> list[tuple[Any, ...]]:
    """The differences of y."""
    return [
        (one.parameters and one.parameters["x"], one.pairs, one.difference, one.low, one.high)
        for one in found.differences
        if one.value == "y"
    ]


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    # scipy.stats.ttest_1samp([1, 2, 4, 5], 0).confidence_interval() of scipy 1.17.1
    mean, sd, margin = mean_interval([1, 2, 4, 5])

    assert mean == 3
    assert sd == pytest.approx(1.8257418583505538)
    assert margin == pytest.approx(3 - 0.09483728424523497)
    assert mean_interval([7.0]) == (7.0, None, None)
    assert mean_interval([2.0, 2.0]) == (2.0, 0.0, 0.0)


def test_differences_are_of_pairs_whatever_varies_between_the_pairs() -> None:
    found = compare(HANDLING, grid({1: [1, 1, 1], 2: [3, 5]}))

    assert rows(found) == [
        (1, 3, 1.0, 1.0, 1.0),
        (2, 2, 4.0, pytest.approx(4 - 12.706, abs=1e-3), pytest.approx(4 + 12.706, abs=1e-3)),
        (None, 5, pytest.approx(2.2), pytest.approx(-0.021, abs=1e-3), pytest.approx(4.421, abs=1e-3)),
    ]
    assert [(one.control, one.treatment, one.replicate, one.seed) for one in found.pairs][:2] == [
        (0, 1, 0, 100), (2, 3, 1, 102),
    ]  # fmt: skip
    assert (found.pairs[1].values, found.warnings) == ({"y": (10.0, 11.0)}, [])


def test_pairs_that_share_a_seed_are_one_cluster() -> None:
    found = compare(HANDLING, grid({1: [1.0, 1.0, 1.0], 2: [3.0, 5.0]}, shared=True))

    # residuals summed by seed: -0.4, 1.6, -1.2; their sd is sqrt(2.08), and t with 2 degrees is 4.3027
    assert rows(found)[-1] == (None, 5, 2.2, pytest.approx(0.0504, abs=1e-4), pytest.approx(4.3496, abs=1e-4))


def test_pairs_of_a_single_seed_have_no_interval() -> None:
    found = compare(HANDLING, grid({1: [1.0], 2: [3.0]}, shared=True))

    assert rows(found)[-1] == (None, 2, 2.0, None, None)


def test_numbers_whose_squares_overflow_are_not_compared(tmp_path: Path) -> None:
    results = [case(0, "old", y=1e308), case(1, "new", y=-1e308)]
    found = compare(HANDLING, results)

    assert (len(found.pairs), found.differences) == (1, [])
    assert document(written(tmp_path, results, paired=found))["comparison"]["differences"] == []


def test_metrics_are_compared_as_well() -> None:
    metrics = PlanMetrics({0: {"phi": 0.25, "none": None}, 1: {"phi": 0.75, "none": 1.0}}, {}, (), {})
    found = compare(HANDLING, grid({1: [1]}), metrics)

    assert found.pairs[0].values == {"metric.phi": (0.25, 0.75), "y": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (case(3, "other", replicate=1), "case 2 has no case in the treatment arm"),
        (replace(failed(3), case=case(3, "new", replicate=1).case), "case 3 is failed"),
        (replace(case(3, "new", replicate=1), task_status=TaskStatus.CANCELLED), "case 3 is cancelled"),
        (case(3, "new", replicate=1, seed=5), "cases 2 and 3 ran with different seeds"),
    ],
)
def test_what_is_no_pair_is_left_out_and_named(broken: TaskResult, reason: str) -> None:
    found = compare(HANDLING, [*grid({1: [1, 2]})[:3], broken])

    assert rows(found) == [(1, 1, 1.0, None, None)]
    assert found.warnings == [f"1 of 2 pairs are left out of the comparison; the first: {reason}"]


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        ([*START, '{"day": 1, "cash": 9}'], None),
        ([START[0]], "cases 0 and 1 start differently, from event 2 on: None and "),
        (["no JSON"], "the starts of cases 0 and 1 can't be read: "),
        (None, "the starts of cases 0 and 1 can't be read: case 0 has no artifact events.jsonl"),
    ],
)
def test_a_balanced_pair_starts_from_the_same_events(
    events: list[str] | None, reason: str | None, tmp_path: Path
) -> None:
    def with_events(index: int, h: str, lines: list[str] | None) -> TaskResult:
        if lines is None:
            return case(index, h)
        content = b64encode("\n".join(lines).encode()).decode()
        found = case(index, h, artifacts={"events.jsonl": f"data:text/plain;base64,{content}"})
        assert found.execution is not None
        execution = replace(found.execution, storage_type="local", storage_base=str(tmp_path))
        return replace(found, execution=execution)

    results = [with_events(0, "old", events), with_events(1, "new", [*START, '{"day": 1}'])]
    found = compare(HANDLING.model_copy(update={"balanced": True}), results)

    assert (len(found.pairs), len(found.warnings)) == ((1, 0) if reason is None else (0, 1))
    assert reason is None or reason in found.warnings[0]
    assert len(compare(HANDLING, results).pairs) == 1


def swept(**members: Any) -> RunManifest:
    sweep = {"dimensions": {"x": [1, 2], "h": ["old", "new"]}, "replicates": 2, "seeds": {"common": ["h"]}}
    comparison = {"parameter": "h", "control": "old", "treatment": "new"}
    return RunManifest.model_validate(
        {"workflow_id": "w", "tool": "t", "sweep": sweep, "comparison": comparison, **members}
    )


def test_the_runs_of_a_pair_have_the_same_seed_and_all_pairs_others() -> None:
    seeds: dict[tuple[Any, int], set[int | None]] = {}
    for one in all_cases(swept()):
        seeds.setdefault((one.parameters["x"], one.replicate), set()).add(one.seed)

    assert [len(both) for both in seeds.values()] == [1] * 4
    assert len(set().union(*seeds.values())) == 4


@pytest.mark.parametrize(
    ("sweep", "reason"),
    [
        ({"dimensions": {"x": [1]}}, "'comparison' needs 'old' in the list 'sweep.dimensions.h'"),
        ({"dimensions": {"h": ["old"]}}, "'comparison' needs 'new' in the list 'sweep.dimensions.h'"),
        ({"dimensions": {"h": ["old", "new"]}}, "'comparison' needs common random numbers: 'h' in "),
    ],
)
def test_a_comparison_without_its_arms_is_refused(sweep: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        swept(sweep=sweep)
    with pytest.raises(PlanError, match="control and treatment are both 1; they must differ"):
        manifest_of(
            "plan.yaml",
            {
                "workflow_id": "w",
                "tool": "t",
                "cases": [{}],
                "comparison": {"parameter": "h", "control": 1, "treatment": 1},
            },
        )


def test_a_report_has_the_differences_in_files_document_and_page(tmp_path: Path) -> None:
    results = grid({1: [1, 2], 2: [3, 5]})
    paths = written(tmp_path, results, paired=compare(HANDLING, results))

    lines = paths["comparison.csv"].read_text().splitlines()
    text = " ".join(" ".join(Reader(page(paths)).text).split())
    assert lines[0] == "over,param.x,value,pairs,control,treatment,difference,sd,low,high"
    assert [line.split(",")[:7] for line in lines[1:]] == [
        ["replicates", "1", "y", "2", "5.0", "6.5", "1.5"],
        ["replicates", "2", "y", "2", "5.0", "9.0", "4.0"],
        ["all", "", "y", "4", "5.0", "7.75", "2.75"],
    ]
    assert paths["comparison_pairs.csv"].read_text().splitlines()[:2] == [
        "control,treatment,replicate,seed,param.x,y.control,y.treatment,y.difference",
        "0,1,0,100,1,0.0,1.0,1.0",
    ]
    assert document(paths)["comparison"]["pairs"] == 4
    assert document(paths)["comparison"]["differences"][2]["difference"] == 2.75
    assert "h: new (treatment) minus old (control), in 4 pairs with the same random numbers" in text
    assert "all pairs" in text
    assert text.count("<svg") == 0, "the plot is drawn, not quoted"
    assert json.dumps(document(paths)["warnings"]) == "[]"
