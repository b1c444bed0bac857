"""What a monitor counts, and the spans that it makes."""

import subprocess
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.executor.monitoring import prometheus
from services.executor.monitoring.prometheus import UNKNOWN, Monitor
from services.executor.monitoring.tracing import COLLECTORS, Spans, Tracing
from services.executor.outcome import Status
from services.executor.store import Claim, Finished, Order

NOW = time.time()
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def claimed(worker: str = "me", *, waited_seconds: float = 2.0, **members: Any) -> Claim:
    """A claim of an order that had waited."""
    entry = f"{round((NOW - waited_seconds) * 1_000)}-0"
    order = Order("exp_1", members.pop("trigger", "trigger"), timestamp=entry, **members)
    return Claim("queue", entry, worker, order)


def observer(tools: Callable[[], list[str]] = lambda: ["echo"], tracing: Tracing | None = None) -> Monitor:
    return Monitor("me", tools, tracing or Tracing())


def count(seen: Monitor, name: str, **labels: str) -> float:
    """The value of a series, 0 when there is none."""
    return seen.registry.get_sample_value(f"fullsend_{name}", labels) or 0.0


# -- counters -------------------------------------------------------------------------


def test_a_run_that_completes_is_counted_once_on_each_side() -> None:
    seen, claim = observer(), claimed()

    seen.begun(claim, "echo", NOW)
    seen.finished(claim, Status.COMPLETED, 0.5, Finished.FINISHED)

    assert count(seen, "runs_started_total", tool="echo", trigger="trigger") == 1
    assert count(seen, "runs_ended_total", tool="echo", status="completed") == 1
    assert count(seen, "run_duration_seconds_sum", tool="echo", status="completed") == 0.5
    assert count(seen, "queue_wait_seconds_sum") == pytest.approx(2.0, abs=0.01)


def test_an_end_whose_answer_was_lost_counts_when_it_is_sent_again() -> None:
    seen, claim = observer(), claimed()

    seen.begun(claim, "echo", NOW)
    seen.finished(claim, Status.FAILED, 0.5, Finished.DONE)

    assert count(seen, "runs_ended_total", tool="echo", status="failed") == 1


@pytest.mark.parametrize("later", [{"attempt": 2}, {"losses": 1}])
def test_a_later_attempt_is_not_another_run(later: dict[str, Any]) -> None:
    seen, claim = observer(), claimed(**later)

    seen.begun(claim, "echo", NOW)

    assert count(seen, "runs_started_total", tool="echo", trigger="trigger") == 0
    assert count(seen, "queue_wait_seconds_count") == 1


def test_a_clock_behind_that_of_redis_makes_no_negative_wait() -> None:
    seen, claim = observer(), claimed(waited_seconds=-5.0)

    seen.begun(claim, "echo", NOW)

    assert count(seen, "queue_wait_seconds_sum") == 0


@pytest.mark.parametrize("tool", ["../etc/passwd", "no_such", None])
def test_a_tool_that_does_not_exist_is_called_unknown(tool: str | None) -> None:
    seen, claim = observer(), claimed()

    seen.begun(claim, tool, NOW)
    seen.finished(claim, Status.FAILED, 0.5, Finished.FINISHED)

    assert count(seen, "runs_started_total", tool=UNKNOWN, trigger="trigger") == 1
    assert count(seen, "runs_ended_total", tool=UNKNOWN, status="failed") == 1


def test_names_of_tools_are_looked_up_once_and_again_only_for_a_new_one() -> None:
    names, looks = ["echo"], []
    seen = observer(lambda: looks.append(1) or names)  # type: ignore[func-returns-value]
    for tool in ("echo", "echo", "late"):
        if tool == "late":
            names.append("late")
        claim = claimed()
        seen.begun(claim, tool, NOW)

    assert count(seen, "runs_started_total", tool="late", trigger="trigger") == 1
    assert len(looks) == 2


