"""The record of a run: what it refers to, and how people read it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from services.cli import output
from services.cli.output import Column
from services.executor.artifacts import (
    Artifact,
    Blobs,
    CasReference,
    LocalBlobs,
    parse_reference,
)
from services.executor.artifacts.loaders import local_directory
from services.executor.artifacts.object_blobs import ObjectBlobs
from services.executor.outcome import Status
from services.executor.store import Store
from shared.errors import ArtifactError

PATIENCE_SECONDS: Final = 10.0
"""How long a person is kept waiting for an object store that can't be reached."""

LARGE_FIELDS: Final = {
    "result": "result.json",
    "partial_results": "partial_results.json",
    "traceback": "traceback.txt",
}
"""Fields of a record that may be a reference instead, and what a file with the content is best called."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An artifact by the name it has in a record, or what is wrong with what the record says of it."""

    name: str
    artifact: Artifact | None
    problem: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether the content is in the store, and not in the record."""
        return self.artifact is not None and isinstance(self.artifact.reference, CasReference)


def open_store(place: str) -> Blobs:
    """The store of artifacts at `place`, as ARTIFACTS names it.  Raises ArtifactError."""
    directory = local_directory(place)
    return ObjectBlobs(place, PATIENCE_SECONDS) if directory is None else LocalBlobs(directory)


def artifacts_in(record: Mapping[str, str]) -> list[Listed]:
    """The artifacts in a record, by name.  Raises ArtifactError when the record has no list of them."""
    try:
        members = json.loads(record.get("artifacts") or "{}")
    except ValueError as exc:
        raise ArtifactError(f"the record's artifacts are not JSON: {exc}") from None
    if not isinstance(members, dict):
        raise ArtifactError("the record's artifacts are not an object")
    return [_artifact_in(name, members[name]) for name in sorted(members)]


def _artifact_in(name: str, members: Any) -> Listed:
    try:
        return Listed(name, Artifact.from_json(name, members))
    except ArtifactError as exc:
        return Listed(name, None, str(exc))


async def with_artifacts(store: Store, run_id: str, record: dict[str, str]) -> dict[str, str]:
    """The record, of a run under way with what its attempts have kept so far."""
    if "artifacts" in record or "status" not in record:
        return record
    try:
        found = await store.runs.effects(run_id).artifacts()
    except ValueError as exc:
        raise ArtifactError(f"what {run_id} has kept so far is not JSON: {exc}") from None
    return {**record, "artifacts": json.dumps(found)} if found else record


def reference_in(record: Mapping[str, str], field: str) -> CasReference | None:
    """Where a large field's text is; None when it is in the record itself."""
    text = record.get(field, "") if field in LARGE_FIELDS else ""
    if not text.startswith("cas://"):
        return None
    try:
        reference = parse_reference(text)
    except ArtifactError:
        return None
    return reference if isinstance(reference, CasReference) else None


def load_text(reference: CasReference, place: str, max_bytes: int) -> str:
    """The text that is stored at `place`.

    Raises:
        ArtifactError: why it can't be shown: more than `max_bytes`, or what is wrong with it.
    """
    blobs = open_store(place)
    size_bytes = blobs.size(reference.sha256)
    if size_bytes > max_bytes:
        raise ArtifactError(f"{output.size(size_bytes)}, more than is shown")
    return blobs.read(reference.sha256, max_bytes).decode(errors="replace")


Record = dict[str, str]

TEXTS = frozenset({
    "run_id", "experiment_id", "tool", "tool_digest", "trigger", "triggered_by", "request_id", "worker",
    "lease", "error", "error_type", "traceback", "run_digest", "entry_point", "environment_digest",
    "cached_from",
})  # fmt: skip
"""Fields that are text, even when it looks like JSON."""

FACTS = {
    "tool": "tool", "entry_point": "entry point", "seed": "seed", "environment_digest": "environment",
    "run_digest": "run digest", "cached_from": "answered from", "trigger": "trigger",
    "triggered_by": "asked for by", "request_id": "request", "scheduled_for": "scheduled for",
    "attempt": "attempt", "worker": "worker", "queued_at": "queued", "started_at": "started",
    "finished_at": "finished",
}  # fmt: skip
MOMENTS = frozenset({"scheduled_for", "queued_at", "started_at", "finished_at"})
DOCUMENTS = {
    "params": "Parameters", "result_summary": "Result in short", "result": "Result",
    "partial_results": "Partial results",
}  # fmt: skip
SHOWN_OTHERWISE = frozenset({
    *FACTS, *DOCUMENTS, "run_id", "experiment_id", "status", "tool_digest", "timestamp", "duration_seconds",
    "error", "error_type", "traceback", "attempts", "exit", "lease", "retry_at", "artifacts", "cached",
})  # fmt: skip
ARTIFACT_COLUMNS = [Column("NAME"), Column("SIZE", right=True), Column("MEDIA TYPE"), Column("WHERE")]
SHOWN_MAX_BYTES = 1_000_000
"""A stored result of more than that is not poured into a terminal."""


