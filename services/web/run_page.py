"""The page of one run, and what belongs to it: metrics so far, the whole log, artifacts."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from services.executor.artifacts import InlineReference
from services.executor.store import JournalEntry, Store, StoredLogLine
from services.operations import words
from services.operations.run_records import (
    ListedArtifact,
    Record,
    artifacts_in,
    load_text,
    open_store,
    record_of,
    reference_in,
    status_of,
    with_artifacts,
)
from services.web.bodies import need
from services.web.live import Gathered
from services.web.rendering import page
from shared.errors import ArtifactError

LINES_SHOWN = 500
SHOWN_MAX_BYTES = 1_000_000
"""Larger values are not shown on the page."""
ARTIFACT_MAX_BYTES = 50_000_000
SANDBOX = "sandbox; default-src 'none'"
PICTURES = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
"""Media types that are shown; an SVG may contain scripts, so it is only downloaded."""

FACTS = (
    "tool", "trigger", "triggered_by", "attempt", "worker", "queued_at", "started_at", "finished_at",
    "scheduled_for", "seed", "cached_from", "entry_point", "tool_digest", "run_digest", "environment_digest",
    "note",
)  # fmt: skip
DOCUMENTS = ("params", "result", "result_summary", "partial_results")


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run as lists show it; what is not known is empty."""

    run_id: str
    experiment_id: str
    status: str
    tool: str
    trigger: str
    started_at: str
    duration_seconds: str
    outcome: str

    @classmethod
    def of(cls, record: Record) -> Self:
        """The row of a record."""
        error = f"{record.get('error_type', 'Error')}: {record['error']}" if "error" in record else ""
        return cls(
            record["run_id"],
            record["run_id"].rpartition(":")[0],
            status_of(record),
            record.get("tool", ""),
            record.get("trigger", ""),
            record.get("started_at", ""),
            record.get("duration_seconds", ""),
            error,
        )


@dataclass(frozen=True, slots=True)
class Span:
    """A part of a run's time, for the timeline: per mille of the whole, from `begin` to `end`."""

    kind: str
    begin: int
    end: int
    about: str


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as its page shows it."""

    row: RunRow
    facts: Mapping[str, str]
    error: str
    traceback: str
    attempts: list[Mapping[str, Any]]
    timeline: list[Span]
    exit_facts: Mapping[str, str]
    last_lines: str
    stacks: str
    documents: Mapping[str, str]
    artifacts: list[ListedArtifact]
    artifacts_problem: str

    @classmethod
    def of(cls, record: Record, place: str) -> Self:
        """What a record says; large values are loaded from the artifact store at `place`."""
        row = RunRow.of(record)
        exit_ = _object(record.get("exit"))
        listed, problem = _artifacts(record)
        shown = {name: words.parse_json(_text(record, name, place)) for name in DOCUMENTS}
        failed = words.parse_json(record.get("attempts"))
        attempts: list[Mapping[str, Any]] = (
            [one for one in failed if isinstance(one, dict)] if isinstance(failed, list) else []
        )
        return cls(
            row=row,
            facts={name: record[name] for name in FACTS if record.get(name)},
            error=row.outcome,
            traceback=_text(record, "traceback", place),
            attempts=attempts,
            timeline=_timeline(record, attempts),
            exit_facts={name: _exit_fact(name, one) for name, one in exit_.items() if name not in _LONG},
            last_lines="\n".join(map(str, exit_.get("last_lines") or [])),
            stacks=str(exit_.get("stacks") or "").strip("\n"),
            documents={
                name: one if isinstance(one, str) else json.dumps(one, ensure_ascii=False, indent=2)
                for name, one in shown.items()
                if one not in (None, "", {}, [])
            },
            artifacts=listed,
            artifacts_problem=problem,
        )


_LONG = ("stacks", "last_lines")


def _object(text: str | None) -> Mapping[str, Any]:
    value = words.parse_json(text)
    return value if isinstance(value, dict) else {}


def _exit_fact(name: str, value: Any) -> str:
    if name == "peak_rss_bytes" and isinstance(value, int | float):
        return words.size(value)
    if isinstance(value, float):
        return f"{value:.3f}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(record: Record, name: str, place: str) -> str:
    reference = reference_in(record, name)
    if reference is None:
        return record.get(name, "")
    try:
        return load_text(reference, place, SHOWN_MAX_BYTES)
    except ArtifactError as exc:
        return f"{reference} is not shown: {exc}"


def _artifacts(record: Record) -> tuple[list[ListedArtifact], str]:
    try:
        return artifacts_in(record), ""
    except ArtifactError as exc:
        return [], str(exc)


# -- timeline -------------------------------------------------------------------------


def _timeline(record: Record, attempts: list[Mapping[str, Any]]) -> list[Span]:
    """Waiting, attempts that failed, and the last attempt; empty while it isn't known when it was queued."""
    queued, started, finished = (
        _seconds(record.get(name)) for name in ("queued_at", "started_at", "finished_at")
    )
    failed = [at for one in attempts if (at := _seconds(one.get("at"))) is not None]
    if queued is None:
        return []
    marks = [at for at in (*failed, started, finished) if at is not None]
    whole = max(marks, default=queued) - queued
    if whole <= 0:
        return []

    def place(at: float) -> int:
        return max(0, min(1_000, round((at - queued) / whole * 1_000)))

    spans, since = [], queued
    for number, at in enumerate(failed, 1):
        spans.append(Span("failed", place(since), place(at), f"until attempt {number} failed"))
        since = at
    if started is not None and started > since:
        spans.append(
            Span("waiting", place(since), place(started), f"waited {words.duration(started - since)}")
        )
        since = started
    if finished is not None:
        about = f"{status_of(record)} after {words.duration(finished - since)}"
        spans.append(Span(status_of(record), place(since), place(finished), about))
    return spans


