"""What is counted of one worker, for Prometheus; its runs' spans are made along the way (`tracing.py`)."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from services.executor.monitoring.tracing import GIVEN_BACK, Trace, Tracing, tracing
from services.executor.report import Observer
from services.executor.store import Claim, Finished

UNKNOWN = "unknown"
"""Stands for every tool that doesn't exist: nobody makes new series by inventing names."""

WAIT_BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800, 3_600)
RUN_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 150, 300, 600, 1_800, 3_600)
LATENESS_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1, 5, 30, 60, 600, 3_600, 86_400)


@dataclass(frozen=True, slots=True)
class _Attempt:
    tool: str
    trace: Trace


class Monitor(Observer):
    """Counts what one worker does, and makes its runs' spans.

    Args:
        worker: its name.
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

    def unavailable(self) -> None:
        """Redis was not there for a claim, a transition or a heartbeat."""
        self._unavailable.inc()

    def begun(self, claim: Claim, tool: str | None, started: float) -> None:
        """An attempt began here, at `started` (unix seconds)."""
        order = claim.order
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

    def finished(self, claim: Claim, status: str, seconds: float, answer: Finished) -> None:
        """The store took or refused the end of a run whose last attempt took `seconds`."""
        refused = answer is Finished.STALE
        attempt = self._leave(claim, "refused" if refused else status)
        if refused:
            self._refused.inc()
        elif attempt is not None:
            self._ended.labels(attempt.tool, status).inc()
            self._duration.labels(attempt.tool, status).observe(seconds)

    def retried(self, claim: Claim, *, stored: bool) -> None:
        """Another attempt follows, unless this one had been taken away."""
        attempt = self._leave(claim, "retrying" if stored else "refused")
        if not stored:
            self._refused.inc()
        elif attempt is not None:
            self._retried.labels(attempt.tool).inc()

    def given_back(self, claim: Claim) -> None:
        """An attempt ends, and its run goes back to the queue."""
        self._leave(claim, GIVEN_BACK)

    def abandoned(self, claim: Claim) -> None:
        """An attempt ends, for it can't go on."""
        self._leave(claim, "broken")

    def ended_unbegun(self, status: str) -> None:
        """A run ended that no attempt was under way for."""
        self._ended.labels(UNKNOWN, status).inc()

    def taken_over(self) -> None:
        """A run of a dead worker went back to the queue."""
        self._recovered.inc()

    def buried(self, status: str, tool: str | None) -> None:
        """A run of a dead worker ended; it is not tried again."""
        self._ended.labels(self._label(tool), status).inc()
        self._buried.inc()

    def fired(self, late_seconds: float) -> None:
        """A due time of cron became runs."""
        self._lateness.observe(max(0.0, late_seconds))

    async def close(self) -> None:
        """Hand over the last spans."""
        await asyncio.to_thread(self.tracing.close)

    def _leave(self, claim: Claim, status: str) -> _Attempt | None:
        attempt = self._attempts.pop(claim.lease, None)
        if attempt is not None:
            attempt.trace.end(status)
        return attempt

    def _label(self, tool: str | None) -> str:
        if tool is not None and tool not in self._known:
            self._known.update(self._tools())
        return tool if tool in self._known else UNKNOWN


def monitor(
    worker: str, tools: Callable[[], Iterable[str]], *, scraped: bool, variables: Mapping[str, str]
) -> Monitor | None:
    """A monitor, unless nobody would read what it counts (`scraped`) or collect its spans."""
    spans = tracing(variables)
    return Monitor(worker, tools, spans or Tracing()) if scraped or spans else None


def _joined_ms(entry: str) -> int:
    """When an entry of a stream was written, by Redis' clock."""
    return int(entry.partition("-")[0])
