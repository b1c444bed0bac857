"""Follows the runs that executors perform for a plan: from the journal, and by polling their records."""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from services.executor.isolation.calls import Event, Metric, Progress, Report
from services.executor.outcome import Status
from services.executor.recovery import RunCancelledError
from services.executor.store import JournalEntry, RunProgress, Store
from services.planner.execution import ErrorInfo, Execution, ExecutionResult, result_of_record
from shared.backoff import Outage
from shared.errors import ExperimentNotFoundError, FullsendError, StoreError

log = structlog.get_logger()

READ_WAIT_MS = 5_000
_BASE = frozenset({"experiment_id", "run_id", "event", "timestamp", "name", "value"})


class PendingRun:
    """A call without a result yet, and what is known of its run.

    Args:
        call: the call.
        report: receives what the tool reports.

    Attributes:
        token: distinguishes the call from all others, of all planners.
        since: when the call was made, in seconds of the monotonic clock.
        stopped: set when the call is cancelled.
        is_admitted: whether the run may be queued.
        is_over: whether the run is reported to have ended.
        is_lost: whether the run is neither open nor has an end in its record.
    """

    def __init__(self, call: Execution, report: Report | None) -> None:
        self.call = call
        self.token = secrets.token_hex(8)
        self.since = time.monotonic()
        self.stopped = asyncio.Event()
        self.is_admitted = False
        self.is_over = False
        self.is_lost = False
        self._report = report
        self._changed = asyncio.Event()

    async def change(self) -> None:
        """Wait until something of it has changed."""
        await self._changed.wait()
        self._changed.clear()

    def stop(self) -> None:
        """Cancel the call."""
        self.stopped.set()
        self._changed.set()

    def admit(self) -> None:
        """Let the run be queued."""
        self.is_admitted = True
        self._changed.set()

    def on_entry(self, entry: JournalEntry) -> None:
        """Take an entry of the journal about its run into account."""
        if entry.kind == "result":
            self.is_over = True
            self._changed.set()
        elif self._report is not None and (event := _event(entry.data)) is not None:
            self._report_event(self._report, event)

    def _report_event(self, report: Report, event: Event) -> None:
        try:
            report(event)
        except Exception:  # one report must not stop the reader of all runs
            log.exception("report.failed", run_id=self.call.options.run_id)
            self._report = None

    def update(self, where: RunProgress) -> None:
        """Take the state of its run in Redis into account."""
        if where.is_open:
            return
        if where.status in (None, Status.RUNNING):
            self.is_lost = True
        self.is_over = True
        self._changed.set()


