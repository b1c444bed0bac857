"""Traces of runs for OpenTelemetry.

OpenTelemetry is imported only where its standard environment variables name a collector.
"""

import importlib
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from services.executor.outcome import Status
from services.executor.store import Order

log = structlog.get_logger()

COLLECTORS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
FLUSH_SECONDS = 3.0


class Trace:
    """The spans of one attempt.  The base class records none."""

    def report(self) -> None:
        """Record that the tool has ended and its outcome is being stored; may be called again."""

    def end(self, status: str) -> None:
        """End all spans of the attempt with this status."""


class Tracing:
    """Makes the spans of attempts.  The base class makes none, for workers without a collector."""

    _nothing = Trace()

    def attempt(self, order: Order, tool: str, queued: float, started: float) -> Trace:
        """Begin the trace of an attempt that was queued and started at these times, unix seconds."""
        return self._nothing

    def close(self) -> None:
        """Send all spans that have not been sent; blocks."""


class Spans(Tracing):
    """Makes a span `run` for each attempt, with the children `queue wait`, `attempt` and `report`.

    The parent of `run` is the trigger's `traceparent`, if it has one.

    Args:
        provider: OpenTelemetry's `TracerProvider`.
    """

    def __init__(self, provider: Any) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._trace = trace
        self._root = Context()
        self._propagator = TraceContextTextMapPropagator()
        self._provider = provider
        self._tracer = provider.get_tracer("fullsend.executor")

    def attempt(self, order: Order, tool: str, queued: float, started: float) -> Trace:
        attributes = {
            "run_id": order.run_id,
            "experiment_id": order.experiment_id,
            "tool": tool,
            "attempt": order.attempt,
        }
        parent = self._root
        if order.traceparent:
            parent = self._propagator.extract({"traceparent": order.traceparent}, context=parent)
        run = self._span("run", parent, attributes, queued)
        children = self._trace.set_span_in_context(run, parent)
        self._span("queue wait", children, attributes, queued).end(_ns(started))
        return _Spans(
            run,
            self._span("attempt", children, attributes, started),
            lambda: self._span("report", children, attributes),
            self._trace.StatusCode.ERROR,
        )

    def close(self) -> None:
        # The SDK waits 30 s for a collector that is unavailable.
        last = threading.Thread(target=self._provider.shutdown, name="flush spans", daemon=True)
        last.start()
        last.join(FLUSH_SECONDS)

    def _span(self, name: str, parent: Any, attributes: Mapping[str, Any], begun: float | None = None) -> Any:
        return self._tracer.start_span(
            name, context=parent, attributes=attributes, start_time=None if begun is None else _ns(begun)
        )


class _Spans(Trace):
    def __init__(self, run: Any, attempt: Any, report: Callable[[], Any], error: Any) -> None:
        self._run = run
        self._current = attempt
        self._report: Callable[[], Any] | None = report
        self._error = error

    def report(self) -> None:
        if self._report is not None:
            self._current.end()
            self._current, self._report = self._report(), None

    def end(self, status: str) -> None:
        for span in (self._current, self._run):
            span.set_attribute("status", status)
            if status not in NO_FAULT:
                span.set_status(self._error, status)
            span.end()


GIVEN_BACK = "given back"
NO_FAULT = frozenset({Status.COMPLETED, Status.CANCELLED, GIVEN_BACK})


def are_collected(variables: Mapping[str, str]) -> bool:
    """Return whether OpenTelemetry's standard variables name a collector."""
    return any(variables.get(name) for name in COLLECTORS)


def tracing(variables: Mapping[str, str]) -> Tracing | None:
    """Return the tracing for the collector that OpenTelemetry's standard variables name; None without one."""
    if not are_collected(variables):
        return None
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        otlp: Any = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as exc:
        log.warning("tracing.left_out", error=str(exc), hint="pip install 'fullsend-executor[otel]'")
        return None
    named = {} if variables.get("OTEL_SERVICE_NAME") else {"service.name": "fullsend-executor"}
    provider = TracerProvider(resource=Resource.create(named), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(otlp.OTLPSpanExporter()))
    library = logging.getLogger("opentelemetry")
    library.handlers, library.propagate = [_ToOurLog()], False
    return Spans(provider)


class _ToOurLog(logging.Handler):
    """Turns the library's messages into lines of our log, with secrets masked."""

    def emit(self, record: logging.LogRecord) -> None:
        log.warning("tracing.troubled", error=record.getMessage())


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)
