"""Results as JSON, and the messages for those that have no JSON form."""

import array
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import json
import pathlib
import threading
import types
import uuid
from typing import Any, ClassVar

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.isolation.common import serialize


class Colour(enum.Enum):
    RED = "red"


class Flags(enum.IntFlag):
    A = 1
    B = 2


@dataclasses.dataclass
class Point:
    x: int
    when: datetime.date


@dataclasses.dataclass
class Locked:
    loss: float
    unit: ClassVar[str] = "m"
    lock: ClassVar[object] = threading.Lock()
    scale: dataclasses.InitVar[int] = 3


@attrs.define
class Attrs:
    x: int
    _y: datetime.date


class Struct(msgspec.Struct):
    a: int
    b: Any = msgspec.UNSET


class Model(pydantic.BaseModel):
    at: datetime.date
    counts: dict[Any, int] = {}


class Tensor:
    """Has what an array of a package that isn't installed here has."""

    dtype = "int64"

    def tolist(self) -> list[int]:
        return [1, 2]


Pair = collections.namedtuple("Pair", "a b")
DAY = datetime.date(2026, 1, 2)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({1}), [1]),
        ({(1, "a"), (0, "b")}, [[0, "b"], [1, "a"]]),
        ({1: "a", 2.5: "b", False: "c", None: "d"}, {"1": "a", "2.5": "b", "false": "c", "null": "d"}),
        ({DAY: 1, uuid.UUID(int=1): 2}, {"2026-01-02": 1, "00000000-0000-0000-0000-000000000001": 2}),
        ({Colour.RED: 1, decimal.Decimal("1.10"): 2}, {"red": 1, "1.10": 2}),
        ({"2026": {"1": 2, "true": 3}}, {"2026": {"1": 2, "true": 3}}),
        (datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC), "2026-01-02T03:04:00+00:00"),
        (datetime.time(1, 2), "01:02:00"),
        (datetime.timedelta(1), "P1D"),
        (datetime.timedelta(hours=1, minutes=30), "PT1H30M"),
        (datetime.timedelta(days=2, microseconds=1_500), "P2DT0.0015S"),
        (datetime.timedelta(seconds=-5), "-PT5S"),
        (datetime.timedelta(0), "PT0S"),
        (decimal.Decimal("1.10"), "1.10"),
        (fractions.Fraction(1, 3), "1/3"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (ipaddress.ip_address("127.0.0.1"), "127.0.0.1"),
        (pathlib.Path("a/b"), "a/b"),
        (Colour.RED, "red"),
        (Flags.A | Flags.B, 3),
        (collections.deque([1, 2]), [1, 2]),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.ChainMap({"a": 1}), {"a": 1}),
        (collections.UserDict(a=1), {"a": 1}),
        (collections.UserList([1]), [1]),
        (collections.UserString("ab"), "ab"),
        ({"b": 1, "a": 2}.keys(), ["b", "a"]),
        ({"a": 1}.values(), [1]),
        ({"a": 1}.items(), [["a", 1]]),
        (types.MappingProxyType({"a": 1}), {"a": 1}),
        (types.SimpleNamespace(a=1), {"a": 1}),
        (range(3), [0, 1, 2]),
        (array.array("d", [1.5]), [1.5]),
        ([Point(1, DAY)], [{"x": 1, "when": "2026-01-02"}]),
        (Locked(0.5), {"loss": 0.5}),
        (Attrs(1, DAY), {"x": 1, "_y": "2026-01-02"}),
        (Struct(1), {"a": 1}),
        (Model(at=DAY, counts={1: 2}), {"at": "2026-01-02", "counts": {"1": 2}}),
        (pydantic.RootModel[list[int]]([1]), [1]),
        (Tensor(), [1, 2]),
        ("a\ud800", "a\ud800"),
        (10**30, 10**30),
    ],
)
def test_what_has_an_obvious_form_gets_it(value: Any, plain: Any) -> None:
    assert json.loads(serialize.to_json(value)) == plain


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({1: "a", "1": "b"}, "result has the keys 1 and '1'"),
        ({None: 0, "null": 1}, "result has the keys None and 'null'"),
        ({True: 0, "true": 1}, "result has the keys True and 'true'"),
        ([{"x": {1.5: 0, "1.5": 1}}], "result[0]['x'] has the keys 1.5 and '1.5'"),
        (collections.Counter([1, "1"]), "result has the keys 1 and '1'"),
        ({DAY: 0, "2026-01-02": 1}, "result has the keys datetime.date(2026, 1, 2) and '2026-01-02'"),
        (Locked({1: 0, "1": 1}), "result['loss'] has the keys 1 and '1'"),  # type: ignore[arg-type]
        (Model(at=DAY, counts={1: 2, "1": 3}), "result has the keys 1 and '1'"),
    ],
)
def test_keys_that_become_the_same_text_are_named(value: Any, named: str) -> None:
    with pytest.raises(serialize.Unserializable) as caught:
        serialize.to_json(value)

    assert str(caught.value).startswith(named)