def _seconds(text: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return None


# -- pages ----------------------------------------------------------------------------


async def run(request: Request) -> Response:
    """Everything about one run."""
    run_id = need(request.query_params, "id")

    async def look(store: Store) -> tuple[Record, list[StoredLogLine]]:
        record = await with_artifacts(store, run_id, await record_of(store, run_id))
        return record, await _all_lines(store, run_id)

    record, lines = await request.app.state.access.ask(look)
    view = await asyncio.to_thread(RunView.of, record, request.app.state.place)
    return page(
        request,
        "run.html",
        run=view,
        lines=lines[-LINES_SHOWN:],
        log_cursor=lines[-1].cursor if lines else "0-0",
        is_open=view.row.status in ("queued", "running", "retrying"),
        pictures=PICTURES,
    )


async def _all_lines(store: Store, run_id: str) -> list[StoredLogLine]:
    found: list[StoredLogLine] = []
    while more := await store.history.lines(run_id, found[-1].cursor if found else "0-0"):
        found += more
    return found


async def history(request: Request) -> Response:
    """Progress and metrics of a run until now, and the cursor from which the stream goes on."""
    run_id = need(request.query_params, "id")
    events, cursor = await request.app.state.access.ask(
        lambda store: store.journal.of_experiment(run_id.rpartition(":")[0])
    )
    gathered = Gathered(run_id, "0-0")
    for event in events:
        gathered.take(JournalEntry("0-1", "metric", event))
    return JSONResponse({"cursor": cursor, "runs": {}, "series": {}, **gathered.drain()})


async def log(request: Request) -> Response:
    """The whole log that is kept of a run, as a file."""
    run_id = need(request.query_params, "id")
    lines = await request.app.state.access.ask(lambda store: _all_lines(store, run_id))

    async def texts() -> AsyncIterator[str]:
        for line in lines:
            yield f"{line.text}\n"

    return StreamingResponse(
        texts(), headers=_as_file(f"{run_id}.log"), media_type="text/plain; charset=utf-8"
    )


async def artifact(request: Request) -> Response:
    """The content of an artifact: as a file, or a picture for the page."""
    run_id, name = need(request.query_params, "id"), need(request.query_params, "name")

    async def look(store: Store) -> Record:
        return await with_artifacts(store, run_id, await record_of(store, run_id))

    record = await request.app.state.access.ask(look)
    one = next((one for one in artifacts_in(record) if one.name == name), None)
    if one is None or one.artifact is None:
        raise ArtifactError(f"{run_id} has no artifact {name!r}" if one is None else one.problem)
    content = await asyncio.to_thread(_content, one, request.app.state.place)
    headers = _as_file(name)
    if one.artifact.media_type in PICTURES:
        headers["content-type"] = one.artifact.media_type
    return Response(content, headers=headers)


def _content(one: ListedArtifact, place: str) -> bytes:
    assert one.artifact is not None
    reference = one.artifact.reference
    if isinstance(reference, InlineReference):
        return reference.decode()
    if one.artifact.size_bytes > ARTIFACT_MAX_BYTES:
        raise ArtifactError(
            f"{one.name} has {words.size(one.artifact.size_bytes)}, too large for the page; "
            "use `fullsend artifacts get`"
        )
    return open_store(place).read(one.artifact.sha256, ARTIFACT_MAX_BYTES)


def _as_file(name: str) -> dict[str, str]:
    """Headers of a file that browsers store and never show, whatever is in it."""
    return {
        "content-type": "application/octet-stream",
        "content-security-policy": SANDBOX,
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name.rpartition('/')[2], safe='')}",
    }
