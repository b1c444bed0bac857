"""What is counted of one worker, for Prometheus; its runs' spans are made along the way (`spans.py`)."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from services.executor.monitoring.tracing import GIVEN_BACK, Trace, Tracing, tracing
from services.executor.store import Claim, Finished, Stored
from shared.errors import StoreError, StoreUnavailableError

T = TypeVar("T")

UNKNOWN = "unknown"
"""Stands for every tool that doesn't exist: nobody makes new series by inventing names."""

WAIT_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 3_600)
RUN_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 150, 300, 600, 1_800, 3_600)
LATENESS_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 600, 3_600, 86_400)


@dataclass(frozen=True, slots=True)
class _Attempt:
    tool: str
    trace: Trace


class Observer:
    """Counts what one worker does.

    Args:
        worker: its name; claims under other names were taken over from the dead.
        tools: the names of the tools that exist.
        tracing: makes the spans.
    """

    def __init__(self, worker: str, tools: Callable[[], Iterable[str]], tracing: Tracing) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # as many series again, that nobody asks for
        self.registry = registry = CollectorRegistry()
        self.worker = worker
        self.tracing = tracing
        self._tools = tools
        self._known: set[str] = set()
        self._attempts: dict[str, _Attempt] = {}

        def counter(name: str, promise: str, *labels: str) -> Counter:
            return Counter(f"fullsend_{name}", promise, labels, registry=registry)

        def histogram(name: str, promise: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"fullsend_{name}", promise, labels, buckets=buckets, registry=registry)

        self._started = counter(
            "runs_started_total", "Runs whose first attempt began here", "tool", "trigger"
        )
        self._ended = counter("runs_ended_total", "Runs that ended, by status", "tool", "status")
        self._retried = counter("attempts_retried_total", "Failed attempts that another follows", "tool")
        self._recovered = counter("runs_recovered_total", "Runs of dead workers, queued again")
        self._buried = counter("runs_buried_total", "Runs of dead workers, not tried again")
        self._refused = counter("outcomes_refused_total", "Outcomes of attempts that had been taken away")
        self._unavailable = counter(
            "redis_unavailable_total", "Claims, transitions and heartbeats that Redis was not there for"
        )
        self._duration = histogram(
            "run_duration_seconds", "The last attempt, from claim to end", RUN_BUCKETS, "tool", "status"
        )
        self._wait = histogram("queue_wait_seconds", "From joining the queue to the claim", WAIT_BUCKETS)
        self._lateness = histogram(
            "cron_lateness_seconds", "From a due time of cron to its queued runs", LATENESS_BUCKETS
        )

    async def asked(self, answer: Awaitable[T], claim: Claim | None = None) -> T:
        """The store's answer; an attempt that it can't work with is not followed any further."""
        try:
            return await answer
        except StoreUnavailableError:
            self._unavailable.inc()
            raise
        except StoreError:
            self._leave(claim, "broken")
            raise

    def began(self, claim: Claim, fields: Mapping[str, Any]) -> None:
        """An attempt began; `fields` are its record's."""
        order, tool = claim.order, fields.get("tool")
        started = datetime.fromisoformat(fields["started_at"]).timestamp()
        queued = min(_joined_ms(claim.entry) / 1_000, started)  # Redis' clock may be ahead
        label = self._label(tool)
        if order.attempt == 1 and order.losses == 0:
            self._started.labels(label, order.trigger).inc()
        self._wait.observe(started - queued)
        trace = self.tracing.attempt(order, tool or UNKNOWN, queued, started)
        self._attempts[claim.lease] = _Attempt(label, trace)

    def reporting(self, claim: Claim) -> None:
        """The outcome of an attempt is about to be stored."""
        attempt = self._attempts.get(claim.lease)
        if attempt is not None:
            attempt.trace.report()

    def finished(self, claim: Claim, stored: Stored, fields: Mapping[str, Any], answer: Finished) -> None:
        """The store took or refused the end of a run; `fields` are its record's."""
        status = str(fields["status"])
        refused = answer is Finished.STALE
        attempt = self._leave(claim, "refused" if refused else status)
        if attempt is None:
            self._finished_elsewhere(claim, stored, status, answer)
        elif refused:
            self._refused.inc()
        else:
            self._ended.labels(attempt.tool, status).inc()
            self._duration.labels(attempt.tool, status).observe(float(fields["duration_seconds"]))

    def _finished_elsewhere(self, claim: Claim, stored: Stored, status: str, answer: Finished) -> None:
        """No attempt of ours: whoever comes second is told DONE, so only FINISHED counts."""
        if answer is Finished.FINISHED:
            self.ended_waiting(status, stored.experiment.tool if stored.experiment else None)
            if claim.worker != self.worker:
                self._buried.inc()

    def ended_waiting(self, status: str, tool: str | None = None) -> None:
        """A run ended that no attempt of ours was under way for."""
        self._ended.labels(self._label(tool), status).inc()

    def retried(self, claim: Claim, *, stored: bool) -> None:
        """Another attempt follows, unless this one had been taken away."""
        attempt = self._leave(claim, "retrying" if stored else "refused")
        if not stored:
            self._refused.inc()
        elif attempt is not None:
            self._retried.labels(attempt.tool).inc()

    def given_back(self, claim: Claim) -> None:
        """A claim is about to go back to the queue; if it is ours, its attempt is over."""
        self._leave(claim, GIVEN_BACK)

    def recovered(self, claim: Claim) -> None:
        """A claim went back to the queue."""
        if claim.worker != self.worker:
            self._recovered.inc()

    def fired(self, late_seconds: float) -> None:
        """A due time of cron became runs."""
        self._lateness.observe(max(0.0, late_seconds))

    async def close(self) -> None:
        """Hand over the last spans."""
        await asyncio.to_thread(self.tracing.close)

    def _leave(self, claim: Claim | None, status: str) -> _Attempt | None:
        attempt = self._attempts.pop(claim.lease, None) if claim else None
        if attempt is not None:
            attempt.trace.end(status)
        return attempt

    def _label(self, tool: str | None) -> str:
        if tool is not None and tool not in self._known:
            self._known.update(self._tools())
        return tool if tool in self._known else UNKNOWN


def wanted(
    worker: str, tools: Callable[[], Iterable[str]], *, scraped: bool, variables: Mapping[str, str]
) -> Observer | None:
    """An observer, unless nobody would read what it counts (`scraped`) or collect its spans."""
    spans = tracing(variables)
    return Observer(worker, tools, spans or Tracing()) if scraped or spans else None


def _joined_ms(entry: str) -> int:
    """When an entry of a stream was written, by Redis' clock."""
    return int(entry.partition("-")[0])
