"""The registry of a plan's runs: one SQLite file, for any number of readers and writers.

    facts        facts about the plan: name, value
    cases        case_index, content (JSON)
    executions   the sessions: which process, from when to when, why it stopped
    runs         the attempts: `running`, then the status and the result

Rows are never removed or reused: a case that is run again gets a new row, and its last
row counts.  `retried` is an attempt that was followed by another one.  A row that is
`running` in a session whose process is gone is stale; the next session marks it `lost`.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Final

from services.planner.models import TestCase
from services.planner.plan.session import Owner, Session
from services.planner.tasks import TERMINAL, Now, TaskResult, TaskStatus, result_from_text, utc_now
from shared.errors import PlanError

VERSION: Final = 1
BUSY_MS: Final = 30_000
RETRIED: Final = "retried"
LOST: Final = "lost"
LOST_ERROR: Final = "PlannerLostError"
OWNER_GONE: Final = "the process that executed it is gone"

_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE cases (case_index INTEGER PRIMARY KEY, content TEXT NOT NULL);
CREATE TABLE executions (
    execution_id INTEGER PRIMARY KEY,
    host TEXT NOT NULL, pid INTEGER NOT NULL, process_started TEXT NOT NULL,
    backend TEXT NOT NULL, cases INTEGER NOT NULL,
    began_at TEXT NOT NULL, seen_at TEXT NOT NULL, ended_at TEXT,
    asked_to_end TEXT, stopped TEXT
);
CREATE TABLE runs (
    run INTEGER PRIMARY KEY,
    execution_id INTEGER NOT NULL REFERENCES executions,
    case_index INTEGER NOT NULL REFERENCES cases,
    attempt INTEGER NOT NULL,
    task_id TEXT NOT NULL, status TEXT NOT NULL,
    began_at TEXT, ended_at TEXT,
    result TEXT,
    UNIQUE (execution_id, case_index, attempt)
);
CREATE INDEX runs_of_case ON runs (case_index, run);
"""
_LAST: Final = (
    "SELECT case_index, status, result, execution_id, max(run) FROM runs WHERE status <> 'retried' "
    "GROUP BY case_index"
)
"""The last row of each case: SQLite takes the columns beside a single max() from the row of the maximum."""
_USED: Final = """
SELECT count(*), coalesce(sum(max(0, 86400 * (julianday(until) - julianday(began_at)))), 0) FROM (
    SELECT runs.began_at,
        CASE WHEN status IN ('running', 'lost') THEN seen_at ELSE runs.ended_at END AS until
    FROM runs JOIN executions USING (execution_id)
)
"""
"""An attempt without a recorded end counts until the last heartbeat of its session."""


