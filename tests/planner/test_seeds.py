"""Seeds follow from the content of a case, and from nothing else."""

import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.cases import all_cases, attempt_seed, content_of, replicate_seed, seed_of
from services.planner.models import RunManifest, TestCase
from shared.errors import PlanError
from tests.planner.scripted import FakeTime, Scripted, perform, plan, transient_failure

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner))
parameters = st.dictionaries(st.text(min_size=1), values, max_size=4)


@pytest.mark.parametrize(
    ("case", "seed"),
    [
        (TestCase(), 4_730_905_916_293_945_545),
        (TestCase(parameters={"kappa": 0.25, "n_agents": 30}), 5_081_237_526_728_763_883),
        (TestCase(parameters={"kappa": 0.25, "n_agents": 30}, replicate=1), 5_223_575_408_344_149_763),
        (TestCase(dataset="d", scenario="ü", parameters={"x": [1, {"y": None}]}), 4_210_924_783_869_329_805),
    ],
)
def test_seeds_are_pinned_for_good(case: TestCase, seed: int) -> None:
    assert seed_of("ring_simulation", case) == seed


def test_another_process_computes_the_same_seed() -> None:
    case = TestCase(parameters={"b": [1.5], "a": {"z": 1, "y": "ü"}})
    program = (
        "import sys;from services.planner.models import TestCase;from services.planner.cases import seed_of;"
        "print(seed_of('tool', TestCase.model_validate_json(sys.argv[1])))"
    )

    asked = subprocess.run(
        [sys.executable, "-c", program, case.model_dump_json()], capture_output=True, check=True
    )

    assert int(asked.stdout) == seed_of("tool", case)


@given(parameters, st.text(), st.text(), st.integers(0, 1_000))
def test_a_seed_has_63_bits_and_forgets_the_order(
    params: dict[str, Any], dataset: str, scenario: str, replicate: int
) -> None:
    case = TestCase(dataset=dataset, scenario=scenario, parameters=params, replicate=replicate)
    turned = case.model_copy(update={"parameters": dict(reversed(params.items()))})

    seed = seed_of("tool", case)

    assert 0 <= seed < 2**63
    assert seed == seed_of("tool", turned) == seed_of("tool", case.model_copy(update={"metadata": {"a": 1}}))


@given(parameters)
def test_a_case_keeps_its_seed_through_json(params: dict[str, Any]) -> None:
    case = TestCase(parameters=params)

    again = TestCase.model_validate(json.loads(case.model_dump_json()))

    assert seed_of("tool", again) == seed_of("tool", case)


def test_every_part_of_the_content_changes_the_seed() -> None:
    case = TestCase(dataset="a", scenario="b", parameters={"n": 1})
    changes: list[dict[str, Any]] = [
        {},
        {"dataset": "ab", "scenario": ""},
        {"scenario": "c"},
        {"replicate": 1},
        {"parameters": {"n": 1.0}},
        {"parameters": {"n": True}},
        {"parameters": {"n": "1"}},
        {"parameters": {"m": 1}},
        {"parameters": {}},
    ]

    seeds = [seed_of("tool", case.model_copy(update=change)) for change in changes]

    assert len({*seeds, seed_of("other", case)}) == len(changes) + 1


def test_both_zeros_are_one_value() -> None:
    seeds = [seed_of("tool", TestCase(parameters={"x": zero})) for zero in (0.0, -0.0)]

    assert seeds[0] == seeds[1]


def test_a_pinned_tool_has_the_seeds_of_its_name() -> None:
    case = TestCase(parameters={"n": 1})

    assert seed_of(f"tool@sha256:{'0' * 64}", case) == seed_of("tool", case)


def test_a_given_seed_is_kept() -> None:
    assert seed_of("tool", TestCase(seed=0, replicate=4)) == 0


def test_replicates_of_a_given_seed_differ_and_the_first_keeps_it() -> None:
    seeds = [replicate_seed(7, number) for number in range(1_000)]

    assert seeds[0] == 7
    assert seeds[1:3] == [7_416_683_618_273_728_826, 6_992_712_404_843_004_329]
    assert len(set(seeds)) == 1_000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_value_that_json_cant_hold_is_told() -> None:
    case = TestCase(parameters={"x": float("nan")})

    with pytest.raises(PlanError, match="a case of tool has parameters that JSON can't hold: nan"):
        content_of("tool", case)


def swept(**seeds: Any) -> list[tuple[int, int, int, int | None]]:
    """The cases of a sweep over two dimensions: x, y, replicate and seed."""
    sweep: dict[str, Any] = {"dimensions": {"x": [1, 2], "y": [1, 2]}, "replicates": 2}
    if seeds:
        sweep["seeds"] = seeds
    manifest = RunManifest.model_validate({"workflow_id": "w", "tool": "t", "sweep": sweep})
    return [
        (int(str(one.parameters["x"])), int(str(one.parameters["y"])), one.replicate, one.seed)
        for one in all_cases(manifest)
    ]


def test_common_random_numbers_share_a_seed_along_a_dimension_for_each_replicate() -> None:
    seeds = {(x, y, n): seed for x, y, n, seed in swept(common=["x"])}

    assert [seeds[1, y, n] == seeds[2, y, n] for y in (1, 2) for n in (0, 1)] == [True] * 4
    assert len(set(seeds.values())) == 4


def test_a_base_gives_all_runs_other_seeds_and_the_same_ones_again() -> None:
    first, second, without = swept(base=1), swept(base=2), swept()

    assert swept(base=1) == first
    assert len({seed for cases in (first, second, without) for *_, seed in cases}) == 24
    assert swept(common=[]) == without


def test_common_names_only_dimensions() -> None:
    with pytest.raises(
        ValueError, match=r"'seeds\.common' names 'z', which is no dimension; known are 'x', 'y'"
    ):
        swept(common=["z"])


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ({}, [7, attempt_seed(7, 2), attempt_seed(7, 3)]),
        ({"seed": "case"}, [7, 7, 7]),
    ],
)
async def test_a_retry_has_the_seed_of_its_attempt_unless_the_plan_wants_that_of_the_case(
    policy: dict[str, Any], expected: list[int], time: FakeTime
) -> None:
    backend = Scripted(transient_failure)
    manifest = plan(1, retry_policy={"max_attempts": 3, **policy})
    case = manifest.cases[0].model_copy(update={"seed": 7})

    found = await perform(backend, manifest.model_copy(update={"cases": (case,)}), time)

    assert [call.options.policy.seed for call in backend.calls] == expected
    assert found.task_results[0].seed == expected[-1]
    assert attempt_seed(7, 2) == 7_760_103_473_489_528_203
