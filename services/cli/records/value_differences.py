"""In what two values differ, place by place.  Pure."""

from collections.abc import Iterator
from typing import Any, Final


class _Absent:
    """Stands for what isn't there; unlike None, which may be."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Final = _Absent()


def differences(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each place where the two differ, as `rows[3].x`, with both values; `ABSENT` for what one doesn't have.

    As in a run's identity, `1`, `1.0` and `true` differ.
    """
    match one, other:
        case dict(), dict():
            for name in sorted({*one, *other}):
                inner = f"{place}.{name}" if place else name
                yield from differences(one.get(name, ABSENT), other.get(name, ABSENT), inner)
        case list(), list():
            for at in range(max(len(one), len(other))):
                yield from differences(_at(one, at), _at(other, at), f"{place}[{at}]")
        case _:
            if type(one) is not type(other) or one != other:
                yield place, one, other


def _at(values: list[Any], at: int) -> Any:
    return values[at] if at < len(values) else ABSENT
