"""Members are read into records: what fits, and in which words what does not is refused."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from shared.members import Before, Misfits, Unfit, bounds, given, length, pattern, read, reader_of


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    seats: Annotated[int, bounds(at_least=1)]
    row: Literal["front", "back"] | None = None
    names: tuple[str, ...] = ()
    extras: dict[str, Any] = field(default_factory=dict)


def refusals(members: Mapping[str, Any], **how: bool) -> list[tuple[str, object, str]]:
    """The mistakes in a ticket."""
    with pytest.raises(Misfits) as refused:
        read(Ticket, members, **how)
    return [tuple(one) for one in refused.value.mistakes]  # type: ignore[misc]


def refusal(kind: Any, value: object) -> str:
    with pytest.raises(ValueError, match=r"\w") as refused:
        reader_of(kind)(value)
    return str(refused.value)


# -- records --------------------------------------------------------------------------


def test_what_is_left_out_is_at_its_default() -> None:
    assert read(Ticket, {"seats": 2}) == Ticket(seats=2, row=None, names=(), extras={})


def test_text_may_stand_for_what_it_says() -> None:
    assert read(Ticket, {"seats": "2", "row": "back", "names": ["a"]}).seats == 2


def test_what_has_to_be_there_is_missed() -> None:
    assert refusals({}) == [("seats", None, "Field required")]


def test_all_mistakes_are_told_in_the_order_of_the_members() -> None:
    members = {"row": "middle", "names": ["a", 5], "seats": 0, "extras": []}

    assert refusals(members) == [
        ("seats", 0, "Input should be greater than or equal to 1"),
        ("row", "middle", "Input should be 'front' or 'back'"),
        ("names.1", 5, "Input should be a valid string"),
        ("extras", [], "Input should be a valid dictionary"),
    ]


def test_members_that_nobody_knows_are_ignored_or_refused() -> None:
    members = {"seats": 1, "seat": 2}

    assert read(Ticket, members) == Ticket(seats=1)
    assert refusals(members, only_known=True) == [("seat", 2, "Extra inputs are not permitted")]


def test_the_members_that_somebody_gave_are_told_from_the_defaults() -> None:
    assert given(Ticket(seats=1, row="front")) == {"seats": 1, "row": "front"}


# -- types ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "12", 12),
        (int, " 12 ", 12),
        (int, "12.0", 12),
        (int, 12.0, 12),
        (int, True, 1),
        (float, "1e3", 1000.0),
        (float, 5, 5.0),
        (bool, "Yes", True),
        (bool, "off", False),
        (bool, 1, True),
        (bool, 0.0, False),
        (str, "", ""),
        (Path, "a/b", Path("a/b")),
        (Path, Path("a"), Path("a")),
        (Colour, "red", Colour.RED),
        (Colour, Colour.BLUE, Colour.BLUE),
        (Literal["a"], "a", "a"),
        (tuple[int, ...], ["1", 2], (1, 2)),
        (float | None, None, None),
        (Annotated[float | None, bounds(above=0)], None, None),
        (Any, [1], [1]),
    ],
)
def test_what_a_type_takes(kind: Any, value: object, expected: object) -> None:
    found = reader_of(kind)(value)

    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, "many", "Input should be a valid integer, unable to parse string as an integer"),
        (int, "9" * 5_000, "Input should be a valid integer, unable to parse string as an integer"),
        (int, 1.5, "Input should be a valid integer, got a number with a fractional part"),
        (int, math.inf, "Input should be a finite number"),
        (int, math.nan, "Input should be a finite number"),
        (int, None, "Input should be a valid integer"),
        (int, [], "Input should be a valid integer"),
        (float, "soon", "Input should be a valid number, unable to parse string as a number"),
        (float, {}, "Input should be a valid number"),
        (float, 10**400, "Input should be a finite number"),
        (bool, "maybe", "Input should be a valid boolean, unable to interpret input"),
        (bool, [], "Input should be a valid boolean"),
        (bool, 2, "Input should be a valid boolean, unable to interpret input"),
        (str, 5, "Input should be a valid string"),
        (Path, 5, "Input should be a valid path"),
        (Colour, "green", "Input should be 'red' or 'blue'"),
        (Colour, ["red"], "Input should be 'red' or 'blue'"),
        (Literal["a", "b", "c"], "d", "Input should be 'a', 'b' or 'c'"),
        (tuple[str, ...], "a", "Input should be a valid tuple"),
        (Mapping[str, Any], [], "Input should be a valid dictionary"),
    ],
)
def test_what_a_type_refuses(kind: Any, value: object, expected: str) -> None:
    assert refusal(kind, value) == expected


# -- what more an annotation may ask for ----------------------------------------------


@pytest.mark.parametrize(
    ("check", "fits", "misfit", "expected"),
    [
        (bounds(above=0), 0.1, 0, "Input should be greater than 0"),
        (bounds(at_least=0.5), 0.5, 0.4, "Input should be greater than or equal to 0.5"),
        (bounds(below=2**63), 2**53, 2.0**63, "Input should be less than 9223372036854775808"),
        (bounds(at_most=1_000), 1_000, 1_001, "Input should be less than or equal to 1000"),
        (bounds(finite=True), 1, math.inf, "Input should be a finite number"),
        (bounds(above=0), 1, math.nan, "Input should be greater than 0"),
        (bounds(at_most=1), 1, math.nan, "Input should be less than or equal to 1"),
    ],
)
def test_numbers_are_within_bounds(check: Any, fits: float, misfit: float, expected: str) -> None:
    assert reader_of(Annotated[float, check])(fits) == fits
    assert refusal(Annotated[float, check], misfit) == expected


@pytest.mark.parametrize(
    ("check", "fits", "misfit", "expected"),
    [
        (length(at_least=1), "a", "", "String should have at least 1 character"),
        (length(at_most=2), "aa", "aaa", "String should have at most 2 characters"),
        (pattern("[0-9]+"), "12", "12\n", "String should match pattern '[0-9]+'"),
    ],
)
def test_texts_look_as_they_should(check: Any, fits: str, misfit: str, expected: str) -> None:
    assert reader_of(Annotated[str, check])(fits) == fits
    assert refusal(Annotated[str, check], misfit) == expected


def test_a_value_may_be_prepared_before_its_type_is_looked_at() -> None:
    kind = Annotated[tuple[int, ...], Before(lambda text: text.split(","))]

    assert reader_of(kind)("1,2") == (1, 2)
    with pytest.raises(Unfit) as refused:
        reader_of(kind)("1,x")
    assert (refused.value.place, refused.value.value) == ((1,), "x")
