"""Redis goes away, hangs or refuses, while runs are under way: they go on, and are reported once."""

import asyncio
import json
import signal
import time
from typing import Any

import pytest
from redis import Redis as BlockingRedis
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.executor import triggers
from services.executor.store.scripts import asking
from shared.errors import StoreError, StoreUnavailableError
from tests.conftest import Serve, eventually
from tests.service.conftest import Work, client_ids
from tests.service.trouble import (
    TROUBLES,
    Books,
    Log,
    Server,
    frozen,
    full,
    killed,
    none_is_held,
    queue_unheard,
    stopped,
)

RUNS = 3


@pytest.fixture
def redis_url(server: Server) -> str:
    """Where all that the tests share goes."""
    return server.url


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_an_outcome_is_held_until_it_can_be_written(
    trouble: Any, server: Server, serve: Serve, books: Books, redis: Redis, log: Log
) -> None:
    async with serve():
        await books.run(RUNS)
        async with trouble(server, redis):
            books.go()
            await log.said_of(RUNS, "redis.awaited", what_for="finish")
        await books.balance()
        await log.said_of(RUNS, "redis.returned", what_for="finish")

    assert set(books.starts().values()) == {1}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_what_a_tool_reports_is_held_and_said_once(
    trouble: Any, server: Server, serve: Serve, books: Books, redis: Redis, log: Log
) -> None:
    async with serve():
        await books.run(RUNS, words=20)
        async with trouble(server, redis):
            books.go()
            await log.said("redis.awaited", what_for="metrics")
        await books.balance()

    assert set(books.starts().values()) == {1}


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("trouble", [killed, frozen, full])
async def test_nobody_is_taken_for_dead_because_redis_was_away(
    trouble: Any, server: Server, serve: Serve, books: Books, redis: Redis, log: Log
) -> None:
    async with serve(heartbeat_ttl=1.5, concurrency=2), serve(heartbeat_ttl=1.5, concurrency=2):
        await books.run(4)
        async with trouble(server, redis):
            await log.said("redis.awaited", what_for="heartbeat", count=2)
            await asyncio.sleep(2.0)  # nothing but time passing lets a heartbeat expire
        await log.said("redis.returned", what_for="heartbeat", count=2)
        books.go()
        await books.balance()

    assert books.starts() == dict.fromkeys(range(4), 1)
    assert not log.of("run.recovered")
    assert not log.of("claim.lost")


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("trouble", [stopped, frozen])
async def test_what_waits_for_redis_says_so_and_when_it_is_back(
    trouble: Any, server: Server, serve: Serve, redis: Any, log: Log
) -> None:
    await redis.set("schedules:exp_1", "* * * * * *")
    all_of_it = {"heartbeat", "retries", "cron", "speedrun"}
    if trouble is stopped:
        all_of_it |= {"claim", "triggers", "schedules", "cancellations"}
    async with serve(schedule_mode=("trigger", "cron", "speedrun"), speedrun_interval=0.1):
        async with trouble(server, redis):
            awaited = [await log.said("redis.awaited", what_for=one) for one in all_of_it]
        for one in all_of_it:
            await log.said("redis.returned", what_for=one)

    assert all("Redis can't be reached" in lines[0]["error"] for lines in awaited)


async def test_a_long_absence_does_not_flood_the_log(server: Server, serve: Serve, log: Log) -> None:
    async with serve(schedule_mode=("trigger", "cron")):
        async with stopped(server, None):
            await log.said("redis.awaited", what_for="triggers")
            await asyncio.sleep(1.0)  # in which there are dozens of tries
        await log.said("triggers.listening", count=2)

    said = [(line["what_for"], line["error"]) for line in log.of("redis.awaited")]
    assert len(said) == len(set(said)) < 20


# -- connections --------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [["normal"], ["pubsub"], ["normal", "pubsub"]])
async def test_runs_go_on_when_their_connections_are_cut(
    kinds: list[str], serve: Serve, books: Books, redis: Any
) -> None:
    ours = {one for kind in kinds for one in await client_ids(redis, kind)}
    async with serve():
        await books.run(RUNS)
        for kind in kinds:
            for one in await client_ids(redis, kind) - ours:
                await redis.client_kill_filter(_id=one)
        books.go()
        await eventually(lambda: is_listened_to(redis), "the new subscription")
        await books.trigger()
        await books.balance()

    assert set(books.starts().values()) == {1}


async def is_listened_to(redis: Any) -> bool:
    [(_, count)] = await redis.pubsub_numsub("fullsend:execute_now")
    return bool(count)


