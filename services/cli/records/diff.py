"""`fullsend diff`."""

import difflib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from services.cli import connection, output
from services.cli.output import AsJson, CommandError
from services.cli.records.comparison import (
    ABSENT,
    ArtifactPair,
    Comparison,
    Difference,
    FieldComparison,
    compare,
)
from services.executor.artifacts import CasReference, parse_reference
from services.executor.config import Settings
from services.executor.store import Store
from services.executor.tools import bundles
from services.executor.tools.bundles import Bundle, Bundles
from services.operations import words
from services.operations.run_records import (
    ListedArtifact,
    Record,
    load_text,
    open_store,
    record_of,
    status_of,
    with_artifacts,
)
from shared.errors import FullsendError, SettingsError

DIFFERENT, TROUBLE = 1, 2
COMPARED_MAX_BYTES: Final = 16_000_000
VALUE_CHARACTERS: Final = 60
DIGITS: Final = 12
_DIGESTS: Final = ("run_digest", "tool_digest", "environment_digest")


def diff(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="A run's id, as `fullsend runs` lists it.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare it with.")],
    code: Annotated[
        bool, typer.Option("--code", help="Also print a unified diff of the tools' code.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="Print at most N lines per section.")
    ] = 20,
    as_json: AsJson = False,
) -> int:
    """Compare two runs.

    Compares code, parameters, seed, environment, status, error, results and artifacts. Durations and
    numbers of attempts are printed but not compared. The exit code is 0 if the runs are the same, 1 if
    they differ and 2 in case of an error, as with diff(1).
    """
    try:
        chosen = connection.settings()
        one, other = _read_records(chosen, run_a, run_b)
        found = compare(one, other, lambda text: _load(text, chosen.artifacts))
        if as_json:
            output.print_json(_comparison_as_json(one, other, found))
        else:
            _Printer(one, other, lines, output.console()).print(found)
        if code:
            _show_code(one, other, chosen, as_json)
    except SettingsError:
        raise
    except FullsendError as exc:
        output.print_error(str(exc))
        return TROUBLE
    return 0 if found.same else DIFFERENT


def _read_records(chosen: Settings, *run_ids: str) -> list[Record]:
    async def act(store: Store) -> list[Record]:
        records = [(run_id, await record_of(store, run_id)) for run_id in run_ids]
        return [await with_artifacts(store, run_id, record) for run_id, record in records]

    return connection.with_store(act, chosen)


def _load(text: str, place: str) -> str:
    reference = parse_reference(text)
    assert isinstance(reference, CasReference), "compare() loads no others"
    return load_text(reference, place, COMPARED_MAX_BYTES)


# -- in words -------------------------------------------------------------------------


class _Printer:
    """Prints a comparison, with at most `lines` lines per section."""

    def __init__(self, one: Record, other: Record, lines: int, out: Console) -> None:
        self._one, self._other = one, other
        self._lines = lines
        self._out = out

    def print(self, found: Comparison) -> None:
        self._head("A", self._one)
        self._head("B", self._other)
        self._section("Identity", self._identity(found))
        self._section("End", list(map(_line, found.end)))
        for name, title in (("result", "Result"), ("partial_results", "Partial results")):
            self._section(title, _field_lines(found.fields[name]))
        self._section("Artifacts", [_pair(pair) for pair in found.artifacts if pair.verdict != "same"])
        if found.same:
            self._out.print("no difference")

    def _head(self, letter: str, record: Record) -> None:
        text = Text.assemble(f"{letter}  ", (record["run_id"], "bold"), "  ")
        text += output.styled(status_of(record))
        if took := record.get("duration_seconds"):
            text += Text(f" after {words.duration(took)}{self._ratio(record)}")
        attempts = record.get("attempt", "1")
        self._out.print(text + Text("" if attempts == "1" else f", {attempts} attempts"))

    def _ratio(self, record: Record) -> str:
        ratio = _ratio(self._one, self._other)
        text = "1" if ratio is None or record is self._one else f"{ratio:.2g}"
        return "" if text == "1" else f" ({text} times as long)"

    def _identity(self, found: Comparison) -> list[str]:
        digest = self._one.get("run_digest")
        if digest is None or digest != self._other.get("run_digest"):
            return list(map(_line, found.identity))
        return [f"the same computation, run_digest {_digest(digest)}", *map(_line, found.identity)]

    def _section(self, title: str, lines: list[str]) -> None:
        if not lines:
            return
        self._out.print(Text(title, "bold"))
        for line in lines[: self._lines]:
            self._out.print(Text(f"  {output.one_line(line)}"))
        if len(lines) > self._lines:
            self._out.print(Text(f"  and {len(lines) - self._lines:,} more", "dim"))