class RunWatcher:
    """Follows all runs of one experiment, with one reader of the journal.

    Args:
        store: of the executors' Redis.
        experiment_id: the experiment of the runs.
    """

    def __init__(self, store: Store, experiment_id: str) -> None:
        self._store = store
        self._experiment_id = experiment_id
        self._cursor = ""
        self._followed: dict[str, PendingRun] = {}
        self._expected = 0
        self._unassigned: dict[str, list[JournalEntry]] = {}
        self._poll_requested = asyncio.Event()

    async def open(self) -> None:
        """Start at the current end of the journal.  Raises `StoreUnavailableError`."""
        self._cursor = await self._store.journal.end()

    @contextlib.contextmanager
    def expecting_run(self) -> Iterator[None]:
        """Keep all entries inside the block, where a run is queued whose id is not known yet."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._unassigned.clear()

    def follow(self, run_id: str, one: PendingRun) -> None:
        """Pass the entries about a run to `one`, also those that have been read before."""
        self._followed[run_id] = one
        for entry in self._unassigned.pop(run_id, ()):
            one.on_entry(entry)

    def unfollow(self, run_id: str) -> None:
        """Stop following a run."""
        self._followed.pop(run_id, None)

    def poll_now(self) -> None:
        """Poll the runs at once."""
        self._poll_requested.set()

    async def follow_journal(self) -> None:
        """Read the journal until cancelled; poll the runs after Redis was unavailable."""
        outage = Outage("journal")
        while True:
            try:
                entries = await self._store.journal.read(self._cursor, READ_WAIT_MS)
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                self.poll_now()
                continue
            outage.ended()
            for entry in entries:
                self._cursor = entry.cursor
                self._dispatch(entry)

    async def poll(self, seconds: float) -> None:
        """Check the state of all runs every `seconds` until cancelled: the journal may have lost entries."""
        outage = Outage("runs")
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._poll_requested.wait()
            self._poll_requested.clear()
            try:
                found = await self._store.submissions.progress(self._experiment_id, list(self._followed))
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                self.poll_now()
                continue
            outage.ended()
            for run_id, where in found.items():
                if run_id in self._followed:
                    self._followed[run_id].update(where)

    def _dispatch(self, entry: JournalEntry) -> None:
        if entry.data.get("experiment_id") != self._experiment_id:
            return
        run_id = str(entry.data.get("run_id"))
        if run_id in self._followed:
            self._followed[run_id].on_entry(entry)
        elif self._expected:
            self._unassigned.setdefault(run_id, []).append(entry)


def _event(data: Mapping[str, Any]) -> Event | None:
    """Return the event of an entry as the `local` backend would report it; None if the tool reported none."""
    match data:
        case {"event": "progress", "done": done}:
            return Progress(done, data.get("total"), data.get("message", ""))
        case {"event": "metric", "name": str(name), "value": None, "not_finite": str(text)}:
            return Metric(name, float(text), _tags(data, name))
        case {"event": "metric", "name": str(name), "value": value}:
            return Metric(name, value, _tags(data, name))
        case _:
            return None


def _tags(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: one for key, one in data.items() if key not in {*_BASE, "not_finite", name}}


_TOO_OLD = "the executor that took the run is too old for the runs of plans; update it"


class RunLostError(FullsendError):
    """Redis has lost the run, so that its result is unknown."""


class RunResults:
    """Makes the results of calls, from the records of their runs or without one.

    Args:
        storage_type, storage_base: of the store of artifacts that the executors use.
    """

    def __init__(self, storage_type: str, storage_base: str) -> None:
        self._storage = storage_type, storage_base

    def of_record(self, one: PendingRun, record: Mapping[str, str]) -> ExecutionResult:
        """Return the result in a record, with the id, the parameters and the seed of the call."""
        options, result = one.call.options, result_of_record(record, *self._storage)
        error = result.error
        if error is not None and error.type == ExperimentNotFoundError.__name__:
            error = dataclasses.replace(error, message=_TOO_OLD, retryable=True)
        return dataclasses.replace(
            result,
            run_id=options.run_id,
            parameters=one.call.parameters,
            seed=options.policy.seed,
            error=error,
        )

    def cancelled(self, one: PendingRun, reason: str) -> ExecutionResult:
        """Return the result of a cancelled call without a record."""
        return self._without_record(one, Status.CANCELLED, ErrorInfo(RunCancelledError.__name__, reason))

    def failed(self, one: PendingRun, exc: Exception) -> ExecutionResult:
        """Return the result of a call that could not be queued or followed."""
        is_lost = isinstance(exc, RunLostError)
        error = ErrorInfo(type(exc).__name__, str(exc), retryable=is_lost)
        return self._without_record(one, Status.LOST if is_lost else Status.FAILED, error)

    def _without_record(self, one: PendingRun, status: Status, error: ErrorInfo) -> ExecutionResult:
        options, (storage_type, storage_base) = one.call.options, self._storage
        return ExecutionResult(
            run_id=options.run_id,
            status=status,
            storage_type=storage_type,
            storage_base=storage_base,
            error=error,
            execution_time_ms=round((time.monotonic() - one.since) * 1_000),
            parameters=one.call.parameters,
            seed=options.policy.seed,
        )