async def test_claims_whose_answer_was_lost_are_found(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    books.go()
    async with serve() as service:
        await books.run(1)
        # What a server does for a worker that is gone before it has read the answer.
        await queue_unheard(redis, service.worker, "exp_1")
        await redis.client_kill_filter(_type="normal", skipme=True)
        await log.said("claim.found")
        await eventually(lambda: none_is_held(redis), "the end of the run")


async def test_a_subscriber_that_is_too_slow_is_cut_off_and_comes_back(
    serve: Serve, books: Books, redis: Any, redis_url: str, log: Log
) -> None:
    await redis.config_set("client-output-buffer-limit", "pubsub 64kb 32kb 1")
    async with serve():
        await books.run(1)
        with BlockingRedis.from_url(redis_url) as flooding:  # while the service reads nothing
            flood = flooding.pipeline(transaction=False)
            for _ in range(1_000):
                flood.publish("fullsend:execute_now", "nothing that could be read " * 1_000)
            flood.execute()
        await log.said("redis.awaited", what_for="triggers")
        await log.said("redis.returned", what_for="triggers")
        books.go()
        await books.trigger()
        await books.balance()

    assert books.starts() == {0: 1, 1: 1}


async def test_a_cancellation_is_not_lost_while_redis_refuses(
    server: Server, serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    async with serve():
        await books.run(1)
        [record] = await books.records()
        async with full(server, redis):
            await redis.publish("fullsend:executor:cancel", json.dumps({"run_id": record["run_id"]}))
            await log.said("redis.awaited", what_for="cancellation")
        await log.said("run.failed", status="cancelled")

    assert [one["status"] for one in await books.records()] == ["cancelled"]


# -- stopping meanwhile ---------------------------------------------------------------------


@pytest.mark.parametrize("trouble", [stopped, full])
async def test_a_service_that_is_stopped_while_redis_is_away_ends_after_the_grace_period(
    trouble: Any, server: Server, work: Work, books: Books, redis: Redis
) -> None:
    async with work(shutdown_grace=0.3) as one:
        await one.said("triggers.listening")
        await books.run(RUNS)
        async with trouble(server, redis):
            await one.said("redis.awaited", what_for="heartbeat")
            began = time.monotonic()
            one.signal(signal.SIGTERM)
            code = await one.ended()
            took_seconds = time.monotonic() - began
    books.go()
    async with work() as another:
        await another.said("triggers.listening")
        await books.results()

    assert code == 0
    assert took_seconds < 10


async def test_a_service_that_is_stopped_while_redis_hangs_ends_after_the_grace_period(
    server: Server, serve: Serve, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "LEAVE_SECONDS", 0.3)
    async with serve(shutdown_grace=0.3):
        await books.run(RUNS)
        server.freeze()
        began = time.monotonic()
    took_seconds = time.monotonic() - began
    server.thaw()
    books.go()
    async with serve():
        await books.results()

    assert took_seconds < 10


# -- how servers of all ages say it -----------------------------------------------------------

OLD = "Error running script (call to f_77a3): @user_script:48: @user_script: 48: "
NEW = " script: 77a35ecd, on @user_script:48."


@pytest.mark.parametrize(
    "text",
    [
        "OOM command not allowed when used memory > 'maxmemory'." + NEW,
        OLD + "-OOM command not allowed when used memory > 'maxmemory'.",
        "READONLY You can't write against a read only replica." + NEW,
        OLD + "-READONLY You can't write against a read only replica.",
        "The user executing the script can't run this command or subcommand" + NEW,
        OLD + "The user executing the script can't access at least one of the keys mentioned",
        "ACL failure in script: User default has no permissions to run the 'hset' command" + NEW,
        "ACL failure in script: User default has no permissions to access the 'a' key" + NEW,
        "NOPERM this user has no permissions to run the 'xreadgroup' command",
        "MISCONF Errors writing to the AOF file: No space left on device",
        OLD + "-MISCONF Valkey is configured to save RDB snapshots, but is unable to persist to disk",
        "NOREPLICAS Not enough good replicas to write." + NEW,
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "LOADING Redis is loading the dataset in memory",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ],
)
async def test_a_refusal_that_passes_is_waited_out(text: str) -> None:
    with pytest.raises(StoreUnavailableError):
        async with asking("finish"):
            raise ResponseError(text)


@pytest.mark.parametrize(
    "text",
    [
        "WRONGTYPE Operation against a key holding the wrong kind of value" + NEW,
        "BUSYGROUP Consumer Group name already exists",
        "NOGROUP No such key 'q' or consumer group 'executors'",
        "unknown command 'XAUTOCLAIM', with args beginning with: ",
        OLD + "attempt to index a nil value, as it was LOADING",
    ],
)
async def test_a_refusal_that_stays_is_not_waited_out(text: str) -> None:
    with pytest.raises(StoreError) as refused:
        async with asking("finish"):
            raise ResponseError(text)

    assert not isinstance(refused.value, StoreUnavailableError)
