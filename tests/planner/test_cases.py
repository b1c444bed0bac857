"""The cases of a plan: listed ones and those of a sweep, each with a seed, none twice."""

import random
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.planner.cases import all_cases, replicate_seed, seed_of
from services.planner.documents import manifest_of
from services.planner.models import RunManifest, TestCase
from shared.errors import PlanError


def manifest(**members: Any) -> RunManifest:
    return manifest_of("plan", {"workflow_id": "w", "tool": "tool", **members})


def listed(*parameters: Any, **members: Any) -> list[dict[str, Any]]:
    return [{"parameters": {"n": one}, **members} for one in parameters]


def test_listed_cases_come_first_and_every_one_has_its_seed() -> None:
    plan = manifest(
        cases=listed(7, dataset="d"),
        sweep={"dimensions": {"a": [1, 2], "b": ["x", "y"]}, "parameters": {"c": 0}, "scenario": "s"},
    )

    found = all_cases(plan)

    swept = [{"a": a, "b": b, "c": 0} for a in (1, 2) for b in "xy"]
    assert [one.parameters for one in found] == [{"n": 7}, *swept]
    assert [(one.dataset, one.scenario) for one in found] == [("d", ""), *[("", "s")] * 4]
    assert [one.seed for one in found] == [
        seed_of("tool", one.model_copy(update={"seed": None})) for one in found
    ]
    assert len({one.seed for one in found}) == 5


@settings(max_examples=50)
@given(st.sets(st.integers(), max_size=20), st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_reordered_plan_gives_each_case_the_seed_it_had(
    numbers: set[int], replicates: int, dice: random.Random
) -> None:
    cases = listed(*numbers, replicates=replicates)
    shuffled = dice.sample(cases, len(cases))

    seeds = {str(one): one.seed for one in all_cases(manifest(cases=cases))}

    assert {str(one): one.seed for one in all_cases(manifest(cases=shuffled))} == seeds
    assert len(seeds) == len(set(seeds.values())) == len(numbers) * replicates


@pytest.mark.parametrize(
    "members",
    [
        {"cases": [*listed(1, 2, replicates=3), *listed(1, seed=5, replicates=2)]},
        {"sweep": {"dimensions": {"a": [1, 2]}, "replicates": 2}},
        {
            "sweep": {
                "method": "sobol",
                "samples": 9,
                "dimensions": {"a": {"low": 0, "high": 2, "integer": True}},
            }
        },
    ],
)
def test_a_plan_of_all_cases_has_the_same_cases_again(members: Any) -> None:
    plan = manifest(**members)
    cases = all_cases(plan)
    expanded = plan.model_copy(update={"cases": cases, "sweep": None})

    read_again = RunManifest.model_validate_json(expanded.model_dump_json())

    assert all_cases(read_again) == all_cases(expanded) == cases


# -- replicates -----------------------------------------------------------------------


def test_replicates_are_numbered_and_have_seeds_of_their_own() -> None:
    found = all_cases(manifest(sweep={"dimensions": {"a": [1, 2]}, "replicates": 3}))

    assert [(one.parameters["a"], one.replicate) for one in found] == [
        (a, n) for a in (1, 2) for n in range(3)
    ]
    assert len({one.seed for one in found}) == 6
    assert {one.replicates for one in found} == {1}


def test_more_replicates_leave_the_seeds_of_the_first_ones() -> None:
    few, many = (all_cases(manifest(sweep={"dimensions": {"a": [1, 2]}, "replicates": n})) for n in (2, 4))

    assert set(map(str, few)) < set(map(str, many))


def test_replicates_of_a_given_seed_are_derived_from_it() -> None:
    found = all_cases(manifest(cases=listed(1, seed=7, replicates=3)))

    assert [one.seed for one in found] == [7, replicate_seed(7, 1), replicate_seed(7, 2)]


def test_replicates_count_on_from_the_one_that_is_given() -> None:
    found = all_cases(manifest(cases=[*listed(1, replicates=2), *listed(1, replicate=2, replicates=2)]))

    assert found == all_cases(manifest(cases=listed(1, replicates=4)))


@pytest.mark.parametrize("method", ["latin_hypercube", "sobol"])
def test_a_point_that_is_chosen_again_has_further_replicates(method: str) -> None:
    dimensions = {"a": {"low": 1, "high": 2, "integer": True}, "b": ["x", "y"]}
    sweep = {"method": method, "samples": 16, "dimensions": dimensions, "replicates": 2}

    found = all_cases(manifest(sweep=sweep))

    assert len(found) == len({one.seed for one in found}) == 32
    by_point: dict[str, list[int]] = {}
    for one in found:
        by_point.setdefault(str(one.parameters), []).append(one.replicate)
    assert len(by_point) <= 4
    assert all(numbers == list(range(len(numbers))) for numbers in by_point.values())


# -- the same case twice --------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "names"),
    [
        ({"cases": listed(1, 2, 1)}, "cases[0] and cases[2]"),
        ({"cases": listed(1, 1, seed=4)}, "cases[0] and cases[1]"),
        ({"cases": [{"parameters": {"n": 0.0}}, {"parameters": {"n": -0.0}}]}, "cases[0] and cases[1]"),
        (
            {"cases": [*listed(5), *listed(1, replicates=3), *listed(1, replicate=2)]},
            "cases[1] (replicate 2) and cases[2]",
        ),
        ({"cases": listed(2), "sweep": {"dimensions": {"n": [1, 2]}}}, "cases[0] and the sweep's case 1"),
        (
            {"sweep": {"method": "zip", "dimensions": {"n": [1, 2, 1]}}},
            "the sweep's case 0 and the sweep's case 2",
        ),
        ({"sweep": {"dimensions": {"n": [1, 1]}}}, "the sweep's case 0 and the sweep's case 1"),
    ],
)
def test_two_equal_cases_are_an_error(members: Any, names: str) -> None:
    with pytest.raises(PlanError, match=rf"^w: {re.escape(names)} are the same, with parameters {{\"n\":"):
        all_cases(manifest(**members))


