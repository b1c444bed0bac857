"""The methods of the store, as a table."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.executor.store import Decision, NotedSchedule, Order, Position, Store
from shared import keys
from shared.errors import StoreUnavailableError
from shared.schedules import Schedule
from tests.store.conftest import EXPERIMENT, Run, event_of

Ask = Callable[[Run], Awaitable[Any]]


async def subscribe(store: Store) -> None:
    async with store.subscriptions.to(("a",)):
        pass


async def read_schedules(store: Store) -> list[Any]:
    return [one async for one in store.experiments.scan_schedules()]


WRITES: dict[str, Ask] = {
    "enqueue": lambda run: run.worker.store.queue.enqueue(
        Order(EXPERIMENT, "trigger", request_id="r"), Position("m", 1)
    ),
    "claim": lambda run: run.worker.store.queue.claim("w1", 1),
    "emit": lambda run: run.worker.store.runs.emit(run.claim, [event_of(run.claim, "progress")]),
    "finish": lambda run: run.finish(),
    "retry": lambda run: run.retry(60),
    "requeue": lambda run: run.requeue(),
    "log": lambda run: run.worker.store.runs.log(run.id, [{"text": "x"}]),
    "record": lambda run: run.worker.store.runs.checkpoints(run.id).record("step", 1),
    "keep_partials": lambda run: run.worker.store.runs.checkpoints(run.id).keep_partials(["a", "b"]),
    "refuse": lambda run: run.worker.store.triggers.refuse(
        Position("m", 2), {"experiment_id": "e", "status": "x"}
    ),
    "announce": lambda run: run.worker.store.triggers.announce({"experiment_id": "e", "status": "x"}),
    "join": lambda run: run.worker.store.triggers.join("w1", keys.ear("1"), "marker", 60),
    "heartbeat": lambda run: run.worker.store.workers.heartbeat("w1", 60, listening=True),
    "note_schedules": lambda run: run.worker.store.due_times.note([NotedSchedule("other", "x", 5)]),
    "fire": lambda run: run.worker.store.due_times.fire(
        Decision("scheduled", 5, 6, [Order("scheduled", "cron")], "allow")
    ),
    "speedrun": lambda run: run.worker.store.due_times.speedrun([Order("other", "speedrun")], 60, 1),
    "store_schedule": lambda run: run.worker.store.experiments.store_schedule(
        Schedule(experiment_id="e", cron="x")
    ),
    "register_tool": lambda run: run.worker.store.experiments.register_tool("t", {"updated_at": "now"}),
}
READS: dict[str, Ask] = {
    "record": lambda run: run.worker.store.runs.record(run.id),
    "recall": lambda run: run.worker.store.runs.checkpoints(run.id).recall("step"),
    "experiment": lambda run: run.worker.store.experiments.read(EXPERIMENT),
    "schedules": lambda run: read_schedules(run.worker.store),
    "tools": lambda run: run.worker.store.experiments.read_tools(["t"]),
    "due": lambda run: run.worker.store.due_times.due(),
    "noted": lambda run: run.worker.store.due_times.noted(),
    "depth": lambda run: run.worker.store.queue.depth(),
    "alive": lambda run: run.worker.store.workers.alive(),
    "subscribe": lambda run: subscribe(run.worker.store),
    "wait": lambda run: run.worker.store.queue.wait("w1", 0.05),
    "claims_of": lambda run: run.worker.store.queue.claims_of("w1"),
    "now": lambda run: run.worker.store.due_times.now_ms(),
}


async def refused(ask: Ask, run: Run) -> str:
    with pytest.raises(StoreUnavailableError) as refusal:
        await ask(run)
    return str(refusal.value)