def test_a_retry_ends_the_attempt_and_not_the_run() -> None:
    seen, claim = observer(), claimed()

    seen.begun(claim, "echo", NOW)
    seen.retried(claim, stored=True)

    assert count(seen, "attempts_retried_total", tool="echo") == 1
    assert count(seen, "outcomes_refused_total") == 0


def test_an_outcome_that_comes_too_late_is_refused_and_nothing_else() -> None:
    seen, claim, other = observer(), claimed(), claimed(priority="high")
    for one in (claim, other):
        seen.begun(one, "echo", NOW)

    seen.finished(claim, Status.COMPLETED, 0.5, Finished.STALE)
    seen.retried(other, stored=False)

    assert count(seen, "outcomes_refused_total") == 2
    assert count(seen, "runs_ended_total", tool="echo", status="completed") == 0
    assert count(seen, "attempts_retried_total", tool="echo") == 0


def test_a_run_of_a_dead_worker_that_is_ended_here_is_buried() -> None:
    seen = observer()

    seen.buried(Status.LOST, "echo")

    assert count(seen, "runs_buried_total") == 1
    assert count(seen, "runs_ended_total", tool="echo", status="lost") == 1
    assert count(seen, "run_duration_seconds_count", tool="echo", status="lost") == 0


def test_a_run_that_ends_before_it_began_has_no_duration() -> None:
    seen = observer()

    seen.ended_unbegun(Status.CANCELLED)

    assert count(seen, "runs_ended_total", tool=UNKNOWN, status="cancelled") == 1
    assert count(seen, "run_duration_seconds_count", tool=UNKNOWN, status="cancelled") == 0


def test_runs_of_the_dead_and_calls_that_redis_is_not_there_for_are_counted() -> None:
    seen = observer()

    seen.taken_over()
    seen.unavailable()

    assert count(seen, "runs_recovered_total") == count(seen, "redis_unavailable_total") == 1


def test_a_slot_that_fires_before_its_time_by_a_rounding_is_not_late() -> None:
    seen = observer()

    seen.fired(-0.001)
    seen.fired(0.25)

    assert count(seen, "cron_lateness_seconds_sum") == 0.25


# -- spans ----------------------------------------------------------------------------


