"""The spans of a run, from a trigger that is part of a trace to its report, as a collector gets them."""

import sys
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.executor.monitoring.tracing import COLLECTORS
from tests.conftest import Neighbour, Serve, Tools

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TWICE = """
    from shared import toolkit

    def twice():
        if toolkit.run.attempt == 1:
            raise ConnectionError("not yet")
        return {"attempt": toolkit.run.attempt}
"""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the services of this test send their spans."""
    exporter = InMemorySpanExporter()
    monkeypatch.setitem(sys.modules, EXPORTER, SimpleNamespace(OTLPSpanExporter=lambda: exporter))
    monkeypatch.setenv(COLLECTORS[0], "http://127.0.0.1:4318")
    return exporter


def spans(collector: InMemorySpanExporter, attempt: int) -> dict[str, ReadableSpan]:
    """The spans of an attempt, by name; there is one of each."""
    made = [one for one in collector.get_finished_spans() if (one.attributes or {})["attempt"] == attempt]
    assert len({one.name for one in made}) == len(made)
    return {one.name: one for one in made}


async def test_a_triggers_trace_goes_on_in_each_attempt_of_its_run(
    serve: Serve, neighbour: Neighbour, tools: Tools, collector: InMemorySpanExporter
) -> None:
    tools("twice", TWICE)
    await neighbour.publish("exp_1", "twice", backoff_min=0.01, backoff_max=0.01)

    async with serve():
        result = await neighbour.run("exp_1", traceparent=TRACEPARENT)

    for attempt, status in ((1, "retrying"), (2, "completed")):
        made = spans(collector, attempt)
        run = made.pop("run")
        assert run.parent is not None
        assert f"{run.parent.trace_id:032x}-{run.parent.span_id:016x}" == TRACEPARENT[3:-3]
        said = dict(run.attributes or {})
        assert (said["run_id"], said["tool"], said["status"]) == (result["run_id"], "twice", status)
        assert sorted(made) == ["attempt", "queue wait", "report"]
        assert all(one.parent == run.context for one in made.values())
        times = [(one.start_time or 0, one.end_time or 0) for one in (made["queue wait"], made["attempt"])]
        assert run.start_time == times[0][0] <= times[0][1] == times[1][0] <= times[1][1]
