"""Compares the records of two runs, and JSON values member by member."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from services.operations import words
from services.operations.run_records import ListedArtifact, Record, artifacts_in, reference_in, status_of
from shared.errors import ArtifactError

Load = Callable[[str], str]
"""Returns the text that a reference leads to.  Raises ArtifactError."""

Difference = tuple[str, Any, Any]
"""The path where two values differ, and both values."""


class _Absent:
    """The value of a missing member; None is a value that JSON may hold."""

    def __repr__(self) -> str:
        return "(absent)"


ABSENT: Final = _Absent()


def differences(one: Any, other: Any, path: str = "") -> Iterator[Difference]:
    """Yield each path where two JSON values differ, such as `rows[3].x`, with both values there.

    A value that only one of them has is `ABSENT` in the other.  `1`, `1.0` and `true` differ, as they do
    in a run's digest.
    """
    match one, other:
        case dict(), dict():
            for name in sorted({*one, *other}):
                inner = f"{path}.{name}" if path else name
                yield from differences(one.get(name, ABSENT), other.get(name, ABSENT), inner)
        case list(), list():
            for at in range(max(len(one), len(other))):
                yield from differences(_at(one, at), _at(other, at), f"{path}[{at}]")
        case _:
            if type(one) is not type(other) or one != other:
                yield path, one, other


def _at(values: list[Any], at: int) -> Any:
    return values[at] if at < len(values) else ABSENT


IDENTITY: Final = (
    "run_digest", "tool", "tool_digest", "entry_point", "params", "seed", "environment_digest",
)  # fmt: skip
END: Final = ("status", "error_type", "error")


@dataclass(frozen=True, slots=True)
class FieldComparison:
    """How a large field of two records differs.

    Attributes:
        same: whether it does not.
        differences: between the two values; empty if they can't be loaded.
        digests: SHA-256 of both.
        reason: why the values can't be loaded; empty if they can.
    """

    same: bool
    differences: list[Difference] = field(default_factory=list)
    digests: tuple[str, str] = ("", "")
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ArtifactPair:
    """An artifact of both runs, or of one of them."""

    name: str
    one: ListedArtifact | None
    other: ListedArtifact | None

    @property
    def verdict(self) -> str:
        """`same`, `differs`, `only in A` or `only in B`."""
        if self.one is None or self.other is None:
            return "only in B" if self.one is None else "only in A"
        one, other = self.one.artifact, self.other.artifact
        return "same" if one and other and one.sha256 == other.sha256 else "differs"


@dataclass(frozen=True, slots=True)
class Comparison:
    """All differences between two runs.

    Attributes:
        identity: in what was computed: code, parameters, seed, environment.
        end: in status and error.
        fields: in the result and the partial results, by name.
        artifacts: all artifacts, also equal ones.
    """

    identity: list[Difference]
    end: list[Difference]
    fields: Mapping[str, FieldComparison]
    artifacts: list[ArtifactPair]

    @property
    def same(self) -> bool:
        """Whether both computed the same and ended alike; their times don't count."""
        return (
            not self.identity
            and not self.end
            and all(one.same for one in self.fields.values())
            and all(pair.verdict == "same" for pair in self.artifacts)
        )


def compare(one: Record, other: Record, load: Load) -> Comparison:
    """Compare two records.

    Args:
        one: the first.
        other: the second.
        load: loads the values that are in the artifact store.

    Raises:
        ArtifactError: the list of artifacts of one of them can't be read.
    """
    return Comparison(
        identity=_identity(one, other),
        end=list(differences(_end(one), _end(other))),
        fields={name: _compare_field(one, other, name, load) for name in ("result", "partial_results")},
        artifacts=_artifact_pairs(one, other),
    )


def _identity(one: Record, other: Record) -> list[Difference]:
    """Compare the identity; a tool has other names, with and without its digest, for the same code."""
    found = list(differences(_members(one, IDENTITY), _members(other, IDENTITY)))
    same_code = "tool_digest" in one and one["tool_digest"] == other.get("tool_digest")
    return [difference for difference in found if not (same_code and difference[0] == "tool")]


def _members(record: Record, names: tuple[str, ...]) -> dict[str, Any]:
    """Return fields by name; `params` is decoded and called `parameters`."""
    found: dict[str, Any] = {name: record[name] for name in names if name in record and name != "params"}
    if "params" in names:
        found["parameters"] = words.parse_json(record.get("params")) or {}
    return found


def _end(record: Record) -> dict[str, Any]:
    return _members({**record, "status": status_of(record)}, END)


def _compare_field(one: Record, other: Record, name: str, load: Load) -> FieldComparison:
    digests = _digest(one, name), _digest(other, name)
    if digests[0] == digests[1]:
        return FieldComparison(True, digests=digests)
    try:
        found = list(differences(_value(one, name, load), _value(other, name, load)))
    except ArtifactError as exc:
        return FieldComparison(False, digests=digests, reason=str(exc))
    return FieldComparison(not found, found, digests)


def _digest(record: Record, name: str) -> str:
    """Return the SHA-256 of a field's text, in the record or stored; empty if there is none."""
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


def _artifact_pairs(one: Record, other: Record) -> list[ArtifactPair]:
    ones = {listed.name: listed for listed in artifacts_in(one)}
    others = {listed.name: listed for listed in artifacts_in(other)}
    return [ArtifactPair(name, ones.get(name), others.get(name)) for name in sorted({*ones, *others})]
