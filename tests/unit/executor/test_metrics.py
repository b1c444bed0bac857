"""What a tool says while it runs, on its way to the store."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import structlog

from services.executor.isolation.calls import Event, LogLine, Metric, Partial, Progress
from services.executor.metrics import (
    BUFFERED_EVENTS,
    EMITTED_AT_ONCE,
    PARTIAL_OVERHEAD_BYTES,
    PARTIALS_KEPT_BYTES,
    TAGS_BYTES,
    Emitter,
    event,
)
from shared.documents import json_text
from shared.errors import StoreError
from shared.log import masking


class Destination:
    """A store that records what it gets, and waits or fails on demand."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.lines: list[Any] = []
        self.batches: list[int] = []
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.faults: list[Exception] = []
        self.takes = True

    async def emit(self, batch: Sequence[Any]) -> bool:
        self.asked.set()
        await self.open.wait()
        if self.faults:
            raise self.faults.pop()
        self.events += batch
        self.batches.append(len(batch))
        return self.takes

    async def log(self, batch: Sequence[Any]) -> None:
        self.asked.set()
        await self.open.wait()
        if self.faults:
            raise self.faults.pop()
        self.lines += batch


@pytest.fixture
def destination() -> Destination:
    return Destination()


@pytest.fixture
def emitter(destination: Destination) -> Emitter:
    return Emitter("exp_1", "exp_1:1-1", destination.emit, destination.log)


async def test_secrets_are_masked_in_all_reports(destination: Destination) -> None:
    emitter = Emitter("exp_1", "exp_1:1-1", destination.emit, destination.log, masking(["hunter22"]))

    progress, metric = await emitted(
        emitter,
        destination,
        Progress(1, 2, "as hunter22"),
        Metric("by hunter22", 1.0, {"of": "hunter22", "hunter22": ["a", {"b": "hunter22"}]}),
        LogLine(1.0, "stdout", "hunter22"),
    )

    assert progress["message"] == "as ***"
    assert metric == {
        **{name: metric[name] for name in ("experiment_id", "run_id", "event")},
        "name": "by ***",
        "value": 1.0,
        "by ***": 1.0,
        "of": "***",
        "***": ["a", {"b": "***"}],
    }
    assert destination.lines[0]["text"] == "***"


async def emitted(emitter: Emitter, destination: Destination, *told: Event) -> list[dict[str, Any]]:
    """Return the events that the reports became, without their times."""
    for one in told:
        emitter.report(one)
    await emitter.drain()
    assert all(isinstance(one["timestamp"], float) for one in destination.events)
    return [{name: value for name, value in one.items() if name != "timestamp"} for one in destination.events]


def event_of(name: str, /, **members: Any) -> dict[str, Any]:
    return {"experiment_id": "exp_1", "run_id": "exp_1:1-1", "event": name} | members


# -- shapes ---------------------------------------------------------------------------


def test_an_event_has_a_time_and_no_members_that_are_none() -> None:
    made = event("e", "e:1", "progress", done=1, total=None)

    assert made.pop("timestamp") > 1.7e9
    assert made == {"experiment_id": "e", "run_id": "e:1", "event": "progress", "done": 1}


async def test_progress_is_an_event(emitter: Emitter, destination: Destination) -> None:
    told = await emitted(emitter, destination, Progress(3, 10, "x"), Progress(4, None, ""))

    assert told == [
        event_of("progress", done=3, total=10, message="x"),
        event_of("progress", done=4, message=""),
    ]


async def test_a_metric_is_also_under_its_own_name(emitter: Emitter, destination: Destination) -> None:
    told = await emitted(emitter, destination, Metric("emails_sent", 3, {"provider": "x"}))

    assert told == [event_of("metric", name="emails_sent", value=3, emails_sent=3, provider="x")]


async def test_a_value_that_is_not_finite_is_null_and_said_once(
    emitter: Emitter, destination: Destination
) -> None:
    told = await emitted(
        emitter,
        destination,
        *(Metric("loss", float(text), {"epoch": 1}) for text in ("inf", "-inf", "nan")),
    )

    assert told == [
        event_of("metric", name="loss", value=None, not_finite=text, epoch=1)
        for text in ("inf", "-inf", "nan")
    ]
    assert [line["text"] for line in destination.lines] == [
        "metric 'loss' is inf; such values are published as null"
    ]


@pytest.mark.parametrize(
    "name", ["name", "value", "event", "run_id", "experiment_id", "timestamp", "self", "", "a b"]
)
async def test_a_metric_may_have_any_name(name: str, emitter: Emitter, destination: Destination) -> None:
    [told] = await emitted(emitter, destination, Metric(name, 3, {}))

    assert (told["name"], told["value"]) == (name, 3)
    assert told.items() >= event_of("metric").items()


@pytest.mark.parametrize("tag", ["name", "value", "event", "run_id", "experiment_id", "timestamp", "self"])
async def test_a_tag_does_not_replace_a_member_of_the_event(
    tag: str, emitter: Emitter, destination: Destination
) -> None:
    [told] = await emitted(emitter, destination, Metric("sent", 3, {tag: "other", "kept": 1}))

    assert told.items() >= event_of("metric", name="sent", value=3, sent=3, kept=1).items()


async def test_partial_items_are_kept_and_not_sent(emitter: Emitter, destination: Destination) -> None:
    told = await emitted(emitter, destination, Partial(1), Partial(None), Partial({"a": 2}))

    assert told == []
    assert emitter.partials.items == [1, None, {"a": 2}]


