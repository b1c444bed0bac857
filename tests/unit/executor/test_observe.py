"""What an observer counts, and the spans it has made."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.executor import observe, report
from services.executor.monitoring.tracing import COLLECTORS, Spans, Tracing
from services.executor.observe import UNKNOWN, Observer
from services.executor.outcome import Status
from services.executor.store import Claim, Finished, Order, Stored
from shared.errors import StoreError, StoreUnavailableError

NOW = time.time()
EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def claimed(worker: str = "me", *, waited_seconds: float = 2.0, **members: Any) -> Claim:
    """A claim of an order that had waited."""
    entry = f"{round((NOW - waited_seconds) * 1_000)}-0"
    order = Order("exp_1", members.pop("trigger", "trigger"), timestamp=entry, **members)
    return Claim("queue", entry, worker, order)


def record(claim: Claim, tool: str | None) -> Mapping[str, Any]:
    """The record of an attempt that began now."""
    return report.begin_fields(claim, tool, None, {}, NOW)


def end(status: Status, seconds: float = 0.5) -> Mapping[str, Any]:
    """What the end adds to the record."""
    return {"status": status.value, "duration_seconds": f"{seconds:.6f}"}


def observer(tools: Callable[[], list[str]] = lambda: ["echo"], tracing: Tracing | None = None) -> Observer:
    return Observer("me", tools, tracing or Tracing())


def count(seen: Observer, name: str, **labels: str) -> float:
    """The value of a series, 0 when there is none."""
    return seen.registry.get_sample_value(f"fullsend_{name}", labels) or 0.0


# -- counters -------------------------------------------------------------------------


def test_a_run_that_completes_is_counted_once_on_each_side() -> None:
    seen, claim = observer(), claimed()

    seen.began(claim, record(claim, "echo"))
    seen.finished(claim, Stored.nothing(), end(Status.COMPLETED), Finished.FINISHED)

    assert count(seen, "runs_started_total", tool="echo", trigger="trigger") == 1
    assert count(seen, "runs_ended_total", tool="echo", status="completed") == 1
    assert count(seen, "run_duration_seconds_sum", tool="echo", status="completed") == 0.5
    assert count(seen, "queue_wait_seconds_sum") == pytest.approx(2.0, abs=0.01)


def test_an_end_whose_answer_was_lost_counts_when_it_is_sent_again() -> None:
    seen, claim = observer(), claimed()

    seen.began(claim, record(claim, "echo"))
    seen.finished(claim, Stored.nothing(), end(Status.FAILED), Finished.DONE)

    assert count(seen, "runs_ended_total", tool="echo", status="failed") == 1


@pytest.mark.parametrize("later", [{"attempt": 2}, {"losses": 1}])
def test_a_later_attempt_is_not_another_run(later: dict[str, Any]) -> None:
    seen, claim = observer(), claimed(**later)

    seen.began(claim, record(claim, "echo"))

    assert count(seen, "runs_started_total", tool="echo", trigger="trigger") == 0
    assert count(seen, "queue_wait_seconds_count") == 1


def test_a_clock_behind_that_of_redis_makes_no_negative_wait() -> None:
    seen, claim = observer(), claimed(waited_seconds=-5.0)

    seen.began(claim, record(claim, "echo"))

    assert count(seen, "queue_wait_seconds_sum") == 0


@pytest.mark.parametrize("tool", ["../etc/passwd", "no_such", None])
def test_a_tool_that_does_not_exist_is_called_unknown(tool: str | None) -> None:
    seen, claim = observer(), claimed()

    seen.began(claim, record(claim, tool))
    seen.finished(claim, Stored.nothing(), end(Status.FAILED), Finished.FINISHED)

    assert count(seen, "runs_started_total", tool=UNKNOWN, trigger="trigger") == 1
    assert count(seen, "runs_ended_total", tool=UNKNOWN, status="failed") == 1


def test_names_of_tools_are_looked_up_once_and_again_only_for_a_new_one() -> None:
    names, looks = ["echo"], []
    seen = observer(lambda: looks.append(1) or names)  # type: ignore[func-returns-value]
    for tool in ("echo", "echo", "late"):
        if tool == "late":
            names.append("late")
        claim = claimed()
        seen.began(claim, record(claim, tool))

    assert count(seen, "runs_started_total", tool="late", trigger="trigger") == 1
    assert len(looks) == 2


def test_a_retry_ends_the_attempt_and_not_the_run() -> None:
    seen, claim = observer(), claimed()

    seen.began(claim, record(claim, "echo"))
    seen.retried(claim, stored=True)

    assert count(seen, "attempts_retried_total", tool="echo") == 1
    assert count(seen, "outcomes_refused_total") == 0


def test_an_outcome_that_comes_too_late_is_refused_and_nothing_else() -> None:
    seen, claim, other = observer(), claimed(), claimed(priority="high")
    for one in (claim, other):
        seen.began(one, record(one, "echo"))

    seen.finished(claim, Stored.nothing(), end(Status.COMPLETED), Finished.STALE)
    seen.retried(other, stored=False)

    assert count(seen, "outcomes_refused_total") == 2
    assert count(seen, "runs_ended_total", tool="echo", status="completed") == 0
    assert count(seen, "attempts_retried_total", tool="echo") == 0


def test_a_run_of_a_dead_worker_that_is_ended_here_is_buried_once() -> None:
    seen, claim = observer(), claimed("dead")

    seen.finished(claim, Stored.nothing(), end(Status.LOST), Finished.FINISHED)
    seen.finished(claim, Stored.nothing(), end(Status.LOST), Finished.DONE)  # somebody else was first

    assert count(seen, "runs_buried_total") == 1
    assert count(seen, "runs_ended_total", tool=UNKNOWN, status="lost") == 1
    assert count(seen, "run_duration_seconds_count", tool=UNKNOWN, status="lost") == 0


def test_only_claims_of_others_are_recovered() -> None:
    seen = observer()

    seen.recovered(claimed("me"))
    seen.recovered(claimed("dead"))

    assert count(seen, "runs_recovered_total") == 1


async def test_what_redis_is_not_there_for_is_counted_and_still_raised() -> None:
    seen = observer()

    async def fail(error: StoreError) -> None:
        raise error

    with pytest.raises(StoreUnavailableError):
        await seen.asked(fail(StoreUnavailableError("away")))
    with pytest.raises(StoreError):
        await seen.asked(fail(StoreError("WRONGTYPE")))

    assert count(seen, "redis_unavailable_total") == 1


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
def traced(collector: InMemorySpanExporter) -> Observer:
    """An observer whose spans reach the collector."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(collector))
    return observer(tracing=Spans(provider))


