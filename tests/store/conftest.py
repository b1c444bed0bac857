"""What the tests of the store share: a worker at its simplest, and everything that a neighbour could see."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from services.executor.store import Claim, Finished, NotedSchedule, Order, Store
from services.executor.store.claims import GROUP, QUEUES
from shared import keys
from shared.connection import connect, connect_blocking
from shared.messages import State
from tests.conftest import KEPT, Neighbour
from tests.service.trouble import Server

EXPERIMENT = "exp:1"
QUEUE = keys.queue("normal")
"""Where orders wait that say nothing about their priority."""


class Worker:
    """What a worker asks of the store, with fields and events that are easy to find again."""

    def __init__(self, store: Store, name: str = "w1") -> None:
        self.store = store
        self.name = name
        self._has_told = False

    async def queued(
        self, experiment_id: str = EXPERIMENT, limits: Mapping[str, Any] | None = None, **members: Any
    ) -> str:
        """The timestamp of a new run; with `limits`, its order brings an experiment that has these."""
        if limits is not None:
            members["experiment"] = {"tool": "t", **limits}
        timestamp = await self.store.queue.enqueue(Order(experiment_id, "trigger", **members))
        assert timestamp is not None
        return timestamp

    async def ready(self) -> None:
        """Tell that this worker can begin the tool `t`."""
        if not self._has_told:
            await self.store.workers.tell_tools(self.name, {"t": ""}, 60)
            self._has_told = True

    async def take(self, room: int = 1, missing: Sequence[str] = ()) -> Sequence[Claim]:
        """The claims that there are now."""
        await self.ready()
        return (await self.store.queue.claim(self.name, room, missing)).claims

    async def claim(self) -> Claim:
        """The next claim; waits for it."""
        async with asyncio.timeout(10):
            while True:
                for claim in await self.take():
                    return claim
                await self.store.queue.wait(self.name, 5)

    async def claimed(
        self, experiment_id: str = EXPERIMENT, limits: Mapping[str, Any] | None = None, **members: Any
    ) -> Claim:
        """A new run, held by this worker."""
        await self.queued(experiment_id, limits, **members)
        return await self.claim()

    async def begun(
        self, experiment_id: str = EXPERIMENT, limits: Mapping[str, Any] | None = None, **members: Any
    ) -> "Run":
        """A run under way."""
        return Run(self, await self.claimed(experiment_id, limits, **members))


@dataclass(frozen=True)
class Run:
    """A run under way in a worker."""

    worker: Worker
    claim: Claim

    @property
    def id(self) -> str:
        return self.claim.order.run_id

    async def finish(self, state: State = State.RUN) -> Finished:
        """End it: `state` is the experiment's then."""
        status = "completed" if state is State.RUN else "failed"
        return await self.worker.store.runs.finish(
            self.claim,
            state,
            {"status": status, "result": [1], "error": None},
            [event_of(self.claim, "items_processed"), event_of(self.claim, "run_completed")],
            result_of(self.claim, status),
        )

    async def reject(self) -> Finished:
        """End it as a run that never began."""
        return await self.worker.store.runs.reject(
            self.claim,
            {"status": "cancelled"},
            [event_of(self.claim, "error")],
            result_of(self.claim, "cancelled"),
        )

    async def retry(self, delay_seconds: float = 0.0) -> bool:
        """Let another attempt follow."""
        order = self.claim.order.after_failure({"attempt": self.claim.order.attempt, "error": "refused"})
        return await self.worker.store.runs.retry(
            self.claim,
            order,
            delay_seconds,
            {"attempts": list(order.history)},
            [event_of(self.claim, "run_retrying")],
        )

    async def requeue(self) -> bool:
        """Give it back."""
        return await self.worker.store.queue.requeue(self.claim, self.claim.order)


def event_of(claim: Claim, name: str) -> dict[str, Any]:
    """A metric event of the run."""
    order = claim.order
    return {
        "experiment_id": order.experiment_id,
        "run_id": order.run_id,
        "event": name,
        "attempt": order.attempt,
    }


def result_of(claim: Claim, status: str) -> dict[str, Any]:
    """The message about the run's end."""
    return {"experiment_id": claim.order.experiment_id, "run_id": claim.order.run_id, "status": status}


async def held(worker: Worker, redis: Any, experiment_id: str = EXPERIMENT, **members: Any) -> Claim:
    """A new run whose order a worker holds, and that has not begun: an answer was lost, say."""
    timestamp = await worker.queued(experiment_id, **members)
    await redis.xreadgroup(GROUP, worker.name, {keys.queue(members.get("priority", "normal")): ">"})
    claims = await worker.store.queue.claims_of(worker.name)
    return next(claim for claim in claims if claim.entry == timestamp)


@pytest.fixture
async def worker(store: Store) -> Worker:
    """A worker on an empty server."""
    await store.queue.create_group()
    return Worker(store)


