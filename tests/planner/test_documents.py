"""Manifests in files: what is read, and the messages about mistakes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.planner.documents import manifest_of, member_path, read_manifest
from services.planner.models import Range, RateLimit, RunManifest
from shared.errors import PlanError

YAML = """
workflow_id: w
tool: t
cases:
  - parameters: {when: 2025-01-01, n: 1}
"""
MEMBERS: dict[str, Any] = {"workflow_id": "w", "tool": "t", "cases": [{"parameters": {"n": 1}}]}


def written(folder: Path, text: str | bytes, name: str = "plan.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def mistakes(*, at: str = "", **members: Any) -> list[str]:
    """What is said about a plan with these members, without its beginning."""
    with pytest.raises(PlanError) as caught:
        manifest_of("plan", {**MEMBERS, **members})
    return [line.removeprefix("plan ") for line in str(caught.value).split("\n")]


def sweep(**members: Any) -> dict[str, Any]:
    return {"cases": [], "sweep": {"dimensions": {"x": [1, 2]}, **members}}


# -- files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.yaml", YAML),
        ("plan.yml", json.dumps(MEMBERS)),
        ("plan.json", json.dumps(MEMBERS)),
        ("plan.json", "\ufeff\n" + json.dumps(MEMBERS)),
        ("plan", "\n " + json.dumps(MEMBERS)),
        ("plan.txt", YAML),
    ],
)
def test_a_plan_is_yaml_or_json(tmp_path: Path, name: str, text: str) -> None:
    plan = read_manifest(written(tmp_path, text, name))

    assert (plan.workflow_id, plan.tool, len(plan.cases)) == ("w", "t", 1)
    assert plan.cases[0].parameters["n"] == 1
    assert plan.cases[0].parameters.get("when", "2025-01-01") == "2025-01-01"


def test_yaml_may_use_aliases(tmp_path: Path) -> None:
    text = """
        workflow_id: w
        tool: t
        cases:
          - parameters: &usual {a: 1, b: 2}
          - parameters: {<<: *usual, b: 3}
          - {scenario: again, parameters: *usual}
    """

    plan = read_manifest(written(tmp_path, text))

    assert [one.parameters for one in plan.cases] == [{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"a": 1, "b": 2}]


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    path = written(tmp_path, YAML + "metadata: {asked: {by: ann}}")
    first = read_manifest(path)
    first.metadata["asked"]["by"] = "somebody else"
    first.cases[0].parameters["n"] = 2

    again = read_manifest(path)

    assert again.metadata == {"asked": {"by": "ann"}}
    assert again.cases[0].parameters["n"] == 1


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("p.yaml", "", "is empty; expected a YAML mapping"),
        ("p.yaml", "- 1", "is a list; expected a YAML mapping"),
        ("p.yaml", "a: [", "is not a YAML document"),
        ("p.yaml", "a: !!python/object:os.system {}", "is not a YAML document"),
        ("p.json", "{", "is not JSON"),
        ("p.json", "[]", "is a list; expected a JSON object"),
        ("p.json", '{"a": NaN}', "NaN is not a JSON number"),
        ("p.yaml", b"a: \xff", "is not UTF-8: byte 3 is 0xff"),
        (
            "p.yaml",
            "workflow_id: w\ntool: t\n",
            "has neither 'cases' nor a 'sweep'; it needs at least one case",
        ),
        ("p.yaml", "tool: a\nworkflow_id: w\ntool: b\n", "has 'tool' twice, in lines 1 and 3; leave one out"),
        (
            "p.yaml",
            "workflow_id: w\ntool: t\ncases:\n- parameters:\n    n: 1\n    n: 2\n",
            "has 'n' twice, in lines 5 and 6",
        ),
        (
            "p.json",
            '{"workflow_id": "w", "tool": "t", "cases": [{"seed": 1, "seed": 2}]}',
            "has an object with two members 'seed'; leave one out",
        ),
        (
            "p.yaml",
            f"a: [{'1,' * 100_001}]",
            "100,000 values .*; write the cases as JSON, which may be longer",
        ),
    ],
)
def test_a_file_that_is_no_manifest_is_refused(
    tmp_path: Path, name: str, text: str | bytes, complaint: str
) -> None:
    with pytest.raises(PlanError, match=rf"^{tmp_path}/{name} .*{complaint}"):
        read_manifest(written(tmp_path, text, name))


def test_a_file_that_cant_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=rf"^{tmp_path}/none.yaml: there is no such file$"):
        read_manifest(tmp_path / "none.yaml")
    with pytest.raises(PlanError, match=rf"^{tmp_path} can't be read: Is a directory$"):
        read_manifest(tmp_path)


def test_a_file_that_is_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        PlanError, match=r"is \d\d bytes long; at most 40 are read. A 'sweep' makes many cases"
    ):
        read_manifest(written(tmp_path, YAML), max_bytes=40)


def test_a_long_plan_can_be_json(tmp_path: Path) -> None:
    cases = [{"parameters": {"a": n, "b": [n, n], "c": {"d": n}}} for n in range(20_000)]

    plan = read_manifest(written(tmp_path, json.dumps({**MEMBERS, "cases": cases}), "plan.json"))

    assert len(plan.cases) == 20_000


# -- mistakes -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"workflow_version": 1.5}, "member 'workflow_version' is 1.5: expected a text; put it in quotes"),
        ({"tool": ""}, "member 'tool' is \"\": must not be empty"),
        ({"tool": None}, "member 'tool' is null: expected a text; put it in quotes"),
        ({"cases": {}}, "member 'cases' is an object: expected a list"),
        ({"cases": [3]}, "member 'cases[0]' is 3: expected an object"),
        (
            {"cases": [{}, {}, {}, {"parameters": [1, "ü"]}]},
            "member 'cases[3].parameters' is [1, \"ü\"]: expected an object",
        ),
        ({"cases": [{"seed": -1}]}, "member 'cases[0].seed' is -1: expected a whole number >= 0"),
        ({"cases": [{"seed": "4"}]}, "member 'cases[0].seed' is \"4\": expected a whole number"),
        ({"cases": [{"seed": 4.0}]}, "member 'cases[0].seed' is 4.0: expected a whole number"),
        ({"cases": [{"replicate": True}]}, "member 'cases[0].replicate' is true: expected a whole number"),
        (
            {"execution_policy": {"stop_conditions": {"failure_rate": 2}}},
            "member 'execution_policy.stop_conditions.failure_rate' is 2: expected a number <= 1",
        ),
        ({"budget": {"max_cost": 0}}, "member 'budget.max_cost' is 0: expected a number > 0"),
        (
            {"execution_policy": {"isolation": "wram"}},
            "member 'execution_policy.isolation' is \"wram\": expected 'warm', 'fork' or 'spawn'",
        ),
        (
            {"execution_policy": {"rate_control": {"burst": 1}}},
            "has no 'execution_policy.rate_control.per_minute', which is needed",
        ),
    ],
)
def test_a_mistake_names_the_member_its_value_and_what_is_allowed(members: Any, complaint: str) -> None:
    assert mistakes(**members) == [complaint]


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        ({"tol": "t"}, "member 'tol' is not known; did you mean 'tool'?"),
        (
            {"cases": [{"paramters": {}}]},
            "member 'cases[0].paramters' is not known; did you mean 'parameters'?",
        ),
        (sweep(dimension={}), "member 'sweep.dimension' is not known; did you mean 'dimensions'?"),
        (
            sweep(method="sobol", samples=1, dimensions={"low": {"low": 0, "high": 1, "logg": True}}),
            "member 'sweep.dimensions.low.logg' is not known; did you mean 'log'?",
        ),
        ({"concurrency": 4}, "member 'concurrency' is not known; it belongs in 'execution_policy'"),
        (
            {"execution_policy": {"max_failures": 4}},
            "member 'execution_policy.max_failures' is not known; "
            "it belongs in 'execution_policy.stop_conditions'",
        ),
        ({"cases": [{"tool": "t"}]}, "member 'cases[0].tool' is not known; it belongs at the top level"),
        (
            {"budget": {"zork": 1}},
            "member 'budget.zork' is not known; known are max_runs, max_seconds, max_cost, max_money",
        ),
    ],
)
def test_an_unknown_member_is_refused_with_a_suggestion(members: Any, complaint: str) -> None:
    assert mistakes(**members) == [complaint]


@pytest.mark.parametrize(
    ("members", "complaint"),
    [
        (sweep(dimensions={}), "member 'sweep.dimensions' is an object: must not be empty"),
        (sweep(dimensions={"a b": []}), "member 'sweep.dimensions[\"a b\"]' is []: must not be empty"),
        (
            sweep(dimensions={"x": 7}),
            "member 'sweep.dimensions.x' is 7: "
            "expected a list of values, or a range such as {low: 0, high: 1}",
        ),
        (
            sweep(method="gird"),
            "member 'sweep.method' is \"gird\": "
            "expected 'grid', 'zip', 'pairwise', 'latin_hypercube' or 'sobol'",
        ),
        (
            sweep(dimensions={"x": {"low": 0, "high": 1}}),
            "member 'sweep': dimension 'x' is a range; 'grid' takes lists of values, "
            "'latin_hypercube' and 'sobol' choose points in ranges",
        ),
        (
            sweep(method="zip", dimensions={"x": [1], "y": [1, 2]}),
            "member 'sweep': 'zip' needs dimensions with equally many values; given are 'x' 1, 'y' 2",
        ),
        (sweep(method="sobol"), "member 'sweep': 'sobol' needs 'samples', the number of points to choose"),
        (
            sweep(samples=4),
            "member 'sweep': 'samples' is for 'latin_hypercube' and 'sobol', which choose points; "
            "'grid' takes all listed values",
        ),
        (
            sweep(method="zip", seed=0),
            "member 'sweep': 'seed' is for 'latin_hypercube' and 'sobol', which choose points; "
            "'zip' takes all listed values",
        ),
        (
            sweep(parameters={"x": 3}),
            "member 'sweep': 'x' is both among the dimensions and among the parameters",
        ),
        (
            sweep(method="pairwise", dimensions={name: list(range(200)) for name in "abc"}),
            "member 'sweep': 'pairwise' would have to cover 120,000 pairs; the limit is 100,000",
        ),
        (
            sweep(method="sobol", samples=1, dimensions={"x": {"low": 1, "high": 1}}),
            "member 'sweep.dimensions.x': low (1) must be less than high (1)",
        ),
        (
            sweep(method="sobol", samples=1, dimensions={"x": {"low": 0, "high": 1, "log": True}}),
            "member 'sweep.dimensions.x': a logarithmic range can't begin at 0; it must be more than 0",
        ),
        (
            sweep(method="sobol", samples=1, dimensions={"x": {"low": 0, "high": 1.5, "integer": True}}),
            "member 'sweep.dimensions.x': low (0) and high (1.5) must be whole numbers up to 2**53",
        ),
    ],
)
def test_a_sweep_says_what_its_method_takes(members: Any, complaint: str) -> None:
    assert mistakes(**members) == [complaint]


def test_a_criterion_that_cant_be_read_is_shown() -> None:
    found = mistakes(evaluator={"success_criteria": ["loss < 1", "loss << 1"]})

    assert found[0].startswith("member 'evaluator.success_criteria[1]': the criterion can't be read")
    assert "loss << 1" in found[1]


def test_every_mistake_has_its_line() -> None:
    found = mistakes(tool=1, cases=[{"seed": -1}, {"sed": 1}], budget={"max_runs": 0})

    assert len(found) == 4
    assert [line.split("'")[1] for line in found] == [
        "tool",
        "cases[0].seed",
        "cases[1].sed",
        "budget.max_runs",
    ]


def test_the_list_of_mistakes_is_limited() -> None:
    found = mistakes(cases=[{"seed": -1}] * 1_000)

    assert len(found) == 21
    assert found[-1] == "has 980 more mistakes"


def test_a_long_value_is_shown_in_part() -> None:
    [line] = mistakes(cases=[{"seed": "x" * 1_000}])

    assert len(line) < 160
    assert "xxx...: expected a whole number" in line


@pytest.mark.parametrize(
    ("parts", "path"),
    [
        ((), ""),
        (("cases", 3, "parameters"), "cases[3].parameters"),
        (("a", "b c", "d"), 'a["b c"].d'),
        (("größe", ""), 'größe[""]'),
    ],
)
def test_a_path_is_as_its_author_would_write_it(parts: tuple[int | str, ...], path: str) -> None:
    assert member_path(parts) == path


@pytest.mark.parametrize("name", ["[key]", "a list of values", ""])
def test_an_unknown_member_may_have_any_name(name: str) -> None:
    """Also one of those that stand for no member in what pydantic says of a place."""
    with pytest.raises(PlanError, match=re.escape(f"member '{member_path([name])}' is not known")):
        manifest_of("plan", {"workflow_id": "w", "tool": "t", name: 1})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
names = st.sampled_from(
    [*RunManifest.model_fields, "dimensions", "method", "low", "high", "parameters", "seed"]
)


@given(st.dictionaries(names | st.text(), json_values | st.dictionaries(names, json_values)))
def test_any_document_is_a_manifest_or_a_readable_error(members: dict[str, Any]) -> None:
    try:
        said = f"plan {manifest_of('plan', members).workflow_id}"
    except PlanError as exc:
        said = str(exc)

    assert said.startswith("plan ")
    assert "Input should" not in said


# -- what programs write --------------------------------------------------------------


def test_a_manifest_survives_being_written() -> None:
    plan = manifest_of(
        "plan",
        {
            **MEMBERS,
            "sweep": {
                "method": "latin_hypercube",
                "samples": 3,
                "dimensions": {"x": {"low": 1, "high": 9, "log": True}, "y": [1, "a", None, {"b": [1.5]}]},
            },
            "execution_policy": {"rate_control": {"per_minute": 60}, "stop_conditions": {"timeout": 1}},
            "evaluator": {"success_criteria": ["loss < 1"]},
        },
    )

    assert RunManifest.model_validate_json(plan.model_dump_json()) == plan
    assert manifest_of("plan", json.loads(plan.model_dump_json())) == plan


def test_models_take_models() -> None:
    assert RateLimit(per_minute=60, burst=5).per_minute == 60
    plan = manifest_of(
        "p", {**MEMBERS, **sweep(method="sobol", samples=2, dimensions={"x": Range(low=0, high=1)})}
    )

    assert plan.sweep is not None
    assert plan.sweep.dimensions["x"] == Range(low=0, high=1)
