"""Results as JSON, and the messages for those that have no JSON form."""

import collections
import dataclasses
import datetime
import decimal
import enum
import json
import pathlib
import uuid
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.isolation.common import serialize


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: int
    when: datetime.date


class Model(pydantic.BaseModel):
    at: datetime.date


class Scalar:
    """Looks like a numpy value."""

    dtype = "int64"

    def tolist(self) -> list[int]:
        return [1, 2]


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({1}), [1]),
        ({1: "a", 2.5: "b", False: "c", None: "d"}, {"1": "a", "2.5": "b", "false": "c", "null": "d"}),
        (datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), "2026-01-02T03:04:00+00:00"),
        (datetime.time(1, 2), "01:02:00"),
        (decimal.Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (pathlib.Path("a/b"), "a/b"),
        (Colour.RED, "red"),
        ([Point(1, datetime.date(2026, 1, 2))], [{"x": 1, "when": "2026-01-02"}]),
        (Model(at=datetime.date(2026, 1, 2)), {"at": "2026-01-02"}),
        (Scalar(), [1, 2]),
        ("a\ud800", "a\ud800"),
        (10**30, 10**30),
    ],
)
def test_what_has_an_obvious_form_gets_it(value: Any, plain: Any) -> None:
    assert json.loads(serialize.to_json(value)) == plain


def test_a_set_that_cannot_be_sorted_is_a_list_in_any_order() -> None:
    assert sorted(json.loads(serialize.to_json({1, "a"})), key=str) == [1, "a"]


def circle() -> list[Any]:
    ring: list[Any] = [1]
    ring.append(ring)
    return ring


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


@pytest.mark.parametrize(
    ("value", "beginning"),
    [
        ({"a": [1, b"x"]}, "result['a'][1] is bytes, which JSON can't hold"),
        ([float("nan")], "result[0] is nan"),
        ({"x": float("-inf")}, "result['x'] is -inf"),
        ({(1, 2): 3}, "result has the key (1, 2), a tuple"),
        ({"f": len}, "result['f'] is builtin_function_or_method"),
        ([Point], "result[0] is type"),
        (datetime.timedelta(1), "result is timedelta"),
        ([Point(1, b"x")], "result[0]['when'] is bytes"),  # type: ignore[arg-type]
        (circle(), "result[1] contains itself"),
        (deep(), "result is nested too deeply"),
    ],
)
def test_what_json_cannot_hold_is_named_by_its_place(value: Any, beginning: str) -> None:
    with pytest.raises(serialize.Unserializable) as caught:
        serialize.to_json(value)

    assert str(caught.value).startswith(beginning)


def test_an_object_that_fails_while_it_is_converted_is_an_error_too() -> None:
    class Broken:
        dtype = 1

        def tolist(self) -> Any:
            raise ZeroDivisionError("broken")

    with pytest.raises(serialize.Unserializable, match="ZeroDivisionError: broken"):
        serialize.to_json([Broken()])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_any_json_value_is_its_own_form(value: Any) -> None:
    encoded = serialize.to_json(value)

    assert json.loads(encoded) == json.loads(json.dumps(value).encode("utf-8", "replace")) or b"?" in encoded


@pytest.mark.parametrize("error", [ValueError(), KeyError, AssertionError(""), Exception()])
def test_an_exception_without_a_text_has_its_class_as_text(error: Exception | type[Exception]) -> None:
    try:
        raise error
    except Exception as caught:
        data = serialize.exception_data(caught, 0)

    assert (
        data["message"] == data["error_type"] == (error if isinstance(error, type) else type(error)).__name__
    )
