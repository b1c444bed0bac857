"""`fullsend diff`."""

import difflib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from services.cli import connection, output
from services.cli.output import CommandError
from services.cli.records.comparison import ABSENT, Comparison, Pair, Place, Values, compare
from services.cli.records.record import Listed, Record, load_text, open_store, status_of, with_artifacts
from services.cli.runs import AsJson, record_of
from services.executor.artifacts import CasReference, parse_reference
from services.executor.config import Settings
from services.executor.store import Store
from services.executor.tools import bundles
from services.executor.tools.bundles import Bundle, Bundles
from shared.errors import FullsendError, SettingsError

DIFFERENT, TROUBLE = 1, 2
COMPARED_MAX_BYTES: Final = 16_000_000
VALUE_CHARACTERS: Final = 60
DIGITS: Final = 12
_DIGESTS: Final = ("run_digest", "tool_digest", "environment_digest")


def diff(
    run_a: Annotated[str, typer.Argument(metavar="RUN_A", help="As `fullsend runs` lists it.")],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", help="The run to compare it with.")],
    code: Annotated[
        bool, typer.Option("--code", help="Show what differs in the tool's code, line by line.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="How many values that differ are shown, of each kind.")
    ] = 20,
    as_json: AsJson = False,
) -> int:
    """Say in what two runs differ: code, parameters, seed, environment, result, artifacts and end.

    How long they took and how many attempts that needed is told, and makes no difference. The exit code
    is 0 when the runs are the same, 1 when they differ and 2 when something goes wrong, as with diff(1).
    """
    try:
        chosen = connection.settings()
        one, other = _records(chosen, run_a, run_b)
        found = compare(one, other, lambda text: _loaded(text, chosen.artifacts))
        if as_json:
            output.print_json(_described(one, other, found))
        else:
            _Told(one, other, lines, output.console()).print(found)
        if code:
            _show_code(one, other, chosen, as_json)
    except SettingsError:
        raise
    except FullsendError as exc:
        output.error(str(exc))
        return TROUBLE
    return 0 if found.same else DIFFERENT


def _records(chosen: Settings, *run_ids: str) -> list[Record]:
    async def act(store: Store) -> list[Record]:
        records = [(run_id, await record_of(store, run_id)) for run_id in run_ids]
        return [await with_artifacts(store, run_id, record) for run_id, record in records]

    return connection.with_store(act, chosen)


def _loaded(text: str, place: str) -> str:
    reference = parse_reference(text)
    assert isinstance(reference, CasReference), "only those are asked for"
    return load_text(reference, place, COMPARED_MAX_BYTES)


# -- in words -------------------------------------------------------------------------


class _Told:
    """Prints a comparison; of values that differ, so many lines of each kind."""

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
            self._section(title, _value_lines(found.values[name]))
        self._section("Artifacts", [_pair(pair) for pair in found.artifacts if pair.verdict != "same"])
        if found.same:
            self._out.print("no difference")

    def _head(self, letter: str, record: Record) -> None:
        text = Text.assemble(f"{letter}  ", (record["run_id"], "bold"), "  ")
        text += output.styled(status_of(record))
        if took := record.get("duration_seconds"):
            text += Text(f" after {output.duration(took)}{self._ratio(record)}")
        attempts = record.get("attempt", "1")
        self._out.print(text + Text("" if attempts == "1" else f", {attempts} attempts"))

    def _ratio(self, record: Record) -> str:
        ratio = _ratio(self._one, self._other)
        told = "1" if ratio is None or record is self._one else f"{ratio:.2g}"
        return "" if told == "1" else f" ({told} times as long)"

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


def _line(place: Place) -> str:
    name, *values = place
    one, other = (_digest(value) if name in _DIGESTS else _value(value) for value in values)
    return f"{name or 'all of it'}: {one} -> {other}"


def _digest(text: Any) -> str:
    return repr(text) if text is ABSENT else str(text)[:DIGITS]


def _value(value: Any) -> str:
    if value is ABSENT:
        return repr(value)
    return output.short(json.dumps(value, ensure_ascii=False), VALUE_CHARACTERS)


def _value_lines(values: Values) -> list[str]:
    if values.same:
        return []
    if not values.reason:
        return list(map(_line, values.places))
    digests = " -> ".join(_digest(digest or ABSENT) for digest in values.digests)
    return [f"SHA-256: {digests}", f"not compared: {values.reason}"]


def _pair(pair: Pair) -> str:
    both = [_described_artifact(one) for one in (pair.one, pair.other) if one is not None]
    return f"{pair.verdict}: {pair.name}, {' -> '.join(both)}"


def _described_artifact(one: Listed) -> str:
    if one.artifact is None:
        return one.problem
    return f"{output.size(one.artifact.size_bytes)} {_digest(one.artifact.sha256)}"


def _ratio(one: Record, other: Record) -> float | None:
    """How many times as long the other one took."""
    try:
        return float(other["duration_seconds"]) / float(one["duration_seconds"])
    except (KeyError, ValueError, ZeroDivisionError):
        return None


# -- for another program --------------------------------------------------------------


def _described(one: Record, other: Record, found: Comparison) -> dict[str, Any]:
    digests = [record.get("run_digest") for record in (one, other)]
    return {
        "runs": [one["run_id"], other["run_id"]],
        "same": found.same,
        "run_digest": {"same": digests[0] == digests[1], "values": digests},
        "identity": list(map(_place, found.identity)),
        "end": list(map(_place, found.end)),
        **{name: _values_described(values) for name, values in found.values.items()},
        "artifacts": {pair.name: pair.verdict for pair in found.artifacts},
        "duration_seconds": [output.parsed(record.get("duration_seconds")) for record in (one, other)],
        "duration_ratio": _ratio(one, other),
        "attempts": [output.parsed(record.get("attempt")) for record in (one, other)],
    }


def _place(place: Place) -> dict[str, Any]:
    """A place with the values there; one that is absent is left out."""
    name, one, other = place
    values = {"a": one, "b": other}
    return {"path": name, **{letter: value for letter, value in values.items() if value is not ABSENT}}


def _values_described(values: Values) -> dict[str, Any]:
    found: dict[str, Any] = {"same": values.same, "differences": list(map(_place, values.places))}
    return {**found, "sha256": list(values.digests), "reason": values.reason} if values.reason else found


# -- code -----------------------------------------------------------------------------


def _show_code(one: Record, other: Record, chosen: Settings, as_json: bool) -> None:
    if one.get("tool_digest") == other.get("tool_digest"):
        return
    # In JSON's way nothing may be printed but JSON.
    out = Console(stderr=True, markup=False, highlight=False, soft_wrap=True) if as_json else output.console()
    try:
        kept_code = Bundles(open_store(chosen.artifacts), chosen.bundles_path)
        both = [_bundle(record, kept_code) for record in (one, other)]
    except FullsendError as exc:
        out.print(f"the code is not compared: {output.one_line(str(exc))}")
        return
    for line in _changes(*both):
        out.print(Text(output.lines_of(line)[0], _style(line)))


def _bundle(record: Record, kept_code: Bundles) -> Bundle:
    digest = record.get("tool_digest")
    if not digest:
        raise CommandError(f"{record['run_id']} has no record of its code")
    reference = bundles.parse(record.get("tool", ""))
    return kept_code.restore(reference[0] if reference else record.get("tool", ""), digest)


def _changes(one: Bundle, other: Bundle) -> Iterator[str]:
    """A unified diff of all files; two tools of one file each are compared whatever they are called."""
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