@pytest.mark.parametrize(
    ("value", "ordered"),
    [
        ({"a", 1, None}, [None, 1, "a"]),
        ({(1, "a"), ("x", 2)}, [["x", 2], [1, "a"]]),
        ({frozenset("c"), frozenset("ba")}, [["a", "b"], ["c"]]),
    ],
)
def test_a_set_that_cannot_be_sorted_has_the_order_of_its_members_texts(
    value: set[Any], ordered: list[Any]
) -> None:
    assert json.loads(serialize.to_json(value)) == ordered


def circle() -> list[Any]:
    ring: list[Any] = [1]
    ring.append(ring)
    return ring


def deep() -> list[Any]:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    return nested


def test_a_deep_value_with_keys_that_look_like_numbers_is_converted() -> None:
    nested: dict[str, Any] = {"2026": 1}
    for _ in range(800):
        nested = {"1": nested, "list": [{}]}

    assert serialize.to_json(nested).count(b'"1":') == 800


@pytest.mark.parametrize(
    ("value", "beginning"),
    [
        ({"a": [1, b"x"]}, "result['a'][1] is bytes, which JSON can't hold"),
        ([float("nan")], "result[0] is nan"),
        ({"x": float("-inf")}, "result['x'] is -inf"),
        ({(1, 2): 3}, "result has the key (1, 2), a tuple"),
        ({"f": len}, "result['f'] is builtin_function_or_method"),
        ([Point], "result[0] is type"),
        ({float("nan"): 1}, "result has the key nan"),
        ([1 + 2j], "result[0] is complex"),
        ((x for x in "a"), "result is generator"),
        (ValueError("x"), "result is ValueError"),
        ({"n": 10**5_000}, "result['n'] is a whole number with too many digits"),
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


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | numbers | st.text()


@given(st.dictionaries(scalars | st.sampled_from(["1", "true", "null", "1.5", "-3"]), scalars))
def test_no_value_vanishes(value: dict[Any, Any]) -> None:
    try:
        encoded = serialize.to_json(value)
    except serialize.Unserializable:
        texts = [json.loads(json.dumps({key: 0})) for key in value]
        assert len({next(iter(text)) for text in texts}) < len(value)
    else:
        assert len(json.loads(encoded)) == len(value)


json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_any_json_value_is_its_own_form(value: Any) -> None:
    encoded = serialize.to_json(value)

    assert json.loads(encoded) == json.loads(json.dumps(value))


@pytest.mark.parametrize("error", [ValueError(), KeyError, AssertionError(""), Exception()])
def test_an_exception_without_a_text_has_its_class_as_text(error: Exception | type[Exception]) -> None:
    try:
        raise error
    except Exception as caught:
        data = serialize.exception_data(caught, 0)

    assert (
        data["message"] == data["error_type"] == (error if isinstance(error, type) else type(error)).__name__
    )
