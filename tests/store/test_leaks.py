"""Thousands of finished runs leave in Redis what docs/redis.md says, and nothing else."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from services.executor.store import Claim, Limit, Order, Position, RunCancellation, Store
from services.executor.store.orders import PRIORITIES
from shared import keys
from shared.messages import State
from tests.store.conftest import Run, Worker, event_of, publish, together
from tests.store.test_cancel import cancel

RUNS, EXPERIMENTS, WORKERS = 3_000, 40, 8
PAGE = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
LIMIT = Limit("account", max_concurrent=RUNS, max_per_minute=6e8, burst=RUNS).encode()


def documented() -> list[re.Pattern[str]]:
    """The executor's own keys, as the table on the page names them."""
    table = PAGE.partition("## The executor's own")[2]
    names = itertools.chain(
        *(re.findall(r"`([^`]+)`", row) for row in re.findall(r"^\| (`.+?`) \|", table, re.M))
    )
    return list(map(pattern, names))


def pattern(name: str) -> re.Pattern[str]:
    """The keys that are meant by a name such as `queue:{priority}`."""
    return re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(f"fullsend:executor:{name}")))


def lasting() -> list[re.Pattern[str]]:
    """The keys that the page says are never deleted."""
    [told] = re.findall(r"these keys remain: (.+?)\.", " ".join(PAGE.split()))
    return [pattern(name) for name in [*re.findall(r"`([^`]+)`", told), "queue:{priority}"]]


async def submit(store: Store, numbers: Iterable[int]) -> None:
    """Queue runs in all the ways that there are; some are cancelled while they wait."""
    for number in numbers:
        name, priority = f"exp:{number % EXPERIMENTS}", PRIORITIES[number % 3]
        request_id = f"r{number}" if number % 5 == 0 else None
        position = Position("marker:channel", number) if number % 2 else None
        order = Order(name, "trigger", priority=priority, request_id=request_id)
        timestamp = await store.queue.enqueue(order, position)
        if number % 50 == 0:
            assert await cancel(store, f"{name}:{timestamp}") is RunCancellation.CANCELLED


async def perform(worker: Worker, claim: Claim) -> None:
    """Bring a claim to an end, of one kind or another."""
    run, kind = Run(worker, claim), int(claim.entry[-1])
    if kind == 1:
        await worker.store.runs.emit(claim, [event_of(claim, "progress")])
        await worker.store.runs.log(run.id, [{"at": "1.0", "stream": "stdout", "text": "x"}])
        await worker.store.runs.checkpoints(run.id).record("step", 1)
    if kind == 2 and claim.order.attempt == 1:
        await run.retry()
    elif kind == 3 and claim.order.losses == 0:
        await worker.store.queue.requeue(claim, claim.order.after_loss({}))
    else:
        await run.finish(State.FAILED if kind == 4 else State.RUN)


async def work(store: Store, name: str) -> int:
    """Perform until nothing is left; how many claims there were."""
    worker, count = Worker(store, name), 0
    await store.workers.tell_tools(name, {"t": LIMIT}, 60)
    await store.workers.heartbeat(name, 60, listening=True)
    while True:
        claims = (await store.queue.claim(name, 50)).claims
        for claim in claims:
            await perform(worker, claim)
        count += len(claims)
        if (
            not claims
            and await store.queue.promote() == (0, None)
            and (await store.queue.depth()).waiting == 0
        ):
            await store.workers.forget(name)
            return count


async def test_thousands_of_runs_leave_what_the_page_says(worker: Worker, redis: Any) -> None:
    store = worker.store
    for number in range(EXPERIMENTS):
        await publish(redis, "flat", experiment_id=f"exp:{number}")
    await together(*(submit(store, range(first, RUNS, WORKERS)) for first in range(WORKERS)))
    counts = await together(*(work(store, f"w{number}") for number in range(WORKERS)))
    ttl_ms = {name: await redis.pttl(name) for name in await redis.keys("*")}
    own = {name for name in ttl_ms if name.startswith("fullsend:executor:")}
    known = documented()

    assert sum(counts) >= RUNS
    assert len([name for name in ttl_ms if name.startswith("experiment_runs:")]) == RUNS
    assert len([name for name in ttl_ms if name.startswith("metrics:")]) == EXPERIMENTS
    assert {name for name in own if not any(one.fullmatch(name) for one in known)} == set()
    remaining = {name for name in own if ttl_ms[name] == -1}
    assert {name for name in remaining if not any(one.fullmatch(name) for one in lasting())} == set()
    others = set(ttl_ms) - own - {keys.experiment(f"exp:{number}") for number in range(EXPERIMENTS)}
    assert all(0 < ttl_ms[name] <= 3_600_000 for name in others)
    assert all(name.startswith(("experiment_runs:", "metrics:")) for name in others)
    assert [await redis.xlen(keys.queue(priority)) for priority in PRIORITIES] == [0, 0, 0]
    statuses = [await redis.hget(name, "status") for name in others if name.startswith("experiment_runs:")]
    assert set(statuses) == {"completed", "failed", "cancelled"}
    assert await redis.xlen(keys.journal()) <= 1_000 + 100