def spans(collector: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in collector.get_finished_spans()}


def test_a_run_is_a_span_with_its_parts_below_it(traced: Observer, collector: InMemorySpanExporter) -> None:
    claim = claimed(traceparent=TRACEPARENT, attempt=2)

    traced.began(claim, record(claim, "echo"))
    traced.reporting(claim)
    traced.finished(claim, Stored.nothing(), end(Status.COMPLETED), Finished.FINISHED)

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


def test_the_parts_of_a_run_leave_no_gap(traced: Observer, collector: InMemorySpanExporter) -> None:
    claim = claimed()

    traced.began(claim, record(claim, "echo"))
    traced.reporting(claim)
    traced.finished(claim, Stored.nothing(), end(Status.COMPLETED), Finished.FINISHED)

    made = spans(collector)
    assert made["run"].start_time == made["queue wait"].start_time
    assert made["queue wait"].end_time == made["attempt"].start_time
    assert (made["report"].start_time or 0) >= (made["attempt"].end_time or 0)


def test_the_parent_is_the_one_in_the_trigger(traced: Observer, collector: InMemorySpanExporter) -> None:
    claim = claimed(traceparent=TRACEPARENT)

    traced.began(claim, record(claim, "echo"))
    traced.given_back(claim)

    run = spans(collector)["run"]
    assert run.parent is not None
    assert f"{run.parent.trace_id:032x}-{run.parent.span_id:016x}" == TRACEPARENT[3:-3]