class Registry:
    """The registry in the file at `path`; every method opens a connection of its own.

    All methods block, and raise `PlanError` if the file is missing or SQLite can't use it.

    Args:
        path: the file.
        artifacts: the current directory of the plan's own artifacts.
        now: the clock.
    """

    def __init__(self, path: Path, artifacts: str = "", now: Now = utc_now) -> None:
        self.path = path
        self.artifacts = artifacts
        self.now = now

    @classmethod
    def create(cls, path: Path, cases: Sequence[TestCase], facts: dict[str, str]) -> None:
        """Create the file with the facts and all cases.  Raises `PlanError` if it exists."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
            if file.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                raise PlanError(f"{path} exists already")
            file.execute("PRAGMA journal_mode = WAL")
            file.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            file.execute("BEGIN")
            file.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            texts = (one.model_dump_json(exclude_defaults=True) for one in cases)
            file.executemany("INSERT INTO cases VALUES (?, ?)", enumerate(texts))
            file.execute("COMMIT")

    @contextlib.contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection; without `BEGIN`, each statement is a transaction of its own.

        Raises:
            PlanError: there is no such file, another version wrote it, or SQLite can't use it.
        """
        if not self.path.is_file():
            raise PlanError(f"there is no registry at {self.path}")
        try:
            file = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_MS / 1_000)
            with contextlib.closing(file):
                file.execute("PRAGMA synchronous = NORMAL")
                [version] = file.execute("PRAGMA user_version").fetchone()
                if version != VERSION:
                    raise PlanError(
                        f"{self.path} has version {version} of the registry; this program knows {VERSION}"
                    )
                yield file
        except sqlite3.Error as exc:
            raise PlanError(f"{self.path}: {exc}") from exc

    # -- facts ------------------------------------------------------------------------

    def fact(self, name: str) -> str | None:
        """Return the value of a fact, None if there is none of this name."""
        with self.connected() as file:
            found = file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return found and str(found[0])

    def facts(self, beginning: str) -> dict[str, str]:
        """Return the facts whose names have this prefix, by the rest of the name."""
        with self.connected() as file:
            found = file.execute(
                "SELECT name, value FROM facts WHERE substr(name, 1, ?) = ?", (len(beginning), beginning)
            )
            return {name.removeprefix(beginning): value for name, value in found}

    def note(self, name: str, value: str) -> None:
        """Record a fact; an earlier one of this name is replaced."""
        with self.connected() as file:
            file.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    # -- sessions ---------------------------------------------------------------------

    def begin_session(self, backend: str, cases: int) -> int:
        """Record the start of a session, and return its number.  The caller holds the plan's lock.

        Sessions that a dead process has left open are closed: their runs are `lost`.

        Args:
            backend: the name of the backend.
            cases: how many cases are to be run.
        """
        me, now = Owner.myself(), self.now().isoformat()
        with self.connected() as file:
            file.execute("BEGIN IMMEDIATE")
            _close(file, now, OWNER_GONE)
            number = file.execute(
                "INSERT INTO executions (host, pid, process_started, backend, cases, began_at, seen_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (me.host, me.pid, me.started, backend, cases, now, now),
            ).lastrowid
            file.execute("COMMIT")
        assert number is not None, "a row was inserted"
        return number

    def heartbeat(self, number: int) -> str | None:
        """Record that the session's process is alive; return the reason if it was asked to stop."""
        with self.connected() as file:
            file.execute(
                "UPDATE executions SET seen_at = ? WHERE execution_id = ?", (self.now().isoformat(), number)
            )
            asked = file.execute("SELECT asked_to_end FROM executions WHERE execution_id = ?", (number,))
            return asked.fetchone()[0]  # type: ignore[no-any-return]

    def end_session(self, number: int, stopped: str | None) -> None:
        """Record the end of a session; `stopped` is the reason if cases are left."""
        with self.connected() as file:
            file.execute(
                "UPDATE executions SET ended_at = ?, stopped = ? WHERE execution_id = ?",
                (self.now().isoformat(), stopped, number),
            )

    def request_cancel(self, reason: str) -> Session | None:
        """Ask the open session to stop, and return it; None if there is none.

        A session whose process is gone is closed.
        """
        session = self.last_session()
        if session is None or session.ended_at is not None:
            return None
        now = self.now()
        with self.connected() as file:
            file.execute("BEGIN IMMEDIATE")
            if session.is_under_way(now):
                file.execute(
                    "UPDATE executions SET asked_to_end = ? WHERE execution_id = ? AND ended_at IS NULL",
                    (reason, session.number),
                )
            else:
                _close(file, now.isoformat(), reason, session.number)
            file.execute("COMMIT")
        return session

    def last_session(self) -> Session | None:
        """Return the open session, or the last one; None before the first."""
        with self.connected() as file:
            row = file.execute("SELECT * FROM executions ORDER BY execution_id DESC LIMIT 1").fetchone()
        return row and Session.of_row(row)

    # -- runs -------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """Count the cases by status; `lost` ones, and `pending` ones without a row, are to be run."""
        with self.connected() as file:
            found: dict[str, int] = dict(
                file.execute(f"SELECT status, count(*) FROM ({_LAST}) GROUP BY status")  # noqa: S608
            )
            [total] = file.execute("SELECT count(*) FROM cases").fetchone()
        return {TaskStatus.PENDING: total - sum(found.values()), **found}

    def count_ended_in(self, number: int) -> int:
        """Count the cases that have ended in a session, whatever their status."""
        with self.connected() as file:
            found = file.execute(
                "SELECT count(DISTINCT case_index) FROM runs WHERE execution_id = ? "
                "AND status NOT IN ('running', 'retried', 'lost')",
                (number,),
            )
            return int(found.fetchone()[0])

    def results(self) -> list[TaskResult]:
        """Return a result for each case, in their order; cases that have not ended are `pending`."""
        with self.connected() as file:
            texts = dict(
                file.execute(f"SELECT case_index, result FROM ({_LAST}) WHERE result IS NOT NULL")  # noqa: S608
            )
            cases = file.execute("SELECT case_index, content FROM cases ORDER BY case_index").fetchall()
            facts = dict(file.execute("SELECT name, value FROM facts"))
        return [
            result_from_text(texts[index], self.artifacts)
            if index in texts
            else _pending(index, content, facts)
            for index, content in cases
        ]

    def history(self) -> list[TaskResult]:
        """Return all results ever recorded, the oldest first; lost runs have the status `error`."""
        with self.connected() as file:
            rows = file.execute(
                "SELECT case_index, content, status, attempt, result FROM runs NATURAL JOIN cases "
                "WHERE result IS NOT NULL OR status = 'lost' ORDER BY run"
            ).fetchall()
            facts = dict(file.execute("SELECT name, value FROM facts"))
        return [
            result_from_text(result, self.artifacts)
            if result
            else _lost(_pending(index, content, facts), attempt)
            for index, content, status, attempt, result in rows
        ]

    def used(self) -> tuple[int, float]:
        """Return how many attempts have ever begun, and the sum of their durations in seconds."""
        with self.connected() as file:
            runs, seconds = file.execute(_USED).fetchone()
        return int(runs), float(seconds)

    def durations(self) -> list[float]:
        """Return the seconds that each successful run took, without its time in a backend's queue."""
        with self.connected() as file:
            found = file.execute(
                "SELECT min(json_extract(result, '$.execution_time'), coalesce("
                "(json_extract(result, '$.execution.execution_time_ms') + 0.5) / 1000, 1e300)) "
                "FROM runs WHERE status = 'succeeded'"
            )
            return [float(seconds) for [seconds] in found]