@pytest.mark.parametrize(
    "difference",
    [
        {"seed": 4},
        {"replicate": 1},
        {"dataset": "d"},
        {"scenario": "s"},
        {"parameters": {"n": 1.0}},
    ],
)
def test_cases_that_differ_in_anything_are_not_equal(difference: dict[str, Any]) -> None:
    assert len(all_cases(manifest(cases=[*listed(1), {**listed(1)[0], **difference}]))) == 2


def test_metadata_alone_makes_no_other_case() -> None:
    with pytest.raises(PlanError, match="are the same"):
        all_cases(manifest(cases=[*listed(1), *listed(1, metadata={"a": 1})]))


# -- limits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        {"sweep": {"dimensions": {name: list(range(101)) for name in "abc"}}},
        {"sweep": {"dimensions": {"a": [1, 2]}, "replicates": 500_001}},
        {"sweep": {"method": "pairwise", "dimensions": {name: list(range(1_001)) for name in "ab"}}},
        {
            "sweep": {
                "method": "sobol",
                "dimensions": {"a": {"low": 0, "high": 1}},
                "samples": 10**6,
                "replicates": 2,
            }
        },
        {"cases": [{"replicates": 10**12}]},
        {"cases": [{"replicates": 10**6}], "sweep": {"dimensions": {"a": [1]}}},
    ],
)
def test_too_many_cases_are_refused_before_they_are_generated(members: Any) -> None:
    with pytest.raises(PlanError, match=r"^plan: it has [\d,]+ cases; a plan has at most 1,000,000$"):
        manifest(**members)


def test_too_many_pairwise_cases_are_refused() -> None:
    plan = manifest(sweep={"method": "pairwise", "dimensions": {name: [1, 2, 3] for name in "abcd"}})

    with pytest.raises(PlanError, match="w has more than 8 cases"):
        all_cases(plan, max_cases=8)


def test_a_manifest_without_cases_has_no_cases() -> None:
    assert all_cases(manifest()) == ()


def test_a_value_that_json_cant_hold_is_told() -> None:
    plan = RunManifest(workflow_id="w", tool="tool", cases=(TestCase(parameters={"x": float("inf")}),))

    with pytest.raises(PlanError, match="a case of tool has parameters that JSON can't hold: inf"):
        all_cases(plan)
