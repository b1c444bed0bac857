"""The registry of a plan's runs: one SQLite file, for any number of readers and writers.

    facts        name, value: of the plan
    cases        case_index, content (JSON)
    executions   each time that the plan was taken up: by whom, from when to when, why it ended
    runs         each attempt: `running`, and then what it came to

No row is removed, and none is taken for another: a case that is run again gets a
new one, and its last one counts.  `retried` is an attempt that was followed by
another.  `running` in an execution whose owner is gone is stale; whoever takes
the plan up next marks it `lost`.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from services.planner.models import TestCase
from services.planner.plan.session import Owner, Session
from services.planner.tasks import TERMINAL, TaskResult, TaskStatus, result_from_text
from shared.errors import PlanError

VERSION: Final = 1
BUSY_MS: Final = 30_000
RETRIED: Final = "retried"
LOST: Final = "lost"
LOST_ERROR: Final = "PlannerLostError"
VANISHED: Final = "the process that executed it is gone"

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
"""The row of each case that counts: the one with the greatest `run`, SQLite promises for a lone max()."""
_USED: Final = """
SELECT count(*), coalesce(sum(max(0, 86400 * (julianday(until) - julianday(began_at)))), 0) FROM (
    SELECT runs.began_at,
        CASE WHEN status IN ('running', 'lost') THEN seen_at ELSE runs.ended_at END AS until
    FROM runs JOIN executions USING (execution_id)
)
"""
"""Of an attempt whose end nobody saw, the time until its owner was last heard of."""

Now = Callable[[], datetime]


def utc_now() -> datetime:
    """The moment."""
    return datetime.now(UTC)


class Registry:
    """The registry in the file at `path`; every method uses a connection of its own.

    Args:
        path: of the file.
        artifacts: where the plan's own artifacts are now.
        now: tells the time.
    """

    def __init__(self, path: Path, artifacts: str = "", now: Now = utc_now) -> None:
        self.path = path
        self.artifacts = artifacts
        self.now = now

    @classmethod
    def create(cls, path: Path, cases: Sequence[TestCase], facts: dict[str, str]) -> None:
        """Make the file, with all cases in it.  Raises `PlanError`: it is there already."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as file:
            if file.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                raise PlanError(f"{path} is there already")
            file.execute("PRAGMA journal_mode = WAL")
            file.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
            file.execute("BEGIN")
            file.executemany("INSERT INTO facts VALUES (?, ?)", facts.items())
            texts = (one.model_dump_json(exclude_defaults=True) for one in cases)
            file.executemany("INSERT INTO cases VALUES (?, ?)", enumerate(texts))
            file.execute("COMMIT")

    @contextlib.contextmanager
    def connected(self) -> Iterator[sqlite3.Connection]:
        """A connection; each statement is a transaction of its own unless `BEGIN` says otherwise.

        Raises:
            PlanError: there is no such file, a newer version wrote it, or SQLite can't work with it.
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
        """What is noted about the plan under this name."""
        with self.connected() as file:
            found = file.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return found and str(found[0])

    # -- sittings ---------------------------------------------------------------------

    def begin_session(self, backend: str, cases: int) -> int:
        """Take the plan up, alone (see `exclusive_lock`); the number of the sitting.

        What a vanished owner has left open is closed: its runs are `lost`.
        """
        me, now = Owner.myself(), self.now().isoformat()
        with self.connected() as file:
            file.execute("BEGIN IMMEDIATE")
            _close(file, now, VANISHED)
            number = file.execute(
                "INSERT INTO executions (host, pid, process_started, backend, cases, began_at, seen_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (me.host, me.pid, me.started, backend, cases, now, now),
            ).lastrowid
            file.execute("COMMIT")
        assert number is not None, "a row was inserted"
        return number

    def heartbeat(self, number: int) -> str | None:
        """Say that the owner is there; why somebody else wants the end, if anybody does."""
        with self.connected() as file:
            file.execute(
                "UPDATE executions SET seen_at = ? WHERE execution_id = ?", (self.now().isoformat(), number)
            )
            asked = file.execute("SELECT asked_to_end FROM executions WHERE execution_id = ?", (number,))
            return asked.fetchone()[0]  # type: ignore[no-any-return]

    def end_session(self, number: int, stopped: str | None) -> None:
        """The sitting is over."""
        with self.connected() as file:
            file.execute(
                "UPDATE executions SET ended_at = ?, stopped = ? WHERE execution_id = ?",
                (self.now().isoformat(), stopped, number),
            )

    def request_cancel(self, reason: str) -> Session | None:
        """Have whoever executes the plan end it; the sitting that was asked, None when there is none.

        One whose owner is gone is closed here and now.
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
        """The one under way, or the last that was; None before the first."""
        with self.connected() as file:
            row = file.execute("SELECT * FROM executions ORDER BY execution_id DESC LIMIT 1").fetchone()
        return row and Session.of_row(row)

    # -- runs -------------------------------------------------------------------------

    def counts(self) -> dict[str, int]:
        """How many cases are in which state; `lost` ones, and those without a row, are to be run."""
        with self.connected() as file:
            found: dict[str, int] = dict(
                file.execute(f"SELECT status, count(*) FROM ({_LAST}) GROUP BY status")  # noqa: S608
            )
            [total] = file.execute("SELECT count(*) FROM cases").fetchone()
        return {TaskStatus.PENDING: total - sum(found.values()), **found}

    def count_ended_in(self, number: int) -> int:
        """How many cases have ended in a sitting, however they did."""
        with self.connected() as file:
            found = file.execute(
                "SELECT count(DISTINCT case_index) FROM runs WHERE execution_id = ? "
                "AND status NOT IN ('running', 'retried', 'lost')",
                (number,),
            )
            return int(found.fetchone()[0])

    def results(self) -> list[TaskResult]:
        """One for each case, in the order of the cases; `pending` where there is none yet."""
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
        """All results there ever were, in the order in which they came, and what is lost as an `error`."""
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
        """How many attempts have ever begun, and the seconds of all of them together."""
        with self.connected() as file:
            runs, seconds = file.execute(_USED).fetchone()
        return int(runs), float(seconds)

    def durations(self) -> list[float]:
        """Seconds that each run took that succeeded."""
        with self.connected() as file:
            found = file.execute(
                "SELECT json_extract(result, '$.execution_time') FROM runs WHERE status = 'succeeded'"
            )
            return [float(seconds) for [seconds] in found]


UNFINISHED: Final = frozenset(TaskStatus) - TERMINAL | {TaskStatus.CANCELLED}
"""States of results whose cases are still to be run."""


def _close(file: sqlite3.Connection, now: str, reason: str, number: int | None = None) -> None:
    """Close one sitting, or all that are open, that nobody works on any more."""
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
        error_message=VANISHED,
    )
