"""Hears of the ends of runs that others perform: from the journal, and by looking now and then."""

import asyncio
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from services.executor.cancellation import RunCancelledError
from services.executor.isolation.calls import Event, Metric, Progress, Report
from services.executor.outcome import Status
from services.executor.store import JournalEntry, RunProgress, Store
from services.planner.execution import ErrorInfo, Execution, ExecutionResult, result_of_record
from shared.backoff import Outage
from shared.errors import ExperimentNotFoundError, FullsendError, StoreError

log = structlog.get_logger()

READ_WAIT_MS = 5_000
_BASE = frozenset({"experiment_id", "run_id", "event", "timestamp", "name", "value"})


class PendingRun:
    """A call on its way: what is to become of it, and what is known of its run.

    Args:
        call: what is asked for.
        report: hears what the tool says.

    Attributes:
        token: tells it from all other calls, of all planners.
        since: when it was made, by the monotonic clock.
        stopped: somebody wants its end.
        is_admitted: it may be queued.
        is_over: its run is said to have ended.
        is_lost: its run is neither open nor has it an end.
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
        """Wait until something of it is different from what it was."""
        await self._changed.wait()
        self._changed.clear()

    def stop(self) -> None:
        """It is to end."""
        self.stopped.set()
        self._changed.set()

    def admit(self) -> None:
        """It may be queued."""
        self.is_admitted = True
        self._changed.set()

    def hear(self, entry: JournalEntry) -> None:
        """Take in what was said about its run."""
        if entry.kind == "result":
            self.is_over = True
            self._changed.set()
        elif self._report is not None and (event := _event(entry.data)) is not None:
            self._tell(self._report, event)

    def _tell(self, report: Report, event: Event) -> None:
        try:
            report(event)
        except Exception:  # it must not cost all the others their results
            log.exception("report.broke", run_id=self.call.options.run_id)
            self._report = None

    def stands(self, where: RunProgress) -> None:
        """Take in where its run is."""
        if where.is_open:
            return
        if where.status in (None, Status.RUNNING):
            self.is_lost = True
        self.is_over = True
        self._changed.set()


class RunWatcher:
    """One reader of the journal for all runs of one experiment that are awaited here.

    Args:
        store: on the executors' Redis.
        experiment_id: whose runs these are.
    """

    def __init__(self, store: Store, experiment_id: str) -> None:
        self._store = store
        self._experiment_id = experiment_id
        self._cursor = ""
        self._followed: dict[str, PendingRun] = {}
        self._expected = 0
        self._early: dict[str, list[JournalEntry]] = {}
        self._due = asyncio.Event()

    async def open(self) -> None:
        """Hear everything from now on.  Raises `StoreUnavailableError`."""
        self._cursor = await self._store.journal.end()

    @contextlib.contextmanager
    def expecting_run(self) -> Iterator[None]:
        """Inside the block, a run is queued whose id becomes known; what is said of it before is kept."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._early.clear()

    def follow(self, run_id: str, one: PendingRun) -> None:
        """Tell `one` what is said of the run, and what was said already."""
        self._followed[run_id] = one
        for entry in self._early.pop(run_id, ()):
            one.hear(entry)

    def unfollow(self, run_id: str) -> None:
        """Nobody waits for the run any more."""
        self._followed.pop(run_id, None)

    def poll_now(self) -> None:
        """Don't wait for the next look at the runs."""
        self._due.set()

    async def follow_journal(self) -> None:
        """Follow the journal until cancelled; after Redis was away, what it can't tell is looked for."""
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
                self._pass_on(entry)

    async def poll(self, seconds: float) -> None:
        """Look at the awaited runs every so often, until cancelled: the journal may have lost a word."""
        outage = Outage("runs")
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._due.wait()
            self._due.clear()
            try:
                found = await self._store.awaited.standing(self._experiment_id, list(self._followed))
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))
                self.poll_now()
                continue
            outage.ended()
            for run_id, where in found.items():
                if run_id in self._followed:
                    self._followed[run_id].stands(where)

    def _pass_on(self, entry: JournalEntry) -> None:
        if entry.data.get("experiment_id") != self._experiment_id:
            return
        run_id = str(entry.data.get("run_id"))
        if run_id in self._followed:
            self._followed[run_id].hear(entry)
        elif self._expected:
            self._early.setdefault(run_id, []).append(entry)


def _event(data: Mapping[str, Any]) -> Event | None:
    """What the tool said, as its own process would have passed it on; None for what it didn't say itself."""
    match data:
        case {"event": "progress", "done": done}:
            return Progress(done, data.get("total"), data.get("message", ""))
        case {"event": "metric", "name": str(name), "value": value}:
            return Metric(name, value, {key: one for key, one in data.items() if key not in {*_BASE, name}})
        case _:
            return None


_TOO_OLD = "an executor took the run that is too old for a plan's runs; update it"


class RunLostError(FullsendError):
    """Redis doesn't know the run any more, and nobody can say what it came to."""


class RunResults:
    """Makes the results of calls.

    Args:
        storage_type, storage_base: of the store of artifacts that the executors use.
    """

    def __init__(self, storage_type: str, storage_base: str) -> None:
        self._storage = storage_type, storage_base

    def of_record(self, one: PendingRun, record: Mapping[str, str]) -> ExecutionResult:
        """What the record says, under the id and of the values that the call has."""
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
        """It was to end, and has no record that says so."""
        return self._without_record(one, Status.CANCELLED, ErrorInfo(RunCancelledError.__name__, reason))

    def failed(self, one: PendingRun, exc: Exception) -> ExecutionResult:
        """It could not be queued, or could not be followed to its end."""
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
