"""Records are read from texts, with every mistake in the project's words; times are written as texts."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from shared.documents import MAX_DEPTH, iso, json_object, mistakes
from shared.errors import ContractError
from shared.messages import WireRecord


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Ticket(WireRecord):
    seats: Annotated[int, Field(ge=1)]
    price: Annotated[float, Field(ge=0)] | None = None
    paid: bool | None = None
    row: Literal["front", "back"] | None = None
    holder: str | None = None
    printed: Path | None = None
    names: tuple[str, ...] = ()
    colour: Colour | None = None
    code: Annotated[str, Field(pattern=r"\A[0-9]+\z", min_length=2, max_length=3)] | None = None
    extras: Mapping[str, Any] = {}


class StrictTicket(Ticket, extra="forbid"):
    pass


def read(members: dict[str, Any]) -> Ticket:
    return Ticket.model_validate(members)


def refusal(members: dict[str, Any], record: type[Ticket] = Ticket) -> str:
    with pytest.raises(ValidationError) as refused:
        record.model_validate(members)
    found = mistakes(refused.value, record.model_fields)
    return "; ".join(f"{one.member}: {one.problem}" for one in found)


@pytest.mark.parametrize("value", [2, 2.0, "2", "2.0", "+2", " 2 ", "0_2"])
def test_a_whole_number_may_be_written_in_many_ways(value: object) -> None:
    assert read({"seats": value}) == Ticket(seats=2)


@pytest.mark.parametrize("value", [2.5, 2, "2.5", "+2.5", " 2.5 ", "2_0", ".5", "5.", "1e3"])
def test_a_number_may_be_written_in_many_ways(value: object) -> None:
    assert read({"seats": 1, "price": value}).price == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((one, True) for one in (True, 1, "1", "TRUE", "Yes", "on", "t")),
        *((one, False) for one in (0, "off", "n")),
    ],
)
def test_true_and_false_may_be_written_in_many_ways(value: object, expected: bool) -> None:
    assert read({"seats": 1, "paid": value}).paid is expected


@pytest.mark.parametrize("name", ["price", "paid", "row"])
def test_a_text_that_says_null_is_not_none(name: str) -> None:
    assert refusal({"seats": 1, name: "null"}).startswith(f"{name}: expected ")
    assert read({"seats": 1, "holder": "null"}).holder == "null"


@pytest.mark.parametrize("value", ["`x` - at `$.a[zz]`", "x - at `$.row[7]`", "a\nb", ""])
def test_a_text_is_refused_whatever_it_says(value: str) -> None:
    assert refusal({"seats": value}) == "seats: expected a whole number"
    assert refusal({"seats": 1, "row": value}) == "row: expected 'front' or 'back'"


def test_a_text_that_is_not_utf_8_is_refused() -> None:
    assert refusal({"seats": "\ud800"}).startswith("seats: ")
    assert refusal({"seats": 1, "row": "\ud800"}) == "row: expected a text"
    assert read({"seats": 1, "\ud800": 1}) == Ticket(seats=1)


def test_all_mistakes_are_reported_in_the_order_of_the_members() -> None:
    members = {"row": "middle", "names": ["a", 5], "price": "inf", "printed": 5, "paid": 7, "more": 1}

    assert refusal(members, StrictTicket) == (
        "seats: is missing; price: expected a finite number; paid: expected true or false; "
        "row: expected 'front' or 'back'; printed: expected a path; names.1: expected a text; "
        "more: expected one of seats, price, paid, row, holder, printed, names, colour, code, extras"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seats", math.inf),
        ("seats", math.nan),
        ("seats", "9" * 5_000),
        ("seats", None),
        ("price", math.inf),
        ("price", math.nan),
        ("price", -1),
        ("price", 10**400),
        ("colour", "green"),
        ("colour", ["red"]),
        ("code", "12\n"),
        ("code", "1234"),
        ("code", 12),
        ("extras", []),
        ("names", "a"),
    ],
    ids=lambda one: f"{one!r:.20}",
)
def test_a_wrong_member_is_refused_by_its_name(name: str, value: object) -> None:
    assert refusal({"seats": 1, name: value}).startswith(f"{name}: ")


def test_a_wrong_choice_is_refused_with_the_choices() -> None:
    assert read({"seats": 1, "colour": "red"}).colour is Colour.RED
    assert read({"seats": 1, "colour": Colour.BLUE}).colour is Colour.BLUE
    assert refusal({"seats": 1, "colour": "green"}) == "colour: expected 'red' or 'blue'"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("seats", 0, "expected a whole number >= 1"),
        ("price", -0.5, "expected a number >= 0"),
        ("code", "1", "expected at least 2 characters"),
        ("code", "1234", "expected at most 3 characters"),
        ("code", "1a", "expected a text that matches \\A[0-9]+\\z"),
        ("extras", [], "expected an object"),
        ("names", "a", "expected a list"),
    ],
)
def test_a_bound_is_named(name: str, value: object, problem: str) -> None:
    assert refusal({"seats": 1, name: value}) == f"{name}: {problem}"


def test_a_record_can_not_be_changed() -> None:
    ticket = Ticket(seats=1)
    with pytest.raises(ValidationError):
        ticket.seats = 2


# -- times ----------------------------------------------------------------------------


@given(st.integers(0, 4_000_000_000_000))
def test_a_millisecond_is_written_as_the_standard_library_does(ms: int) -> None:
    written = datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="milliseconds")

    assert iso(ms / 1_000) == written


def test_a_time_is_rounded_up_to_the_next_second() -> None:
    assert iso(59.9999999) == "1970-01-01T00:01:00.000+00:00"


# -- deep JSON ----------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.integers() | st.text(alphabet='[{"\\\n}]a'),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('[]{"\\', max_size=3), inner, max_size=3)
    ),
)


def depth_of(value: object) -> int:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if items is None else 1 + max(map(depth_of, items), default=0)


@given(value=json_values, spaces=st.booleans())
def test_json_is_refused_if_it_is_nested_deeper_than_the_limit(value: object, spaces: bool) -> None:
    depth = depth_of(value) + MAX_DEPTH - 3
    text = json.dumps(value, ensure_ascii=False, indent=1 if spaces else None)
    text = '{"a":' * (MAX_DEPTH - 3) + text + "}" * (MAX_DEPTH - 3)

    if depth > MAX_DEPTH:
        with pytest.raises(ContractError, match="nested deeper than 100 levels"):
            json_object("a document", text)
    else:
        assert json_object("a document", text) == json.loads(text)