def status_of(record: Record) -> str:
    """The status in a record; a run that nobody holds now is `retrying` or `queued`."""
    status = record.get("status", "")
    if status == Status.RUNNING and record.get("lease") == "":
        return "retrying" if "retry_at" in record else "queued"
    return status


def show_record(record: Record, out: Console, place: str) -> None:
    """Print everything that the record holds, the most important first.

    Args:
        place: of the store of artifacts, for what the record only refers to.
    """
    status = status_of(record)
    head = Text(record["run_id"], "bold") + Text("  ") + output.styled(status)
    if "duration_seconds" in record:
        head += Text(f" after {output.duration(record['duration_seconds'])}")
    out.print(head)
    _facts(record, out)
    if "error" in record:
        _section("Error", f"{record.get('error_type', 'Error')}: {record['error']}", out, "red")
    _attempts(output.parsed(record.get("attempts")), out)
    if traceback := _text(record, "traceback", place):
        _section("Traceback", traceback, out)
    _exit(output.parsed(record.get("exit")), out)
    for name, title in DOCUMENTS.items():
        value = output.parsed(_text(record, name, place))
        if value not in (None, {}, []):
            _section(title, _pretty(value), out)
    _artifacts(record, out)


def _text(record: Record, name: str, place: str) -> str | None:
    """A field's text, from the store if it is there; else where it is, why it isn't shown, how to get it."""
    reference = reference_in(record, name)
    if reference is None:
        return record.get(name)
    try:
        return load_text(reference, place, SHOWN_MAX_BYTES)
    except ArtifactError as exc:
        return f"{reference}\nis not shown: {exc}\nfullsend artifacts get {reference} -o {LARGE_FIELDS[name]}"


def _artifacts(record: Record, out: Console) -> None:
    try:
        found = artifacts_in(record)
    except ArtifactError as exc:
        _section("Artifacts", str(exc), out, "red")
        return
    rows = [_artifact(one) for one in found]
    if rows:
        out.print()
        out.print(Text("Artifacts", "bold"))
        output.table(ARTIFACT_COLUMNS, rows, out)


def _artifact(one: Listed) -> list[output.Cell]:
    if one.artifact is None:
        return [one.name, "", "", output.styled("problem", one.problem)]
    artifact = one.artifact
    where = f"cas://{artifact.sha256}" if one.is_stored else "inline"
    return [one.name, output.size(artifact.size_bytes), artifact.media_type, where]


def _facts(record: Record, out: Console) -> None:
    facts = {title: _fact(name, record[name]) for name, title in FACTS.items() if record.get(name)}
    if "tool_digest" in record and "tool" in facts:
        facts["tool"] += f" ({record['tool_digest'][:12]})"
    if status_of(record) == "retrying":
        due = datetime.fromtimestamp(int(record["retry_at"]) / 1_000, UTC)
        facts["next attempt"] = due.isoformat(timespec="milliseconds")
    others = {name: value for name, value in record.items() if name not in SHOWN_OTHERWISE and value}
    for title, value in {**facts, **others}.items():
        out.print(Text(f"  {title:<14}", "dim") + Text(output.one_line(value)))


def _fact(name: str, value: str) -> str:
    if name == "environment_digest":
        return value[:12]
    return f"{value}  ({output.ago(value)})" if name in MOMENTS else value


def _attempts(attempts: Any, out: Console) -> None:
    """The attempts before the last one."""
    if not isinstance(attempts, list) or not attempts:
        return
    lines = [
        f"{one.get('attempt', '?')}  {one.get('at', '')}  {one.get('error_type', '')}: {one.get('error', '')}"
        for one in attempts
        if isinstance(one, dict)
    ]
    _section("Failed attempts", "\n".join(map(output.one_line, lines)), out)


def _exit(exit_: Any, out: Console) -> None:
    """How the process ended, and what it had used."""
    if not isinstance(exit_, dict) or not exit_:
        return
    shown = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in exit_.items()
        if name not in ("stacks", "last_lines")
    }
    if "peak_rss_bytes" in shown:
        shown["peak_rss"] = output.size(shown.pop("peak_rss_bytes"))
    _section("Exit", output.members(shown) or "nothing is known", out)
    if exit_.get("last_lines"):
        _section("Last lines printed", "\n".join(exit_["last_lines"]), out)
    if exit_.get("stacks"):
        _section("Stacks when it was ended", exit_["stacks"].strip("\n"), out)


def _pretty(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _section(title: str, text: str, out: Console, style: str = "") -> None:
    out.print()
    out.print(Text(title, "bold"))
    for line in output.lines_of(text):
        out.print(Text(f"  {line}", style))