UNFINISHED: Final = frozenset(TaskStatus) - TERMINAL | {TaskStatus.CANCELLED}
"""The statuses of cases that are still to be run."""


def _close(file: sqlite3.Connection, now: str, reason: str, number: int | None = None) -> None:
    """Close one session, or all open ones, whose process is gone."""
    which = "ended_at IS NULL AND execution_id = coalesce(?, execution_id)"
    file.execute(
        f"UPDATE runs SET status = 'lost', ended_at = ? WHERE status = 'running' AND execution_id IN "  # noqa: S608
        f"(SELECT execution_id FROM executions WHERE {which})",
        (now, number),
    )
    file.execute(f"UPDATE executions SET ended_at = ?, stopped = ? WHERE {which}", (now, reason, number))  # noqa: S608


def _pending(index: int, content: str, facts: dict[str, str]) -> TaskResult:
    return TaskResult(
        task_id="",
        workflow_id=facts["workflow_id"],
        index=index,
        case=TestCase.model_validate_json(content),
        task_status=TaskStatus.PENDING,
        created_at=datetime.fromisoformat(facts["created_at"]),
    )


def _lost(result: TaskResult, attempt: int) -> TaskResult:
    return replace(
        result,
        task_status=TaskStatus.ERROR,
        attempt_count=attempt,
        error_type=LOST_ERROR,
        error_message=OWNER_GONE,
    )