async def test_of_endless_partial_items_the_first_are_kept_and_the_others_counted(
    emitter: Emitter, destination: Destination
) -> None:
    for number in range(12):
        emitter.report(Partial({"number": number, "text": "x" * (PARTIALS_KEPT_BYTES // 10)}))
    emitter.report(Partial("small"))

    assert [item["number"] for item in emitter.partials.items] == list(range(9))
    assert emitter.partials.dropped == 4


async def test_partial_items_count_by_bytes_and_not_by_characters(emitter: Emitter) -> None:
    for _ in range(12):
        emitter.report(Partial("€" * (PARTIALS_KEPT_BYTES // 30)))

    assert (len(emitter.partials.items), emitter.partials.dropped) == (9, 3)


@pytest.mark.parametrize("character", ["€", "\x01", "\ud800"])
async def test_tags_count_by_their_bytes_as_json(
    character: str, emitter: Emitter, destination: Destination
) -> None:
    tags = {f"tag_{number}": character * 300 for number in range(20)}

    [told] = await emitted(emitter, destination, Metric("sent", 1, tags))

    kept = {name: value for name, value in told.items() if name in tags}
    assert kept
    assert TAGS_BYTES - 2_000 < len(json_text(kept).encode()) <= TAGS_BYTES
    assert destination.lines[0]["text"].startswith("a metric has 50 tags and 4,096 bytes")


async def test_small_partial_items_count_for_the_memory_that_they_take(emitter: Emitter) -> None:
    count = PARTIALS_KEPT_BYTES // PARTIAL_OVERHEAD_BYTES
    for _ in range(count):
        emitter.report(Partial(0))

    assert len(emitter.partials.items) < count
    assert len(emitter.partials.items) + emitter.partials.dropped == count


async def test_a_single_partial_item_is_kept_however_large(emitter: Emitter) -> None:
    emitter.report(Partial("x" * PARTIALS_KEPT_BYTES))
    emitter.report(Partial(1))

    assert (len(emitter.partials.items), emitter.partials.dropped) == (1, 1)


async def test_printed_lines_are_sent_to_the_log(emitter: Emitter, destination: Destination) -> None:
    told = await emitted(emitter, destination, LogLine(1.5, "stderr", "x"), LogLine(2, "stdout", ""))

    assert told == []
    assert destination.lines == [
        {"at": "1.500000", "stream": "stderr", "text": "x"},
        {"at": "2.000000", "stream": "stdout", "text": ""},
    ]


# -- order and batches ----------------------------------------------------------------


async def test_events_keep_their_order(emitter: Emitter, destination: Destination) -> None:
    told = await emitted(emitter, destination, *(Progress(number, None, "") for number in range(1_500)))

    assert [one["done"] for one in told] == list(range(1_500))
    assert max(destination.batches) == EMITTED_AT_ONCE


async def test_a_slow_store_makes_larger_batches(emitter: Emitter, destination: Destination) -> None:
    destination.open.clear()
    emitter.report(Progress(0, None, ""))
    await destination.asked.wait()
    for number in range(1, 100):
        emitter.report(Progress(number, None, ""))
    destination.open.set()
    await emitter.drain()

    assert destination.batches == [1, 99]


async def test_of_too_many_for_a_store_that_hangs_the_last_are_kept(
    emitter: Emitter, destination: Destination
) -> None:
    destination.open.clear()
    emitter.report(Progress(-1, None, ""))
    await destination.asked.wait()
    for number in range(BUFFERED_EVENTS + 5):
        emitter.report(Progress(number, None, ""))
    destination.open.set()
    await emitter.drain()

    assert [one["done"] for one in destination.events] == [-1, *range(5, BUFFERED_EVENTS + 5)]


async def test_to_drain_is_to_have_everything_stored(emitter: Emitter, destination: Destination) -> None:
    await emitter.drain()
    emitter.report(Progress(1, None, ""))
    await emitter.drain()
    emitter.report(LogLine(1, "stdout", "x"))
    await emitter.drain()

    assert (len(destination.events), len(destination.lines)) == (1, 1)


async def test_dropped_reports_are_not_sent(emitter: Emitter, destination: Destination) -> None:
    destination.open.clear()
    emitter.report(Progress(1, None, ""))
    await destination.asked.wait()

    emitter.drop()
    destination.open.set()
    await asyncio.sleep(0)

    assert destination.events == []


async def test_after_the_run_was_taken_over_no_more_events_are_sent(
    emitter: Emitter, destination: Destination
) -> None:
    destination.takes = False
    with structlog.testing.capture_logs() as lines:
        for number in range(3):
            emitter.report(Progress(number, None, ""))
            emitter.report(LogLine(number, "stdout", "x"))
            await emitter.drain()

    assert [(line["event"], line["run_id"]) for line in lines] == [("events.refused", "exp_1:1-1")]
    assert destination.batches == [1]
    assert len(destination.lines) == 3


@pytest.mark.parametrize("told", [Progress(1, None, ""), LogLine(1, "stdout", "x")])
async def test_a_batch_that_the_store_refuses_is_dropped_alone(
    told: Event, emitter: Emitter, destination: Destination
) -> None:
    destination.faults.append(StoreError("emit: WRONGTYPE"))
    emitter.report(told)
    await emitter.drain()
    emitter.report(Progress(2, None, ""))
    emitter.report(LogLine(2, "stdout", "y"))
    await emitter.drain()

    assert [one["done"] for one in destination.events] == [2]
    assert [one["text"] for one in destination.lines] == ["y"]