def _line(difference: Difference) -> str:
    name, *values = difference
    one, other = (_digest(value) if name in _DIGESTS else _value(value) for value in values)
    return f"{name or 'value'}: {one} -> {other}"


def _digest(text: Any) -> str:
    return repr(text) if text is ABSENT else str(text)[:DIGITS]


def _value(value: Any) -> str:
    if value is ABSENT:
        return repr(value)
    return output.shorten(json.dumps(value, ensure_ascii=False), VALUE_CHARACTERS)


def _field_lines(field: FieldComparison) -> list[str]:
    if field.same:
        return []
    if not field.reason:
        return list(map(_line, field.differences))
    digests = " -> ".join(_digest(digest or ABSENT) for digest in field.digests)
    return [f"SHA-256: {digests}", f"not compared: {field.reason}"]


def _pair(pair: ArtifactPair) -> str:
    both = [_described_artifact(one) for one in (pair.one, pair.other) if one is not None]
    return f"{pair.verdict}: {pair.name}, {' -> '.join(both)}"


def _described_artifact(one: ListedArtifact) -> str:
    if one.artifact is None:
        return one.problem
    return f"{words.size(one.artifact.size_bytes)} {_digest(one.artifact.sha256)}"


def _ratio(one: Record, other: Record) -> float | None:
    """Return the duration of the second run divided by that of the first; None if unknown."""
    try:
        return float(other["duration_seconds"]) / float(one["duration_seconds"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None


# -- for another program --------------------------------------------------------------


def _comparison_as_json(one: Record, other: Record, found: Comparison) -> dict[str, Any]:
    digests = [record.get("run_digest") for record in (one, other)]
    return {
        "runs": [one["run_id"], other["run_id"]],
        "same": found.same,
        "run_digest": {"same": digests[0] == digests[1], "values": digests},
        "identity": list(map(_as_json, found.identity)),
        "end": list(map(_as_json, found.end)),
        **{name: _field_as_json(field) for name, field in found.fields.items()},
        "artifacts": {pair.name: pair.verdict for pair in found.artifacts},
        "duration_seconds": [words.parse_json(record.get("duration_seconds")) for record in (one, other)],
        "duration_ratio": _ratio(one, other),
        "attempts": [words.parse_json(record.get("attempt")) for record in (one, other)],
    }


def _as_json(difference: Difference) -> dict[str, Any]:
    """Return a difference as JSON; an absent value is left out."""
    name, one, other = difference
    values = {"a": one, "b": other}
    return {"path": name, **{letter: value for letter, value in values.items() if value is not ABSENT}}


def _field_as_json(field: FieldComparison) -> dict[str, Any]:
    found: dict[str, Any] = {"same": field.same, "differences": list(map(_as_json, field.differences))}
    return {**found, "sha256": list(field.digests), "reason": field.reason} if field.reason else found


# -- code -----------------------------------------------------------------------------


def _show_code(one: Record, other: Record, chosen: Settings, as_json: bool) -> None:
    if one.get("tool_digest") == other.get("tool_digest"):
        return
    # With --json, stdout holds nothing but JSON.
    out = output.console(stderr=as_json)
    try:
        kept_code = Bundles(open_store(chosen.artifacts), chosen.bundles_path)
        both = [_bundle(record, kept_code) for record in (one, other)]
    except FullsendError as exc:
        out.print(f"the code can't be compared: {output.one_line(str(exc))}")
        return
    for line in _changes(*both):
        out.print(Text(output.lines_of(line)[0], _style(line)))


def _bundle(record: Record, kept_code: Bundles) -> Bundle:
    digest = record.get("tool_digest")
    if not digest:
        raise CommandError(f"the code of {record['run_id']} was not recorded")
    reference = bundles.parse(record.get("tool", ""))
    return kept_code.restore(reference[0] if reference else record.get("tool", ""), digest)


def _changes(one: Bundle, other: Bundle) -> Iterator[str]:
    """Yield a unified diff of all files; two tools of one file each may have different names."""
    if not one.is_package and not other.is_package:
        yield from _of_file(f"{one.name}.py", one.main, f"{other.name}.py", other.main)
        return
    for path in sorted({*one.files, *other.files}):
        yield from _of_file(path, one.files.get(path, b""), path, other.files.get(path, b""))


def _of_file(path: str, one: bytes, other_path: str, other: bytes) -> Iterator[str]:
    if one == other:
        return
    if b"\0" in one or b"\0" in other:
        yield f"Binary files A/{path} and B/{other_path} differ"
        return
    before, after = (content.decode(errors="replace").splitlines(keepends=True) for content in (one, other))
    yield from difflib.unified_diff(before, after, f"A/{path}", f"B/{other_path}")


def _style(line: str) -> str:
    return {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
