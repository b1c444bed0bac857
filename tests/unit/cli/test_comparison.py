"""Differences between JSON values."""

from typing import Any

import pytest

from services.cli.records.comparison import ABSENT, differences


@pytest.mark.parametrize(
    "value", [None, 0, "", [], {}, [1, [2.5, {"a": None}]], {"a": {"b": [True, "x"]}}, -0.0]
)
def test_a_value_does_not_differ_from_itself(value: Any) -> None:
    assert list(differences(value, value)) == []


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1, 2, [("", 1, 2)]),
        ({"n": 1}, {"n": 2}, [("n", 1, 2)]),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, [("a.b[1]", 2, 3)]),
        ([1], [1, None], [("[1]", ABSENT, None)]),
        ({"a": None}, {}, [("a", None, ABSENT)]),
        ({"a": []}, {"a": {}}, [("a", [], {})]),
        ([{"x": 1}, {"x": 2}], [{"x": 0}, {"x": 3}], [("[0].x", 1, 0), ("[1].x", 2, 3)]),
        ("(absent)", ABSENT, [("", "(absent)", ABSENT)]),
    ],
)
def test_every_difference_has_a_path(one: Any, other: Any, expected: Any) -> None:
    assert list(differences(one, other)) == expected


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), (0, False), ([1], [True]), ("1", 1)])
def test_numbers_of_different_types_differ(one: Any, other: Any) -> None:
    assert len(list(differences({"n": one}, {"n": other}))) == 1
