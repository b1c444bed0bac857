"""Members that somebody else wrote, read into a record: each checked by what its annotation says.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Ticket:
        seats: Annotated[int, bounds(at_least=1)]
        row: Literal["front", "back"] | None = None

    read(Ticket, {"seats": "2"})  # Ticket(seats=2, row=None)

A text that says a number is taken for one, as a hash in Redis holds nothing but text.  The standard
library only: a library for this took longer to import than all of a worker's own modules.
"""

import math
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

Record = TypeVar("Record")
Reader = Callable[[Any], Any]

_TRUE = frozenset({"1", "true", "t", "yes", "y", "on"})
_FALSE = frozenset({"0", "false", "f", "no", "n", "off"})


class Unfit(ValueError):
    """A value that can't be read; `place` leads to the part of it, `value`, that is wrong."""

    def __init__(self, message: str, value: object, place: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.value = value
        self.place = place


class Mistake(NamedTuple):
    """A member that doesn't fit; its value is None when there is none."""

    name: str
    value: object
    message: str


class Misfits(ValueError):
    """Members that are no such record: all mistakes, in the order of its members."""

    def __init__(self, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(f"{one.name}: {one.message}" for one in mistakes))
        self.mistakes = mistakes


# -- what annotations may say besides the type ----------------------------------------
# Functions that make functions: a dataclass for each would take a millisecond of every start.


def bounds(
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    finite: bool = False,
) -> Reader:
    """Takes the numbers within these."""

    def bounded(value: float) -> float:
        if finite and not math.isfinite(value):
            raise ValueError("Input should be a finite number")
        # The other way round would let NaN pass.
        if above is not None and not value > above:
            raise ValueError(f"Input should be greater than {_plain(above)}")
        if at_least is not None and not value >= at_least:
            raise ValueError(f"Input should be greater than or equal to {_plain(at_least)}")
        if below is not None and not value < below:
            raise ValueError(f"Input should be less than {_plain(below)}")
        if at_most is not None and not value <= at_most:
            raise ValueError(f"Input should be less than or equal to {_plain(at_most)}")
        return value

    return bounded


def length(*, at_least: int = 0, at_most: int | None = None) -> Reader:
    """Takes texts of so many characters."""

    def sized(text: str) -> str:
        if len(text) < at_least:
            raise ValueError(f"String should have at least {_characters(at_least)}")
        if at_most is not None and len(text) > at_most:
            raise ValueError(f"String should have at most {_characters(at_most)}")
        return text

    return sized


def pattern(expression: str) -> Reader:
    """Takes texts that look like this as a whole; a regular expression."""

    def alike(text: str) -> str:
        if re.fullmatch(expression, text) is None:
            raise ValueError(f"String should match pattern '{expression}'")
        return text

    return alike


class Before:
    """What a value goes through before its type is looked at."""

    def __init__(self, read: Reader) -> None:
        self.read = read


STRICT = object()
"""No text for a number, and no number for true or false: the value is of the type itself."""


def _plain(number: float) -> str:
    return f"{number:.0f}" if number == int(number) else str(number)


def _characters(count: int) -> str:
    return f"{count} character{'' if count == 1 else 's'}"


# -- reading --------------------------------------------------------------------------


def read(kind: type[Record], members: Mapping[str, Any], *, only_known: bool = False) -> Record:
    """The `kind` that `members` make, a dataclass; what they leave out is at its default.

    Args:
        only_known: refuse members that `kind` doesn't have; otherwise they are ignored.

    Raises:
        Misfits: names each member that doesn't fit.
    """
    readers, required = _members_of(kind)  # type: ignore[arg-type]  # a class is hashable
    values: dict[str, Any] = {}
    mistakes: list[Mistake] = []
    for name, reader in readers.items():
        if name in members:
            try:
                values[name] = reader(members[name])
            except ValueError as exc:
                mistakes.append(_mistake(name, members[name], exc))
        elif name in required:
            mistakes.append(Mistake(name, None, "Field required"))
    if only_known:
        unknown = [name for name in members if name not in readers]
        mistakes += [Mistake(name, members[name], "Extra inputs are not permitted") for name in unknown]
    if mistakes:
        raise Misfits(mistakes)
    return kind(**values)


def given(record: Any) -> dict[str, Any]:
    """The members of a record that are not at their defaults."""
    values = ((one, getattr(record, one.name)) for one in fields(record))
    return {one.name: value for one, value in values if value != _default(one)}


def _default(one: Field[Any]) -> object:
    return one.default if one.default_factory is MISSING else one.default_factory()


def _mistake(name: str, value: object, exc: ValueError) -> Mistake:
    if isinstance(exc, Unfit):
        return Mistake(".".join([name, *map(str, exc.place)]), exc.value, str(exc))
    return Mistake(name, value, str(exc))


@cache
def _members_of(kind: type[Any]) -> tuple[Mapping[str, Reader], frozenset[str]]:
    """The reader of each member, and which members can't be left out."""
    all_fields = [one for one in fields(kind) if one.init]
    required = [one.name for one in all_fields if one.default is MISSING and one.default_factory is MISSING]
    return {one.name: reader_of(one.type) for one in all_fields}, frozenset(required)


def reader_of(annotation: Any) -> Reader:
    """What reads a value of this type: it raises ValueError with what was expected."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _checked(arguments[0], arguments[1:])
    if origin in (Union, types.UnionType):
        [inner] = [one for one in arguments if one is not type(None)]
        return _optional(reader_of(inner))
    if origin is Literal:
        return _choice({one: one for one in arguments})
    if origin is tuple:
        return _items(reader_of(arguments[0]))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _choice({one.value: one for one in annotation})
    return _READERS.get(origin or annotation, _anything)


def _checked(inner: Any, checks: tuple[Any, ...]) -> Reader:
    read_type = _exactly(inner) if STRICT in checks else reader_of(inner)
    before = [check.read for check in checks if isinstance(check, Before)]
    after = [check for check in checks if not isinstance(check, Before) and check is not STRICT]

    def checked(value: Any) -> Any:
        for prepare in before:
            value = prepare(value)
        value = read_type(value)
        if value is not None:
            for check in after:
                value = check(value)
        return value

    return checked


def _exactly(kind: type[Any]) -> Reader:
    def exactly(value: Any) -> Any:
        if type(value) is not kind:
            raise Unfit(f"Input should be a valid {_NAMES[kind]}", value)
        return value

    return exactly


def _optional(inner: Reader) -> Reader:
    return lambda value: None if value is None else inner(value)


def _choice(choices: Mapping[Any, Any]) -> Reader:
    *others, last = map(repr, choices)
    expected = f"{', '.join(others)} or {last}" if others else last

    def choice(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise ValueError(f"Input should be {expected}")
        return choices[value]

    return choice


def _items(inner: Reader) -> Reader:
    def items(value: Any) -> tuple[Any, ...]:
        _must_be(value, (list, tuple), "a valid tuple")
        return tuple(item(index, one) for index, one in enumerate(value))

    def item(index: int, value: Any) -> Any:
        try:
            return inner(value)
        except ValueError as exc:
            raise Unfit(str(exc), value, (index,)) from None

    return items


# -- the types ------------------------------------------------------------------------


def _must_be(value: Any, kinds: tuple[type[Any], ...], expected: str) -> None:
    if not isinstance(value, kinds):
        raise Unfit(f"Input should be {expected}", value)


def _integer(value: Any) -> int:
    _must_be(value, (int, float, str), "a valid integer")
    try:
        number = int(value.strip().removesuffix(".0")) if isinstance(value, str) else int(value)
    except (OverflowError, ValueError):
        if not isinstance(value, str):
            raise Unfit("Input should be a finite number", value) from None
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise Unfit(message, value) from None
    if isinstance(value, float) and number != value:
        raise Unfit("Input should be a valid integer, got a number with a fractional part", value)
    return number


def _number(value: Any) -> float:
    _must_be(value, (int, float, str), "a valid number")
    try:
        return float(value)
    except OverflowError:
        raise Unfit("Input should be a finite number", value) from None
    except ValueError:
        message = "Input should be a valid number, unable to parse string as a number"
        raise Unfit(message, value) from None


def _switch(value: Any) -> bool:
    _must_be(value, (int, float, str), "a valid boolean")
    text = str(value).lower().removesuffix(".0")
    if text not in _TRUE | _FALSE:
        raise Unfit("Input should be a valid boolean, unable to interpret input", value)
    return text in _TRUE


def _text(value: Any) -> str:
    _must_be(value, (str,), "a valid string")
    return str(value)


def _path(value: Any) -> Path:
    _must_be(value, (str, Path), "a valid path")
    return Path(value)


def _object(value: Any) -> dict[str, Any]:
    _must_be(value, (dict,), "a valid dictionary")
    found: dict[str, Any] = value
    return found


def _anything(value: Any) -> Any:
    return value


_READERS: Mapping[Any, Reader] = {
    int: _integer,
    float: _number,
    bool: _switch,
    str: _text,
    Path: _path,
    dict: _object,
    Mapping: _object,
}
_NAMES: Mapping[type[Any], str] = {int: "integer", bool: "boolean", str: "string"}
