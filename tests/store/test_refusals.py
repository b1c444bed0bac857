"""What Redis refuses or can't do becomes one of two errors; what is refused for now has changed nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from services.executor.store import Order, Plan, Position, Store
from shared import keys
from shared.connection import connect
from shared.errors import StoreError, StoreUnavailableError
from shared.messages import Schedule
from tests.conftest import eventually
from tests.store.conftest import (
    EXPERIMENT,
    QUEUE,
    Ear,
    Run,
    Server,
    Worker,
    event_of,
    everything,
    publish,
    store_on,
)

Ask = Callable[[Run], Awaitable[Any]]


async def subscribe(store: Store) -> None:
    async with store.subscriptions.to(("a",)):
        pass


async def read_schedules(store: Store) -> list[Any]:
    return [one async for one in store.experiments.scan_schedules()]


async def begin_again(run: Run) -> Any:
    return await run.worker.begin(await run.worker.claim())


WRITES: dict[str, Ask] = {
    "enqueue": lambda run: run.worker.store.queue.enqueue(
        Order(EXPERIMENT, "trigger", request_id="r"), Position("m", 1)
    ),
    "begin": begin_again,
    "emit": lambda run: run.worker.store.runs.emit(EXPERIMENT, [event_of(run.claim, "progress")]),
    "finish": lambda run: run.finish(),
    "retry": lambda run: run.retry(60),
    "requeue": lambda run: run.requeue(),
    "log": lambda run: run.worker.store.runs.log(run.id, [{"text": "x"}]),
    "record": lambda run: run.worker.store.runs.effects(run.id).record("step", 1),
    "refuse": lambda run: run.worker.store.triggers.refuse(
        Position("m", 2), {"experiment_id": "e", "status": "x"}
    ),
    "announce": lambda run: run.worker.store.triggers.announce({"experiment_id": "e", "status": "x"}),
    "join": lambda run: run.worker.store.triggers.join("w1", keys.ear("1"), "marker", 60),
    "heartbeat": lambda run: run.worker.store.workers.heartbeat("w1", 60, listening=True),
    "plan": lambda run: run.worker.store.slots.plan([Plan("other", "x", 5)]),
    "fire": lambda run: run.worker.store.slots.fire("planned", 5, 6, [Order("planned", "cron")], "allow"),
    "speedrun": lambda run: run.worker.store.slots.speedrun([Order("other", "speedrun")], 60, 1),
    "store_schedule": lambda run: run.worker.store.experiments.store_schedule(
        Schedule(experiment_id="e", cron="x")
    ),
    "register_tool": lambda run: run.worker.store.experiments.register_tool("t", {"updated_at": "now"}),
}
READS: dict[str, Ask] = {
    "record": lambda run: run.worker.store.runs.record(run.id),
    "recall": lambda run: run.worker.store.runs.effects(run.id).recall("step"),
    "experiment": lambda run: run.worker.store.experiments.read(EXPERIMENT),
    "schedules": lambda run: read_schedules(run.worker.store),
    "due": lambda run: run.worker.store.slots.due(10),
    "planned": lambda run: run.worker.store.slots.planned(),
    "depth": lambda run: run.worker.store.queue.depth(),
    "alive": lambda run: run.worker.store.workers.alive(),
    "subscribe": lambda run: subscribe(run.worker.store),
    "claim": lambda run: run.worker.store.queue.claim("w1", 1, 50),
    "claims_of": lambda run: run.worker.store.queue.claims_of("w1"),
    "now": lambda run: run.worker.store.slots.now_ms(),
}


@pytest.fixture
async def run(worker: Worker, redis: Any) -> Run:
    """A run under way, an order that waits, and a slot that is planned."""
    await publish(redis, "flat")
    run = await worker.begun()
    await worker.queued()
    await worker.store.slots.plan([Plan("planned", "x", 5)])
    return run


async def refused(ask: Ask, run: Run) -> str:
    with pytest.raises(StoreUnavailableError) as refusal:
        await ask(run)
    return str(refusal.value)


# -- refused for now ------------------------------------------------------------------


@pytest.mark.parametrize("ask", WRITES.values(), ids=WRITES)
async def test_what_is_refused_for_want_of_memory_changed_nothing(
    ask: Ask, run: Run, redis: Any, ear: Ear
) -> None:
    await ear.all()
    heard, before = len(await ear.all()), await everything(redis)
    if ask is WRITES["begin"]:
        claim = await run.worker.claim()
        before = await everything(redis)
        ask = lambda run: run.worker.begin(claim)  # noqa: E731
    await redis.config_set("maxmemory", "1")

    for _ in range(2):
        assert "Redis refuses for now: " in await refused(ask, run)

    assert await everything(redis) == before
    assert len(await ear.all()) == heard
    await redis.config_set("maxmemory", "0")
    await ask(run)


@pytest.mark.parametrize("ask", WRITES.values(), ids=WRITES)
async def test_what_a_replica_refuses_changed_nothing_and_was_not_said(
    ask: Ask, run: Run, redis: Any, ear: Ear
) -> None:
    await ear.all()
    heard = len(await ear.all())
    if ask is WRITES["begin"]:
        claim = await run.worker.claim()
        ask = lambda run: run.worker.begin(claim)  # noqa: E731
    before = await everything(redis)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")

    for _ in range(2):
        assert "Redis refuses for now: " in await refused(ask, run)

    await redis.execute_command("REPLICAOF", "NO", "ONE")
    assert await everything(redis) == before
    assert len(await ear.all()) == heard
    await ask(run)


SAID = ["begin", "emit", "finish", "retry", "refuse", "announce", "join"]


@pytest.mark.parametrize("name", SAID)
async def test_what_may_not_be_said_changed_nothing(name: str, run: Run, redis: Any, redis_url: str) -> None:
    """Channels are denied to a new user by default, which only shows once a script publishes."""
    ask = WRITES[name]
    claim = await run.worker.claim()
    if name == "begin":
        ask = lambda run: run.worker.begin(claim)  # noqa: E731
    await redis.acl_setuser("limited", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
    before = await everything(redis)
    async with store_on(redis_url.replace("redis://", "redis://limited:x@")) as store:
        limited = Run(Worker(store), run.claim, run.stored)
        for _ in range(2):
            assert "channel" in await refused(ask, limited)

        assert await everything(redis) == before
        await redis.acl_setuser("limited", enabled=True, channels=["*"])
        await ask(limited)


@pytest.mark.parametrize(
    "rules", [{"keys": ["other:*"], "commands": ["+@all"]}, {"keys": ["*"], "commands": ["+ping"]}]
)
@pytest.mark.parametrize("ask", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
async def test_what_an_acl_denies_is_refused_for_now(
    ask: Ask, rules: dict[str, Any], run: Run, redis: Any, redis_url: str
) -> None:
    if ask in (READS["subscribe"], READS["now"], READS["schedules"]) and rules["keys"] != ["*"]:
        pytest.skip("needs no key")
    await redis.acl_setuser("limited", enabled=True, nopass=True, channels=["*"], **rules)
    before = await everything(redis)
    async with store_on(redis_url.replace("redis://", "redis://limited:x@")) as store:
        assert "Redis refuses for now: " in await refused(ask, Run(Worker(store), run.claim, run.stored))

    assert await everything(redis) == before


async def test_a_wrong_password_is_said_without_it(run: Run, redis: Any, redis_url: str) -> None:
    await redis.acl_setuser("limited", enabled=True, passwords=["+right"], commands=["+@all"], keys=["*"])
    async with store_on(redis_url.replace("redis://", "redis://limited:wrong-one@")) as store:
        message = await refused(READS["now"], Run(Worker(store), run.claim, run.stored))

    assert "wrong-one" not in message


# -- not there ------------------------------------------------------------------------


@pytest.mark.parametrize("ask", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
async def test_a_server_that_is_not_there_is_one_error(ask: Ask, run: Run, own_server: Server) -> None:
    async with store_on(own_server.url) as store:
        message = await refused(ask, Run(Worker(store), run.claim, run.stored))

    assert "Redis can't be reached: " in message


@pytest.mark.parametrize("ask", [*WRITES.values(), *READS.values()], ids=[*WRITES, *READS])
async def test_a_cut_connection_is_made_again(ask: Ask, run: Run, redis: Any) -> None:
    if ask is WRITES["begin"]:
        claim = await run.worker.claim()
        ask = lambda run: run.worker.begin(claim)  # noqa: E731
    for kind in ("normal", "pubsub"):
        await redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    try:
        await ask(run)
    except StoreUnavailableError:
        await ask(run)


async def test_a_claim_that_is_cut_off_says_so(worker: Worker, redis: Any) -> None:
    claiming = asyncio.create_task(worker.store.queue.claim("w1", 1, 60_000))
    while not int((await redis.info("clients"))["blocked_clients"]):
        await asyncio.sleep(0)
    await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    with pytest.raises(StoreUnavailableError, match="^claim: Redis can't be reached"):
        await claiming


async def test_a_claim_says_so_when_its_server_becomes_a_replica(worker: Worker, redis: Any) -> None:
    claiming = asyncio.create_task(worker.store.queue.claim("w1", 1, 60_000))
    while not int((await redis.info("clients"))["blocked_clients"]):
        await asyncio.sleep(0)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")

    with pytest.raises(StoreUnavailableError):
        await claiming


async def test_a_subscription_that_is_cut_off_says_so(store: Store, redis: Any) -> None:
    async with store.subscriptions.to((keys.MARKERS,)) as messages:
        hearing = asyncio.create_task(anext(messages))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")

        with pytest.raises(StoreUnavailableError, match="^listen: "):
            await hearing


async def test_a_server_that_comes_back_is_used_again(own_server: Server) -> None:
    await own_server.start()
    async with store_on(own_server.url) as store:
        await store.queue.create_group()
        worker = Worker(store)
        run = await worker.begun()
        own_server.kill()
        with pytest.raises(StoreUnavailableError):
            await run.finish()
        await own_server.start()

        async def finished() -> str | None:
            try:
                return await run.finish()
            except StoreUnavailableError:
                return None

        assert await eventually(finished) == "finished"


# -- wrong for good -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("enqueue", QUEUE),
        ("finish", keys.open_runs(EXPERIMENT)),
        ("retry", keys.retries()),
        ("heartbeat", keys.workers()),
        ("plan", keys.plans()),
        ("fire", keys.slots()),
        ("speedrun", keys.turns()),
        ("announce", keys.journal()),
    ],
)
async def test_a_key_of_ours_that_somebody_wrote_over_is_named_by_what_was_asked(
    name: str, key: str, run: Run, redis: Any
) -> None:
    await redis.set(key, "x")

    with pytest.raises(StoreError, match=f"^{name}: Redis answers: WRONGTYPE") as refusal:
        await WRITES[name](run)
    assert not isinstance(refusal.value, StoreUnavailableError)


async def test_an_error_of_ours_keeps_what_redis_said(store: Store, redis: Any) -> None:
    await redis.set(keys.slots(), "x")
    with pytest.raises(StoreError) as refusal:
        await store.slots.all()

    assert type(refusal.value.__cause__).__module__ == "redis.exceptions"


async def test_nothing_is_opened_before_it_is_used() -> None:
    client = connect("redis://127.0.0.1:1/0")
    await client.aclose()
