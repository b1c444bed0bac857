"""What replicates of a ring have in common, by numbers computed by hand."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from tests.tools.conftest import Load
from tests.tools.test_ring_simulation import simulate_with

Aggregate = Callable[..., dict[str, Any]]


def replicate(status: str = "quiet", **changed: int) -> dict[str, Any]:
    """A run as an aggregating function gets it, as far as that looks at it."""
    result = {"agents": 10, "agents_defaulted": 0, "days_run": 5, "debt_cents": 1_000, "open_cents": 0}
    return {"result": {"status": status, "written_off_cents": 0, **result, **changed}}


THREE = (
    replicate(written_off_cents=100, agents_defaulted=1),
    replicate("max_days", written_off_cents=150, open_cents=50, agents_defaulted=2, days_run=7),
    replicate(written_off_cents=300, agents_defaulted=3, days_run=9),
)
"""Shortfalls and rates of defaults are 0.1, 0.2 and 0.3; the days are 5, 7 and 9."""


@pytest.fixture
def tool(load: Load) -> ModuleType:
    return load("ring_simulation")


@pytest.fixture
def aggregate(tool: ModuleType) -> Aggregate:
    return tool.aggregate  # type: ignore[no-any-return]


def test_the_means_are_told_with_how_sure_they_are(aggregate: Aggregate) -> None:
    found = aggregate(THREE)

    # The standard deviations are 0.1, 0.1 and 2, and Student's t is 4.3027 with two degrees of freedom.
    assert found["diagnostics"] == pytest.approx(
        {
            "n": 3,
            "shortfall": 0.2,
            "shortfall_margin": 4.3027 * 0.1 / 3**0.5,
            "default_rate": 0.2,
            "default_rate_margin": 4.3027 * 0.1 / 3**0.5,
            "days": 7,
            "days_margin": 4.3027 * 2 / 3**0.5,
        },
        rel=1e-4,
    )
    assert found["outputs"] == {"statuses": {"quiet": 2, "max_days": 1}}


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, 0.2),
        ({"shortfall": 0}, 0.2),
        ({"days": 10}, 3),
        ({"shortfall": 0.5, "default_rate": 0.6}, 0.125**0.5),  # 0.3 and 0.4 away
        ({"shortfall": 0.2, "default_rate": 0.2, "days": 7}, 0),
    ],
)
def test_the_loss_is_how_far_the_means_are_from_the_target(
    aggregate: Aggregate, target: dict[str, float] | None, expected: float
) -> None:
    assert aggregate(THREE, target)["loss"] == pytest.approx(expected, abs=1e-12)


def test_a_single_run_says_nothing_of_how_sure_it_is(aggregate: Aggregate) -> None:
    diagnostics = aggregate(THREE[:1])["diagnostics"]

    assert (diagnostics["n"], diagnostics["shortfall"], diagnostics["shortfall_margin"]) == (1, 0.1, None)


def test_runs_that_came_to_the_same_leave_no_doubt(aggregate: Aggregate) -> None:
    diagnostics = aggregate([replicate("settled")] * 4)["diagnostics"]

    assert (diagnostics["shortfall"], diagnostics["shortfall_margin"]) == (0, 0)


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (29, 2.045), (100, 1.984)],
)
def test_the_quantiles_are_those_of_the_tables(tool: ModuleType, freedom: int, expected: float) -> None:
    assert tool.quantile(freedom) == pytest.approx(expected, abs=5e-4)


def test_it_takes_what_a_run_returns(tool: ModuleType, aggregate: Aggregate) -> None:
    unpaid, _ = simulate_with(tool, n_agents=4, kappa=0, days=1)  # the first default ends it, nothing is paid

    found = aggregate([{"result": unpaid}])

    assert found["loss"] == 1
    assert (found["diagnostics"]["default_rate"], found["diagnostics"]["days"]) == (0.25, 1)
    assert found["outputs"] == {"statuses": {"stopped: default": 1}}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (0.2, "target_data is 0.2: allowed is an object with any of shortfall, default_rate, days"),
        ({}, r"target_data is \{\}: allowed"),
        ({"defaults": 1}, r"target_data is \{'defaults': 1\}: allowed"),
        ({"days": "10"}, r"target_data\['days'\] is '10': allowed is a number from 0"),
        ({"shortfall": -0.1}, r"target_data\['shortfall'\] is -0.1"),
        ({"shortfall": True}, r"target_data\['shortfall'\] is True"),
    ],
)
def test_a_bad_target_is_named_with_what_is_allowed(
    aggregate: Aggregate, target: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate(THREE, target)
