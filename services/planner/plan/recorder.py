"""Records attempts and results in the registry, in a thread of its own and many rows at a time."""

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

from services.executor.isolation.calls import Event
from services.planner.plan.registry import Registry
from services.planner.tasks import Task, TaskResult, TaskStatus, result_to_text

MAX_ROWS_PER_COMMIT: Final = 1_000
PAUSE_SECONDS: Final = 0.005
"""Between two commits, so that many rows share one."""
_BEGUN: Final = (
    "INSERT INTO runs (execution_id, case_index, attempt, task_id, status, began_at) "
    "VALUES (?, ?, ?, ?, ?, ?)"
)
_RETRIED: Final = (
    "UPDATE runs SET status = 'retried', ended_at = ? "
    "WHERE execution_id = ? AND case_index = ? AND attempt = ?"
)
_ENDED: Final = (
    "INSERT INTO runs (execution_id, case_index, attempt, task_id, status, began_at, ended_at, result) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (execution_id, case_index, attempt) DO UPDATE "
    "SET status = excluded.status, ended_at = excluded.ended_at, result = excluded.result"
)


@dataclass(frozen=True, slots=True)
class _Row:
    """A statement and its values; the writer turns the result into text."""

    statement: str
    values: tuple[Any, ...]
    result: TaskResult | None = None


class Recorder:
    """A listener that records every attempt of one session; an async context manager.

    Rows are on disk after a few milliseconds, and at the end of the block at the latest.

    Args:
        registry: where to.
        number: of the session.
    """

    def __init__(self, registry: Registry, number: int) -> None:
        self._registry = registry
        self._number = number
        self._rows = queue.SimpleQueue[_Row | None]()
        self._writer = threading.Thread(target=self._write, name="plan registry", daemon=True)
        self._is_code_known = False
        self.trouble: str | None = None
        """Why the writer has failed; None while it works."""

    async def __aenter__(self) -> Self:
        self._writer.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._rows.put(None)
        await asyncio.to_thread(self._writer.join)

    # -- a listener -------------------------------------------------------------------

    def on_status(self, task: Task) -> None:
        """Record the start of an attempt, or that another one follows."""
        index, now = task.index, self._registry.now().isoformat()
        match task.task_status:
            case TaskStatus.RUNNING:
                values = (self._number, index, task.attempt_count, task.task_id, "running", now)
                self._rows.put(_Row(_BEGUN, values))
            case TaskStatus.QUEUED if task.attempt_count:
                self._rows.put(_Row(_RETRIED, (now, self._number, index, task.attempt_count)))

    def on_result(self, result: TaskResult) -> None:
        """Record a result; a case that was cancelled before it began has no row, and is still to be run."""
        if result.attempt_count == 0 and result.task_status is TaskStatus.CANCELLED:
            return
        now = self._registry.now().isoformat()
        index, status, attempt = result.index, result.task_status.value, result.attempt_count
        began = result.started_at.isoformat() if result.started_at else None
        values = (self._number, index, attempt, result.task_id, status, began, now)
        self._rows.put(_Row(_ENDED, values, result))

    def on_event(self, task: Task, event: Event) -> None:
        """Ignore it."""

    def stopper(self, result: TaskResult) -> str | None:
        """Return why the plan is to stop, if its results can't be recorded."""
        return self.trouble

    # -- the writer -------------------------------------------------------------------

    def _write(self) -> None:
        try:
            with self._registry.connected() as file:
                while rows := self._next():
                    self._commit(file, rows)
                    time.sleep(PAUSE_SECONDS)
        except Exception as exc:  # any failure stops the plan, with this reason
            self.trouble = f"the registry can't be written: {exc}"

    def _next(self) -> list[_Row]:
        """Wait for the first row, and return all that are there; nothing at the end."""
        rows = []
        row = self._rows.get()
        while row is not None:
            rows.append(row)
            if self._rows.empty() or len(rows) == MAX_ROWS_PER_COMMIT:
                return rows
            row = self._rows.get()
        if rows:
            self._rows.put(None)  # ends the next call
        return rows

    def _commit(self, file: sqlite3.Connection, rows: Sequence[_Row]) -> None:
        file.execute("BEGIN IMMEDIATE")
        for row in rows:
            text = () if row.result is None else (result_to_text(row.result, self._registry.artifacts),)
            file.execute(row.statement, row.values + text)
        if not self._is_code_known and (digest := _code_of(rows)):
            file.execute("INSERT OR IGNORE INTO facts VALUES ('tool_digest', ?)", (digest,))
            self._is_code_known = True
        file.execute("COMMIT")


def _code_of(rows: Sequence[_Row]) -> str | None:
    """Return the digest of the code of the first run among the rows."""
    executions = (row.result.execution for row in rows if row.result is not None)
    return next((one.tool_digest for one in executions if one is not None and one.tool_digest), None)
