"""Designs: the points of a sweep by each method."""

import subprocess
import sys
import warnings
from collections import Counter
from itertools import combinations, product
from math import inf, log
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.planner.cases import points
from services.planner.models import Sweep

CHOOSING = ["latin_hypercube", "sobol"]
lists = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def sweep(method: str, **members: Any) -> Sweep:
    return Sweep.model_validate({"method": method, **members})


def column(one: Sweep, name: str = "x") -> list[Any]:
    return [point[name] for point in points(one)]


def test_a_grid_is_every_combination_in_the_order_written() -> None:
    one = sweep("grid", dimensions={"b": [2, 1], "a": ["x", None, [3]]})

    assert list(points(one)) == [{"b": b, "a": a} for b, a in product([2, 1], ["x", None, [3]])]


def test_zip_is_the_nth_value_of_each() -> None:
    one = sweep("zip", dimensions={"a": [1, 2, 2], "b": [{}, [], ""]})

    assert list(points(one)) == [{"a": 1, "b": {}}, {"a": 2, "b": []}, {"a": 2, "b": ""}]


@settings(max_examples=60, deadline=None)
@given(lists)
def test_pairwise_covers_every_pair_of_values(lengths: list[int]) -> None:
    dimensions = {f"d{i}": list(range(length)) for i, length in enumerate(lengths)}

    rows = list(points(sweep("pairwise", dimensions=dimensions)))

    assert all(list(row) == list(dimensions) for row in rows)
    for one, other in combinations(dimensions, 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(product(dimensions[one], dimensions[other]))
    for name, values in dimensions.items():
        assert {row[name] for row in rows} == set(values)


def test_pairwise_is_much_less_than_all_and_never_twice_the_same() -> None:
    rows = list(points(sweep("pairwise", dimensions={name: list(range(5)) for name in "abcdefgh"})))

    assert len(rows) < 60  # of 390,625
    assert len({tuple(row.values()) for row in rows}) == len(rows)


def test_pairwise_takes_any_values() -> None:
    one = sweep("pairwise", dimensions={"a": [[1], {"k": 1}, None], "b": [True, 1, "1"], "c": [0]})

    assert len(list(points(one))) == 9


def test_pairwise_of_one_dimension_is_each_of_its_values() -> None:
    assert column(sweep("pairwise", dimensions={"x": [3, 1, 2]})) == [3, 1, 2]


# -- points in ranges -----------------------------------------------------------------


@pytest.mark.parametrize("method", CHOOSING)
@given(
    samples=st.integers(1, 40),
    seed=st.integers(0, 2**63 - 1),
    low=st.floats(-1e308, 1e308),
    width=st.floats(1e-300, 1e308),
)
@settings(max_examples=30, deadline=None)
def test_every_point_is_within_its_bounds(
    method: str, samples: int, seed: int, low: float, width: float
) -> None:
    high = low + width
    assume(low < high < inf)
    reals = {"x": {"low": low, "high": high}, "l": {"low": width, "high": 1.5e308, "log": True}}
    wholes = {
        "i": {"low": -3, "high": 4, "integer": True},
        "m": {"low": 1, "high": 2**53, "log": True, "integer": True},
    }
    one = sweep(method, samples=samples, seed=seed, dimensions={**reals, **wholes, "c": ["a", "b", "c"]})

    chosen: list[Any] = list(points(one))

    assert len(chosen) == samples
    for point in chosen:
        assert low <= point["x"] <= high
        assert width <= point["l"] <= 1.5e308
        assert -3 <= point["i"] <= 4
        assert 1 <= point["m"] <= 2**53
        assert point["c"] in ("a", "b", "c")
        assert [type(point[name]) for name in "xlimc"] == [float, float, int, int, str]


@pytest.mark.parametrize("method", CHOOSING)
def test_a_range_is_filled_evenly(method: str) -> None:
    one = sweep(method, samples=64, dimensions={"x": {"low": 0, "high": 64}, "y": {"low": 1, "high": 2}})

    assert sorted(int(x) for x in column(one)) == list(range(64))


@pytest.mark.parametrize("method", CHOOSING)
def test_a_logarithmic_range_is_filled_evenly_by_logarithm(method: str) -> None:
    one = sweep(method, samples=32, dimensions={"x": {"low": 1e-6, "high": 1e10, "log": True}})

    assert sorted(int(2 * (log(x, 10) + 6)) for x in column(one)) == list(range(32))


@pytest.mark.parametrize("method", CHOOSING)
def test_whole_numbers_have_both_ends_as_often_as_the_rest(method: str) -> None:
    one = sweep(method, samples=64, dimensions={"x": {"low": -1, "high": 6, "integer": True}})

    assert Counter(column(one)) == dict.fromkeys(range(-1, 7), 8)


def test_logarithmic_whole_numbers_have_both_ends() -> None:
    one = sweep("sobol", samples=1024, dimensions={"x": {"low": 1, "high": 7, "integer": True, "log": True}})

    counts = Counter(column(one))

    assert {number: round(1024 * log((number + 1) / number, 8)) for number in range(1, 8)} == pytest.approx(
        counts, abs=2
    )


@pytest.mark.parametrize("method", CHOOSING)
def test_listed_values_are_taken_in_turn(method: str) -> None:
    one = sweep(method, samples=16, dimensions={"x": ["a", None, [1], {}], "y": {"low": 0, "high": 1}})

    assert Counter(map(str, column(one))) == {"a": 4, "None": 4, "[1]": 4, "{}": 4}


@pytest.mark.parametrize("method", CHOOSING)
def test_the_same_seed_chooses_the_same_points(method: str) -> None:
    dimensions = {"x": {"low": 0, "high": 1}, "y": {"low": 0, "high": 1}}
    chosen = [
        list(points(sweep(method, samples=7, dimensions=dimensions, **seed)))
        for seed in ({}, {"seed": 0}, {"seed": 1}, {"seed": 2**63 - 1})
    ]

    assert chosen[0] == chosen[1]
    assert len({str(one) for one in chosen}) == 3


def test_a_sobol_design_grows_without_losing_its_points_and_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sizes = [
            column(sweep("sobol", samples=n, dimensions={"x": {"low": 0, "high": 1}})) for n in (1, 5, 8, 9)
        ]

    assert sizes[0] == sizes[1][:1]
    assert sizes[1] == sizes[2][:5]
    assert sizes[2] == sizes[3][:8]


def test_chosen_numbers_can_be_read_by_people() -> None:
    chosen = column(sweep("sobol", samples=64, dimensions={"x": {"low": 0, "high": 1e-3}}))

    assert all(len(f"{x:.15g}".partition("e")[0].lstrip("0.")) <= 13 for x in chosen)


def test_scipy_is_imported_only_to_choose_points() -> None:
    program = (
        "import sys; import services.planner.cases, services.planner.documents as d;"
        "from services.planner.cases import all_cases;"
        "m = d.manifest_of('m', {'workflow_id': 'w', 'tool': 't', 'sweep': {'dimensions': {'a': [1, 2]}}});"
        "assert len(all_cases(m)) == 2;"
        "print('scipy' in sys.modules, 'numpy' in sys.modules)"
    )

    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)

    assert asked.stdout.split() == ["False", "False"]