@pytest.mark.parametrize("traceparent", [None, "", "nonsense", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_without_a_readable_parent_a_run_is_a_root(
    traced: Observer, collector: InMemorySpanExporter, traceparent: str | None
) -> None:
    claim = claimed(traceparent=traceparent)

    traced.began(claim, record(claim, "echo"))
    traced.given_back(claim)

    assert spans(collector)["run"].parent is None


def test_a_report_that_is_tried_again_is_one_span(traced: Observer, collector: InMemorySpanExporter) -> None:
    claim = claimed()

    traced.began(claim, record(claim, "echo"))
    for _ in range(3):
        traced.reporting(claim)
    traced.finished(claim, Stored.nothing(), end(Status.FAILED), Finished.FINISHED)

    names = sorted(span.name for span in collector.get_finished_spans())
    assert names == ["attempt", "queue wait", "report", "run"]
    assert spans(collector)["run"].status.description == "failed"


@pytest.mark.parametrize(("stored", "status"), [(True, "retrying"), (False, "refused")])
def test_an_attempt_that_is_not_the_end_says_what_became_of_it(
    traced: Observer, collector: InMemorySpanExporter, stored: bool, status: str
) -> None:
    claim = claimed()

    traced.began(claim, record(claim, "echo"))
    traced.retried(claim, stored=stored)

    assert (spans(collector)["run"].attributes or {})["status"] == status
    assert not spans(collector)["run"].status.is_ok


async def test_an_attempt_that_the_store_can_not_work_with_is_not_left_open(
    traced: Observer, collector: InMemorySpanExporter
) -> None:
    claim = claimed()
    traced.began(claim, record(claim, "echo"))

    async def fail() -> None:
        raise StoreError("WRONGTYPE")

    with pytest.raises(StoreError):
        await traced.asked(fail(), claim)

    assert (spans(collector)["run"].attributes or {})["status"] == "broken"


# -- whether there are any ------------------------------------------------------------


def test_nobody_watching_means_no_observer() -> None:
    assert observe.wanted("me", list, scraped=False, variables={}) is None


def test_scraping_alone_makes_no_spans() -> None:
    seen = observe.wanted("me", list, scraped=True, variables={})

    assert seen is not None
    assert type(seen.tracing) is Tracing


@pytest.mark.parametrize("variable", COLLECTORS)
def test_a_collector_without_the_extra_is_said_and_costs_nothing(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, EXPORTER, None)

    assert observe.wanted("me", list, scraped=False, variables={variable: "http://127.0.0.1:4318"}) is None


def test_a_collector_gets_the_last_spans_when_the_worker_stops(
    monkeypatch: pytest.MonkeyPatch, collector: InMemorySpanExporter
) -> None:
    monkeypatch.setitem(sys.modules, EXPORTER, SimpleNamespace(OTLPSpanExporter=lambda: collector))
    seen = observe.wanted("me", list, scraped=False, variables={COLLECTORS[0]: "http://127.0.0.1"})
    assert seen is not None
    claim = claimed()
    seen.began(claim, record(claim, "echo"))
    seen.given_back(claim)

    seen.tracing.close()

    assert spans(collector)["run"].resource.attributes["service.name"] == "fullsend-executor"


def test_without_opentelemetry_a_service_is_observed_all_the_same() -> None:
    # redis-py imports it where it is installed, so what can be seen is that it isn't needed.
    code = """if True:
        import sys
        sys.modules["opentelemetry"] = None
        from services.executor import observe, service
        from services.executor.monitoring import tracing
        asked = dict.fromkeys(tracing.COLLECTORS, "http://127.0.0.1")
        assert observe.wanted("me", list, scraped=True, variables={})
        assert observe.wanted("me", list, scraped=False, variables=asked) is None
    """

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