@pytest.fixture
def collector() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traced(collector: InMemorySpanExporter) -> Monitor:
    """A monitor whose spans reach the collector."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(collector))
    return observer(tracing=Spans(provider))


def spans(collector: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in collector.get_finished_spans()}


def test_a_run_is_a_span_with_its_parts_below_it(traced: Monitor, collector: InMemorySpanExporter) -> None:
    claim = claimed(traceparent=TRACEPARENT, attempt=2)

    traced.begun(claim, "echo", NOW)
    traced.reporting(claim)
    traced.finished(claim, Status.COMPLETED, 0.5, Finished.FINISHED)

    made = spans(collector)
    run = made["run"].context
    assert set(made) == {"run", "queue wait", "attempt", "report"}
    assert all(one.parent == run for one in made.values() if one.name != "run")
    assert dict(made["run"].attributes or {}) == {
        "run_id": claim.order.run_id,
        "experiment_id": "exp_1",
        "tool": "echo",
        "attempt": 2,
        "status": "completed",
    }
    assert made["run"].status.is_ok  # unset, that is


def test_the_parts_of_a_run_leave_no_gap(traced: Monitor, collector: InMemorySpanExporter) -> None:
    claim = claimed()

    traced.begun(claim, "echo", NOW)
    traced.reporting(claim)
    traced.finished(claim, Status.COMPLETED, 0.5, Finished.FINISHED)

    made = spans(collector)
    assert made["run"].start_time == made["queue wait"].start_time
    assert made["queue wait"].end_time == made["attempt"].start_time
    assert (made["report"].start_time or 0) >= (made["attempt"].end_time or 0)


def test_the_parent_is_the_one_in_the_trigger(traced: Monitor, collector: InMemorySpanExporter) -> None:
    claim = claimed(traceparent=TRACEPARENT)

    traced.begun(claim, "echo", NOW)
    traced.given_back(claim)

    run = spans(collector)["run"]
    assert run.parent is not None
    assert f"{run.parent.trace_id:032x}-{run.parent.span_id:016x}" == TRACEPARENT[3:-3]


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_readable_parent_a_run_is_a_root(
    traced: Monitor, collector: InMemorySpanExporter, traceparent: str | None
) -> None:
    claim = claimed(traceparent=traceparent)

    traced.begun(claim, "echo", NOW)
    traced.given_back(claim)

    assert spans(collector)["run"].parent is None


def test_a_report_that_is_tried_again_is_one_span(traced: Monitor, collector: InMemorySpanExporter) -> None:
    claim = claimed()

    traced.begun(claim, "echo", NOW)
    for _ in range(3):
        traced.reporting(claim)
    traced.finished(claim, Status.FAILED, 0.5, Finished.FINISHED)

    names = sorted(span.name for span in collector.get_finished_spans())
    assert names == ["attempt", "queue wait", "report", "run"]
    assert spans(collector)["run"].status.description == "failed"


@pytest.mark.parametrize(("stored", "status"), [(True, "retrying"), (False, "refused")])
def test_an_attempt_that_is_not_the_end_says_what_became_of_it(
    traced: Monitor, collector: InMemorySpanExporter, stored: bool, status: str
) -> None:
    claim = claimed()

    traced.begun(claim, "echo", NOW)
    traced.retried(claim, stored=stored)

    assert (spans(collector)["run"].attributes or {})["status"] == status
    assert not spans(collector)["run"].status.is_ok


def test_an_attempt_that_cant_go_on_is_not_left_open(
    traced: Monitor, collector: InMemorySpanExporter
) -> None:
    claim = claimed()
    traced.begun(claim, "echo", NOW)

    traced.abandoned(claim)

    assert (spans(collector)["run"].attributes or {})["status"] == "broken"


# -- whether there are any ------------------------------------------------------------


def test_nobody_watching_means_no_monitor() -> None:
    assert prometheus.monitor("me", list, scraped=False, variables={}) is None


def test_scraping_alone_makes_no_spans() -> None:
    seen = prometheus.monitor("me", list, scraped=True, variables={})

    assert seen is not None
    assert type(seen.tracing) is Tracing


@pytest.mark.parametrize("variable", COLLECTORS)
def test_a_collector_without_the_extra_is_said_and_costs_nothing(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, EXPORTER, None)

    assert (
        prometheus.monitor("me", list, scraped=False, variables={variable: "http://127.0.0.1:4318"}) is None
    )


def test_a_collector_gets_the_last_spans_when_the_worker_stops(
    monkeypatch: pytest.MonkeyPatch, collector: InMemorySpanExporter
) -> None:
    monkeypatch.setitem(sys.modules, EXPORTER, SimpleNamespace(OTLPSpanExporter=lambda: collector))
    seen = prometheus.monitor("me", list, scraped=False, variables={COLLECTORS[0]: "http://127.0.0.1"})
    assert seen is not None
    claim = claimed()
    seen.begun(claim, "echo", NOW)
    seen.given_back(claim)

    seen.tracing.close()

    assert spans(collector)["run"].resource.attributes["service.name"] == "fullsend-executor"


def test_without_opentelemetry_a_service_is_observed_all_the_same() -> None:
    # redis-py imports it where it is installed, so what can be seen is that it isn't needed.
    code = """if True:
        import sys
        sys.modules["opentelemetry"] = None
        from services.executor import service
        from services.executor.monitoring import prometheus, tracing
        asked = dict.fromkeys(tracing.COLLECTORS, "http://127.0.0.1")
        assert prometheus.monitor("me", list, scraped=True, variables={})
        assert prometheus.monitor("me", list, scraped=False, variables=asked) is None
    """

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
