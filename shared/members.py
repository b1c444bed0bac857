"""Members that somebody else wrote, read into a record: msgspec checks each by what its annotation says.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Ticket:
        seats: Annotated[int, Meta(ge=1)]
        row: Literal["front", "back"] | None = None

    read(Ticket, {"seats": "2"})  # Ticket(seats=2, row=None)

A text that says a number is taken for one, as a hash in Redis holds nothing but text.  A function in an
annotation checks a value that is of its type: it returns the value, or raises ValueError.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, fields
from enum import EnumType
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError, convert, defstruct, structs

Record = TypeVar("Record")


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


def finite(number: float) -> float:
    """A check for annotations, as a bound of msgspec's can't be infinity."""
    if not math.isfinite(number):
        raise ValueError("expected a finite number")
    return number


def read(
    kind: type[Record], members: Mapping[str, Any], *, only_known: bool = False, strict: bool = False
) -> Record:
    """The `kind` that `members` make, a dataclass or a Struct; what they leave out is at its default.

    Args:
        only_known: refuse members that `kind` doesn't have; otherwise they are ignored.
        strict: take no text for a number, and no whole number that is written as another.

    Raises:
        Misfits: names each member that doesn't fit.
    """
    shape = _shape_of(kind)  # type: ignore[arg-type]  # a class is hashable
    mistakes = _unknown(shape, members) if only_known else []
    try:
        values = shape.read(members, strict)
        is_whole = shape.required <= values.keys()
    except (ValidationError, ValueError):  # says only what was wrong first
        is_whole = False
    if mistakes or not is_whole:
        raise Misfits([*shape.mistakes(members, strict), *mistakes])
    return kind(**values)


def given(record: Any) -> dict[str, Any]:
    """The members of a record that are not at their defaults."""
    values = ((one, getattr(record, one.name)) for one in fields(record))
    return {one.name: value for one, value in values if value != _default(one)}


def _default(member: Field[Any]) -> Any:
    return member.default if member.default_factory is MISSING else member.default_factory()


class _Shape(NamedTuple):
    checked: type[Struct]
    """A field for each member, all optional: msgspec prepares a class once, but any other type each time."""
    types: dict[str, Any]
    checks: dict[str, Callable[[Any], Any]]
    optional: frozenset[str]
    required: frozenset[str]

    def read(self, members: Mapping[str, Any], strict: bool) -> dict[str, Any]:
        """The values of those that are there; None where that may be is as good as nothing."""
        types, optional = self.types, self.optional
        there = {
            name: one if strict else _plain(types[name], one)
            for name, one in members.items()
            if name in types and (one is not None or name not in optional)
        }
        found = convert(there, self.checked, strict=strict, dec_hook=_path)
        values = {name: getattr(found, name) for name in there}
        for name, check in self.checks.items():
            if name in values:
                values[name] = check(values[name])
        return values

    def mistakes(self, members: Mapping[str, Any], strict: bool) -> Iterator[Mistake]:
        for name, kind in self.types.items():
            if name not in members and name in self.required:
                yield Mistake(name, None, "is missing")
            elif name in members:
                try:
                    self.read({name: members[name]}, strict)
                except (ValidationError, ValueError) as exc:
                    yield _mistake(name, kind, members[name], exc)


def _mistake(name: str, kind: Any, value: Any, exc: Exception) -> Mistake:
    """What is wrong with a member, or with the item of it that msgspec names."""
    # The last such place is msgspec's own; what is before it may quote the value.
    found = _PLACE.fullmatch(str(exc)) if isinstance(exc, ValidationError) else None
    message, index = found.groups() if found else (str(exc), None)
    if index is not None:
        name, value, kind = f"{name}.{index}", value[int(index)], get_args(kind)[0]
    return Mistake(name, value, _in_our_words(message, kind))


def _unknown(shape: _Shape, members: Mapping[str, Any]) -> list[Mistake]:
    expected = f"expected one of {', '.join(shape.types)}"
    return [Mistake(name, value, expected) for name, value in members.items() if name not in shape.types]


@cache
def _shape_of(kind: type[Any]) -> _Shape:
    taken = _taken(kind)
    hints: dict[str, Any] = {name: _without_none(hint) for name, (hint, _) in taken.items()}
    parts = {name: get_args(one) if get_origin(one) is Annotated else (one,) for name, one in hints.items()}
    members = [(name, Union[one, UnsetType], UNSET) for name, one in hints.items()]  # noqa: UP007
    return _Shape(
        checked=defstruct(kind.__name__, members),
        types={name: one[0] for name, one in parts.items()},
        checks={name: note for name, one in parts.items() for note in one[1:] if not isinstance(note, Meta)},
        optional=frozenset(name for name, (hint, _) in taken.items() if hint is not hints[name]),
        required=frozenset(name for name, (_, is_required) in taken.items() if is_required),
    )


def _taken(kind: type[Any]) -> dict[str, tuple[Any, bool]]:
    """The members that `kind` is made of: each one's type, and whether it must be there."""
    if issubclass(kind, Struct):
        return {one.name: (one.type, one.required) for one in structs.fields(kind)}
    return {
        one.name: (one.type, one.default is one.default_factory is MISSING)
        for one in fields(kind)
        if one.init
    }


def _without_none(hint: Any) -> Any:
    """The type apart from None: where msgspec takes that, it takes the text `null` for it."""
    if get_origin(hint) not in (Union, UnionType):
        return hint
    [inner] = [one for one in get_args(hint) if one is not NoneType]
    return inner


# -- between people and msgspec -------------------------------------------------------

_PLACE = re.compile(r"(.*) - at `\$\.\w+(?:\[(\d+)\])?`", re.DOTALL)
_SWITCHES = {"yes": True, "y": True, "t": True, "on": True, "no": False, "n": False, "f": False, "off": False}
_WORDS = {
    "Expected": "expected",
    "`int`": "a whole number",
    "`float`": "a number",
    "`bool`": "true or false",
    "`str`": "a text",
    "`array`": "a list",
    "`object`": "an object",
}


def _plain(kind: Any, value: Any) -> Any:
    """`value` as JSON would have it: msgspec reads no `+1`, ` 1`, `1_000` or `yes` in a text."""
    try:
        if kind is bool and isinstance(value, str):
            return _SWITCHES.get(value.lower(), value)
        return kind(value) if kind in (int, float) and isinstance(value, str | bool) else value
    except ValueError:
        return value


def _path(_: Any, value: Any) -> Path:
    """The one type that msgspec has to be told how to make."""
    if isinstance(value, str | Path):
        return Path(value)
    raise ValueError("expected a path")


def _in_our_words(message: str, kind: Any) -> str:
    is_choice = isinstance(kind, EnumType)
    if is_choice or get_origin(kind) is Literal:
        *others, last = map(repr, map(str, kind) if is_choice else get_args(kind))
        return f"expected {', '.join(others)} or {last}"
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message.partition(", got ")[0]
