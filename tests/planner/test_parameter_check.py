"""Parameters of cases are compared with the schema of their tool, all of them in one list."""

from typing import Any

import pytest

from services.planner.models import TestCase
from services.planner.parameter_check import SHOWN, check_cases, fits
from shared.errors import PlanError

SCHEMA = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "n": {"type": "integer"},
        "how": {"enum": ["fast", "exact"], "default": "fast"},
        "weights": {"type": "array", "items": {"type": "number"}},
    },
    "required": ["text"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        ("a", {"type": "string"}, True),
        (123, {"type": "string"}, False),
        (2, {"type": "integer"}, True),
        (2.0, {"type": "integer"}, True),
        (2.5, {"type": "integer"}, False),
        (float("inf"), {"type": "integer"}, False),
        (10**30, {"type": "integer"}, True),
        (True, {"type": "integer"}, False),
        (2, {"type": "number"}, True),
        ("2", {"type": "number"}, False),
        (False, {"type": "number"}, False),
        (0, {"type": "boolean"}, False),
        (True, {"type": "boolean"}, True),
        (None, {"type": "string"}, False),
        (None, {"type": "string", "default": None}, True),
        (None, {"type": ["string", "null"]}, True),
        (1, {"type": ["string", "null"]}, False),
        ([], {"type": "array", "items": {"type": "number"}}, True),
        ([1, "2"], {"type": "array", "items": {"type": "number"}}, False),
        ((1, 2), {"type": "array"}, True),
        ("ab", {"type": "array"}, False),
        ({}, {"type": "object"}, True),
        ([], {"type": "object"}, False),
        ("exact", {"enum": ["fast", "exact"]}, True),
        (1, {"enum": [True]}, False),
        ({}, {"anyOf": [{"type": "object"}, {"enum": ["x"]}]}, True),
        (3, {"anyOf": [{"type": "object"}, {"enum": ["x"]}]}, False),
        (object, {}, True),
        (3, {"type": "of a later version"}, True),
    ],
)
def test_a_value_fits_a_schema(value: Any, schema: dict[str, Any], expected: bool) -> None:
    assert fits(value, schema) is expected


def test_parameters_that_fit_are_accepted() -> None:
    check_cases(
        "tool", [TestCase(parameters={"text": "a", "n": 3, "how": "exact", "weights": [1, 0.5]})], SCHEMA
    )
    check_cases(
        "tool", [TestCase(parameters={"text": "a", "more": 1})], {**SCHEMA, "additionalProperties": True}
    )


def test_all_mistakes_are_told_in_one_list_each_once() -> None:
    cases = [
        TestCase(parameters={"text": 123, "n": 1.5}),
        TestCase(parameters={"text": 123}),
        TestCase(parameters={"text": "a", "lenght": 1, "how": "slow", "weights": "1,2"}),
        TestCase(),
    ]

    with pytest.raises(PlanError) as found:
        check_cases("tool", cases, SCHEMA)

    assert str(found.value).splitlines() == [
        "parameter 'text' is 123; expected a text (2 cases, the first is 0)",
        "parameter 'n' is 1.5; expected a whole number (case 0)",
        "parameter 'lenght' is unknown (case 2)",
        'parameter \'how\' is "slow"; expected one of "fast", "exact" (case 2)',
        "parameter 'weights' is \"1,2\"; expected a list in which each is a number (case 2)",
        "parameter 'text' is missing (case 3)",
        "the tool tool takes: text, n, how, weights; nothing was run",
    ]


def test_a_long_list_is_cut() -> None:
    with pytest.raises(PlanError) as found:
        check_cases("tool", [TestCase(parameters={"text": "a", f"x{n}": 1}) for n in range(30)], SCHEMA)

    lines = str(found.value).splitlines()
    assert (len(lines), lines[SHOWN]) == (SHOWN + 2, "and 10 more mistakes")
