"""What differs between the records of two runs."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.cli.output import parsed
from services.cli.records.record import Listed, Record, artifacts_in, reference_in, status_of
from shared.errors import ArtifactError


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


Load = Callable[[str], str]
"""The text behind a reference to the store.  Raises ArtifactError."""

Place = tuple[str, Any, Any]
"""Where two values differ, and both of them."""

IDENTITY: Final = (
    "run_digest", "tool", "tool_digest", "entry_point", "params", "seed", "environment_digest",
)  # fmt: skip
END: Final = ("status", "error_type", "error")


@dataclass(frozen=True, slots=True)
class Values:
    """How two large values differ: place by place, or only that they do and why it can't be told how."""

    same: bool
    places: list[Place] = field(default_factory=list)
    digests: tuple[str, str] = ("", "")
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """An artifact of both runs, or of one."""

    name: str
    one: Listed | None
    other: Listed | None

    @property
    def verdict(self) -> str:
        """`same`, `differs`, `only in A` or `only in B`."""
        if self.one is None or self.other is None:
            return "only in B" if self.one is None else "only in A"
        one, other = self.one.artifact, self.other.artifact
        return "same" if one and other and one.sha256 == other.sha256 else "differs"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that differs between two runs."""

    identity: list[Place]
    end: list[Place]
    values: Mapping[str, Values]
    artifacts: list[Pair]

    @property
    def same(self) -> bool:
        """Whether the two are the same computation and came to the same, in whatever time."""
        return (
            not self.identity
            and not self.end
            and all(values.same for values in self.values.values())
            and all(pair.verdict == "same" for pair in self.artifacts)
        )


def compare(one: Record, other: Record, load: Load) -> Comparison:
    """What differs between two records.  Raises ArtifactError when one has no readable list of artifacts."""
    return Comparison(
        identity=_identity(one, other),
        end=list(differences(_end(one), _end(other))),
        values={name: _values(one, other, name, load) for name in ("result", "partial_results")},
        artifacts=_pairs(one, other),
    )


def _identity(one: Record, other: Record) -> list[Place]:
    """The same code is the same tool, whether it was asked for by name or by its digest."""
    places = list(differences(_members(one, IDENTITY), _members(other, IDENTITY)))
    same_code = "tool_digest" in one and one["tool_digest"] == other.get("tool_digest")
    return [place for place in places if not (same_code and place[0] == "tool")]


def _members(record: Record, names: tuple[str, ...]) -> dict[str, Any]:
    """Fields by name; `params` is the only one that is taken apart, and is called `parameters`."""
    found: dict[str, Any] = {name: record[name] for name in names if name in record and name != "params"}
    if "params" in names:
        found["parameters"] = parsed(record.get("params")) or {}
    return found


def _end(record: Record) -> dict[str, Any]:
    return _members({**record, "status": status_of(record)}, END)


def _values(one: Record, other: Record, name: str, load: Load) -> Values:
    digests = _digest(one, name), _digest(other, name)
    if digests[0] == digests[1]:
        return Values(True, digests=digests)
    try:
        places = list(differences(_value(one, name, load), _value(other, name, load)))
    except ArtifactError as exc:
        return Values(False, digests=digests, reason=str(exc))
    return Values(not places, places, digests)


def _digest(record: Record, name: str) -> str:
    """SHA-256 of a field's text, wherever that is; empty when there is none."""
    reference = reference_in(record, name)
    if reference is not None:
        return reference.sha256
    return hashlib.sha256(record[name].encode(errors="replace")).hexdigest() if name in record else ""


def _value(record: Record, name: str, load: Load) -> Any:
    if name not in record:
        return ABSENT
    text = load(record[name]) if reference_in(record, name) else record[name]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _pairs(one: Record, other: Record) -> list[Pair]:
    ones = {listed.name: listed for listed in artifacts_in(one)}
    others = {listed.name: listed for listed in artifacts_in(other)}
    return [Pair(name, ones.get(name), others.get(name)) for name in sorted({*ones, *others})]