@pytest.fixture
async def run(worker: Worker, redis: Any) -> Run:
    """A run under way, an order that waits, and a due time."""
    await publish(redis, "flat")
    run = await worker.begun()
    await worker.queued()
    await worker.store.due_times.note([NotedSchedule("scheduled", "x", 5)])
    return run


class Ear:
    """Hears what is published for neighbours, and knows when it has heard everything."""

    def __init__(self, neighbour: Neighbour) -> None:
        self.neighbour = neighbour
        self._calls = 0

    async def all(self) -> list[tuple[str, dict[str, Any]]]:
        """Everything that was published until now: channel and message, in order."""
        self._calls += 1
        end = {"experiment_id": f"end of test {self._calls}"}
        await self.neighbour.redis.publish(keys.RESULTS, json.dumps(end))
        await self.neighbour.result(end["experiment_id"])
        return [one for one in self.neighbour.heard if not one[1]["experiment_id"].startswith("end of test")]

    async def names(self) -> list[str]:
        """The events and the statuses of results, in order."""
        return [message.get("event") or message["status"] for _, message in await self.all()]


@pytest.fixture
def ear(neighbour: Neighbour) -> Ear:
    return Ear(neighbour)


async def everything(redis: Any) -> dict[str, str]:
    """All keys with all that is in them; two that are equal say that nothing was changed in between."""
    return {name: await redis.dump(name) for name in sorted(await redis.keys("*"))}


async def journal(redis: Any) -> list[tuple[str, dict[str, Any]]]:
    """The journal: kinds and messages, in order."""
    entries = await redis.xrange(keys.journal())
    return [(fields["kind"], json.loads(fields["data"])) for _, fields in entries]


async def metrics(redis: Any, experiment_id: str = EXPERIMENT) -> list[dict[str, Any]]:
    """The metric list of an experiment."""
    return [json.loads(text) for text in await redis.lrange(keys.metrics(experiment_id), 0, -1)]


async def pending(redis: Any) -> int:
    """How many orders are held by workers."""
    return sum([int((await redis.xpending(queue, GROUP))["pending"]) for queue in QUEUES])


async def orders(redis: Any) -> list[Order]:
    """What is in the queue, claimed or not."""
    return [
        Order.decode(fields["order"], entry)
        for queue in QUEUES
        for entry, fields in await redis.xrange(queue)
    ]


Document = Mapping[str, Any]


async def publish(
    redis: Any, shape: str, state: str | None = "ready", experiment_id: str = EXPERIMENT
) -> None:
    """An experiment in one of the shapes that neighbours write."""
    key, states = keys.experiment(experiment_id), {} if state is None else {"state": state}
    match shape:
        case "flat":
            await redis.hset(key, mapping={"tool": "t", "params": "{}", "note": "kept"} | states)
        case "nested":
            await redis.hset(key, mapping={"execution": '{"tool": "t"}', "note": "kept"} | states)
        case "spec":
            spec = "experiment: {execution: {tool: t}, state: draft}"
            await redis.hset(key, mapping={"spec": spec, "note": "kept"} | states)
        case "string":
            await redis.set(key, json.dumps({"execution": {"tool": "t"}, "note": "kept"} | states))
        case "wrapped":
            document = {"experiment": {"execution": {"tool": "t"}, "note": "kept"} | states, "version": 2}
            await redis.set(key, json.dumps(document))


SHAPES = ["flat", "nested", "spec", "string", "wrapped"]
KINDS = ["flat", "string", "wrapped"]
"""Shapes whose state is kept in different places."""


async def state_of(redis: Any, experiment_id: str = EXPERIMENT) -> str | None:
    """The experiment's state as a neighbour reads it; checks that all else is as it was published."""
    key = keys.experiment(experiment_id)
    if await redis.type(key) == "hash":
        fields = await redis.hgetall(key)
        assert fields["note"] == "kept"
        return str(fields["state"]) if "state" in fields else None
    root = json.loads(await redis.get(key))
    body = root.get("experiment", root)
    assert {**body, "state": ""} == {"execution": {"tool": "t"}, "note": "kept", "state": ""}
    return body.get("state")  # type: ignore[no-any-return]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    """A server that is not started yet."""
    directory = tmp_path / "own"
    directory.mkdir()
    server = Server(directory)
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def store_on(url: str, **kept: int) -> AsyncIterator[Store]:
    """Another store, on any server; `kept` differs from the usual retention."""
    client, patient = connect(url), connect_blocking(url)
    try:
        yield Store.on(client, patient, replace(KEPT, **kept))
    finally:
        await client.aclose()
        await patient.aclose()


async def together(*asked: Any) -> Sequence[Any]:
    """The answers of several that ask at once."""
    return await asyncio.gather(*asked)
