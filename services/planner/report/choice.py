"""Which parameters and which values a report draws, where nobody chose them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.executor.identity import canonical_json
from services.planner.report.findings import Group, loss_of
from shared.documents import printable
from shared.errors import PlanError

MOST_VALUES: Final = 4
LOSS: Final = "loss"
MAX_LABEL: Final = 24
MAX_DRAWN: Final = 1e300
"""Beyond it an axis has no room."""


def chosen_axes(groups: Sequence[Group], axes: tuple[str, str] | None) -> tuple[str, ...]:
    """The parameters to draw over: the two given, or at most two that vary, those with the most values.

    Raises:
        PlanError: no case has such a parameter.
    """
    counts: dict[str, set[bytes]] = {}
    for group in groups:
        for name, value in group.parameters.items():
            counts.setdefault(name, set()).add(key_of(value))
    for name in axes or ():
        if name not in counts:
            raise PlanError(f"no case has the parameter {name!r}; there are {_listed(counts)}")
    varying = sorted((name for name in counts if len(counts[name]) > 1), key=lambda name: -len(counts[name]))
    return axes or tuple(varying[:2])


def chosen_values(groups: Sequence[Group], values: Sequence[str]) -> tuple[str, ...]:
    """The values to draw: those given, or the loss and what varies among the results, four at most.

    Raises:
        PlanError: no result has such a number.
    """
    known = list(dict.fromkeys(name for group in groups for name in group.samples if name != LOSS))
    if any(sample_of(group, LOSS) for group in groups):
        known.insert(0, LOSS)
    for name in values:
        if name not in known:
            raise PlanError(f"no result has the number {name!r}; there are {_listed(known)}")
    if values:
        return tuple(values)
    return tuple(name for name in known if name == LOSS or _varies(groups, name))[:MOST_VALUES]


def sample_of(group: Group, name: str) -> list[float]:
    """The numbers of this name that a group has; `loss` is the evaluation's where there is one."""
    loss = loss_of(group) if name == LOSS else None
    sample = group.samples.get(name, ()) if loss is None else (loss,)
    return [one for one in sample if abs(one) <= MAX_DRAWN]


def ordered(values: Sequence[Any]) -> list[Any]:
    """Each of the values once: numbers by size, then the others by their JSON."""
    distinct: Mapping[bytes, Any] = {key_of(one): one for one in values}
    return [distinct[key] for key in sorted(distinct, key=lambda key: _rank(distinct[key], key))]


def label(value: Any) -> str:
    """A parameter's value as it is written next to an axis."""
    text = (
        f"{value:g}"
        if isinstance(value, float)
        else value
        if isinstance(value, str)
        else canonical_json(value).decode()
    )
    text = printable(text)
    return text if len(text) <= MAX_LABEL else text[: MAX_LABEL - 3] + "..."


def key_of(value: Any) -> bytes:
    """Tells the values of a parameter apart."""
    return canonical_json(value)


def is_number(value: Any) -> bool:
    """Whether a value has a place on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MAX_DRAWN


def _rank(value: Any, key: bytes) -> tuple[int, float, bytes]:
    return (0, float(value), key) if is_number(value) else (1, 0.0, key)


def _varies(groups: Sequence[Group], name: str) -> bool:
    return name != "seed" and len({one for group in groups for one in group.samples.get(name, ())}) > 1


def _listed(names: Any) -> str:
    return ", ".join(list(names)[:50]) or "none"
