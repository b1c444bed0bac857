"""What Redis refuses or can't do becomes one of two errors; what is refused for now has changed nothing."""

from typing import Any

import pytest

from services.executor.store import Store
from shared import keys
from shared.connection import connect
from shared.errors import StoreError, StoreUnavailableError
from tests.store.asked import READS, WRITES, Ask, refused
from tests.store.conftest import (
    QUEUE,
    Ear,
    Run,
    Worker,
    everything,
    publish,
    store_on,
)

# -- refused for now ------------------------------------------------------------------


@pytest.mark.parametrize("ask", WRITES.values(), ids=WRITES)
async def test_what_is_refused_for_want_of_memory_changed_nothing(
    ask: Ask, run: Run, redis: Any, ear: Ear
) -> None:
    await ear.all()
    heard, before = len(await ear.all()), await everything(redis)
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
    before = await everything(redis)
    await redis.execute_command("REPLICAOF", "127.0.0.1", "1")

    for _ in range(2):
        assert "Redis refuses for now: " in await refused(ask, run)

    await redis.execute_command("REPLICAOF", "NO", "ONE")
    assert await everything(redis) == before
    assert len(await ear.all()) == heard
    await ask(run)


SAID = ["claim", "emit", "finish", "retry", "refuse", "announce", "join"]


@pytest.mark.parametrize("name", SAID)
async def test_what_may_not_be_said_changed_nothing(name: str, run: Run, redis: Any, redis_url: str) -> None:
    """Channels are denied to a new user by default, which only shows once a script publishes."""
    if (await redis.info("server"))["redis_version"].startswith("6."):
        pytest.skip("before Redis 7 a new user may publish everywhere, and scripts can't ask what it may")
    ask = WRITES[name]
    await redis.acl_setuser("limited", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
    before = await everything(redis)
    async with store_on(redis_url.replace("redis://", "redis://limited:x@")) as store:
        limited = Run(Worker(store), run.claim)
        for _ in range(2):
            assert "channel" in await refused(ask, limited)

        assert await everything(redis) == before
        await redis.acl_setuser("limited", enabled=True, channels=["*"])
        await ask(limited)


KEYLESS = {"subscribe", "now", "schedules"}
ASKED = WRITES | READS


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
async def test_a_command_that_an_acl_denies_is_refused_for_now(
    ask: Ask, run: Run, redis: Any, redis_url: str
) -> None:
    await denied(ask, run, redis, redis_url, keys=["*"], commands=["+ping"])


@pytest.mark.parametrize("name", sorted(set(ASKED) - KEYLESS))
async def test_a_key_that_an_acl_denies_is_refused_for_now(
    name: str, run: Run, redis: Any, redis_url: str
) -> None:
    await denied(ASKED[name], run, redis, redis_url, keys=["other:*"], commands=["+@all"])


NEEDED = {
    "enqueue": ["getbit", "get", "xadd"],
    "claim": ["xreadgroup"],
    "emit": ["hmget"],
    "log": ["hget", "xadd"],
    "finish": ["hmget", "zcount", "get"],
}
"""What scripts read, or write first: an error of these needn't mean that a key is of another type."""


@pytest.mark.parametrize(("name", "command"), [(name, one) for name in NEEDED for one in NEEDED[name]])
async def test_one_command_that_an_acl_denies_is_not_taken_for_a_key_of_another_type(
    name: str, command: str, worker: Worker, redis: Any, redis_url: str
) -> None:
    await publish(redis, "string")
    run = await worker.begun()
    await worker.queued()

    await denied(WRITES[name], run, redis, redis_url, keys=["*"], commands=["+@all", f"-{command}"])


async def test_a_state_that_an_acl_hides_is_not_passed_over(run: Run, redis: Any, redis_url: str) -> None:
    await denied(WRITES["finish"], run, redis, redis_url, keys=["*"], commands=["+@all", "-hget"])


async def test_events_that_an_acl_denies_to_keep_are_not_passed_over(
    run: Run, redis: Any, redis_url: str
) -> None:
    rules: dict[str, list[str]] = {"keys": ["*"], "channels": ["*"], "commands": ["+@all", "-rpush"]}
    await redis.acl_setuser("limited", enabled=True, nopass=True, **rules)
    async with store_on(redis_url.replace("redis://", "redis://limited:x@")) as store:
        message = await refused(WRITES["emit"], Run(Worker(store), run.claim))

    assert "Redis refuses for now: " in message


async def denied(ask: Ask, run: Run, redis: Any, redis_url: str, **rules: list[str]) -> None:
    await redis.acl_setuser("limited", enabled=True, nopass=True, channels=["*"], **rules)
    before = await everything(redis)
    async with store_on(redis_url.replace("redis://", "redis://limited:x@")) as store:
        message = await refused(ask, Run(Worker(store), run.claim))

    assert "Redis refuses for now: " in message
    assert await everything(redis) == before


async def test_a_wrong_password_is_said_without_it(run: Run, redis: Any, redis_url: str) -> None:
    await redis.acl_setuser("limited", enabled=True, passwords=["+right"], commands=["+@all"], keys=["*"])
    async with store_on(redis_url.replace("redis://", "redis://limited:wrong-one@")) as store:
        message = await refused(READS["now"], Run(Worker(store), run.claim))

    assert "wrong-one" not in message


# -- wrong for good -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("enqueue", QUEUE),
        ("retry", keys.retries()),
        ("heartbeat", keys.workers()),
        ("note_schedules", keys.noted_schedules()),
        ("fire", keys.due_times()),
        ("speedrun", keys.turns()),
    ],
)
async def test_a_key_of_ours_that_somebody_wrote_over_is_named_by_what_was_asked(
    name: str, key: str, run: Run, redis: Any
) -> None:
    await redis.set(key, "x")

    with pytest.raises(
        StoreError, match=f"^{name}: Redis answers: WRONGTYPE {key} is a Redis string; expected a "
    ) as refusal:
        await WRITES[name](run)
    assert not isinstance(refusal.value, StoreUnavailableError)


async def test_an_error_of_ours_keeps_what_redis_said(store: Store, redis: Any) -> None:
    await redis.set(keys.due_times(), "x")
    with pytest.raises(StoreError) as refusal:
        await store.due_times.all()

    assert type(refusal.value.__cause__).__module__ == "redis.exceptions"


async def test_nothing_is_opened_before_it_is_used() -> None:
    client = connect("redis://127.0.0.1:1/0")
    await client.aclose()
