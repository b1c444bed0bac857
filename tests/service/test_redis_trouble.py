"""Redis goes away, hangs or refuses, while runs are under way: they go on, and are reported once."""

import asyncio
import contextlib
import json
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis

from services.executor import patience, triggers
from services.executor.store import scripts
from shared import keys
from tests.conftest import Serve, Tools, eventually
from tests.service.conftest import Work, client_ids
from tests.service.trouble import STEADY, Books, Log, Server

RUNS = 3
Trouble = Callable[[], contextlib.AbstractAsyncContextManager[None]]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The server of this test, to be broken."""
    one = Server(tmp_path / "redis")
    await one.start()
    yield one
    one.kill()


@pytest.fixture
def redis_url(server: Server) -> str:
    """Where all that the tests share goes."""
    return server.url


@pytest.fixture
def books(redis: Redis, tools: Tools, tmp_path: Path) -> Books:
    tools("steady", STEADY)
    return Books(redis, tmp_path)


@pytest.fixture
def log() -> Iterator[Log]:
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as lines:
        yield Log(lines)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is not waited for as long as usual."""
    monkeypatch.setattr(scripts, "COMMAND_TIMEOUT_SECONDS", 0.5)


# -- kinds of trouble -------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stopped(server: Server, _: Any) -> AsyncIterator[None]:
    server.stop()
    yield
    await server.start()


@contextlib.asynccontextmanager
async def killed(server: Server, _: Any) -> AsyncIterator[None]:
    server.kill()
    yield
    await server.start()


@contextlib.asynccontextmanager
async def frozen(server: Server, _: Any) -> AsyncIterator[None]:
    server.freeze()
    yield
    server.thaw()


@contextlib.asynccontextmanager
async def full(_: Server, redis: Any) -> AsyncIterator[None]:
    await redis.config_set("maxmemory", 1)
    yield
    await redis.config_set("maxmemory", 0)


@contextlib.asynccontextmanager
async def demoted(server: Server, redis: Any) -> AsyncIterator[None]:
    await redis.replicaof("127.0.0.1", server.port + 1 if server.port < 65_535 else server.port - 1)
    yield
    await redis.replicaof("NO", "ONE")


@contextlib.asynccontextmanager
async def forbidden(_: Server, redis: Any) -> AsyncIterator[None]:
    await redis.acl_setuser("default", enabled=True, categories=["-@write"])
    yield
    await redis.acl_setuser("default", enabled=True, categories=["+@all"])


TROUBLES = [stopped, killed, frozen, full, demoted, forbidden]


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
@pytest.mark.parametrize("trouble", TROUBLES)
async def test_nobody_is_taken_for_dead_because_redis_was_away(
    trouble: Any, server: Server, serve: Serve, books: Books, redis: Redis, log: Log
) -> None:
    async with serve(heartbeat_ttl=0.6, concurrency=2), serve(heartbeat_ttl=0.6, concurrency=2):
        await books.run(4)
        async with trouble(server, redis):
            await log.said("redis.awaited", what_for="heartbeat", count=2)
            await asyncio.sleep(1.0)  # nothing but time passing lets a heartbeat expire
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
            await asyncio.sleep(2.0)  # in which there are dozens of tries
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


async def queue_unheard(redis: Any, worker: str, experiment_id: str) -> str:
    """Hand a new run to `worker`, as if it had asked for it; nobody can come between."""
    order = json.dumps({"experiment_id": experiment_id, "trigger": "trigger", "params": {"number": 7}})
    entry = await redis.eval(
        """
        redis.pcall('XGROUP', 'CREATE', KEYS[1], 'executors', '0', 'MKSTREAM')
        local entry = redis.call('XADD', KEYS[1], '*', 'order', ARGV[1])
        redis.call('ZADD', KEYS[2], 0, entry)
        redis.call('XREADGROUP', 'GROUP', 'executors', ARGV[2], 'STREAMS', KEYS[1], '>')
        return entry
        """,
        2,
        keys.queue("normal"),
        keys.open_runs(experiment_id),
        order,
        worker,
    )
    return str(entry)


async def queue(redis: Any, order: dict[str, Any], timestamp: str, *, spoilt: bool = False) -> None:
    """Queue a run under a timestamp of our choice; its record is no hash when it is to be `spoilt`."""
    async with redis.pipeline(transaction=True) as pipe:
        if spoilt:
            pipe.set(keys.run(f"{order['experiment_id']}:{timestamp}"), "somebody else's")
        pipe.xadd(keys.queue("normal"), {"order": json.dumps(order)}, id=timestamp)
        pipe.zadd(keys.open_runs(order["experiment_id"]), {timestamp: 0})
        await pipe.execute()


async def none_is_held(redis: Any) -> bool:
    return not await redis.xlen(keys.queue("normal"))


async def test_a_subscriber_that_is_too_slow_is_cut_off_and_comes_back(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    await redis.config_set("client-output-buffer-limit", "pubsub 64kb 32kb 1")
    async with serve():
        await books.run(1)
        flood = redis.pipeline(transaction=False)
        for _ in range(1_000):
            flood.publish("fullsend:execute_now", "nothing that could be read " * 1_000)
        await flood.execute()
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


# -- what is wrong with one run -------------------------------------------------------------


async def test_a_run_whose_record_is_somebody_elses_holds_up_nobody(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    await books.run_none()
    async with serve():
        await queue(redis, {"experiment_id": "exp_1", "trigger": "trigger"}, "1-1", spoilt=True)
        await log.said("run.abandoned", run_id="exp_1:1-1")
        await books.run(1)
        books.go()
        await eventually(books.says_one_result, "the other run")


async def test_a_dead_workers_run_whose_record_is_somebody_elses_holds_up_nobody(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    await books.run_none()
    books.go()
    spoilt = await queue_unheard(redis, "dead", "exp_1")
    await redis.set(keys.run(f"exp_1:{spoilt}"), "somebody else's")
    await queue_unheard(redis, "dead", "exp_1")
    await redis.zadd(keys.workers(), {"dead": 1})
    async with serve():
        await log.said("run.not_recovered", run_id=f"exp_1:{spoilt}")
        await eventually(books.says_one_result, "the other run")


# -- older states, other versions -----------------------------------------------------------


async def test_a_service_works_on_with_a_server_that_has_forgotten_everything(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    async with serve():
        await books.run(1)
        await redis.flushall()
        books.go()
        await log.said("outcome.refused")
        await books.run_none()
        await books.trigger()
        await eventually(books.says_one_result, "the new run")

    assert books.starts() == {0: 1, 1: 1}


async def test_a_run_that_comes_back_with_an_older_state_of_the_data_is_performed_again(
    server: Server, serve: Serve, books: Books, log: Log
) -> None:
    async with serve():
        await books.run(RUNS)
        older = server.copy()
        books.go()
        await books.balance()
        server.kill()
        server.restore(older)
        await server.start()
        await books.results()

    assert books.starts() == dict.fromkeys(range(RUNS), 2)
    assert len(log.of("claim.found")) == RUNS


async def test_what_a_newer_version_says_in_an_order_is_passed_on(
    serve: Serve, books: Books, tools: Tools, redis: Any
) -> None:
    tools("transient", "def transient(): raise ConnectionError('later')")
    await redis.hset(
        "experiments:exp_1", mapping={"tool": "transient", "backoff_min": 600, "backoff_max": 600}
    )
    order = {"experiment_id": "exp_1", "trigger": "trigger", "colour": {"of": "tomorrow"}}

    async with serve():
        await queue(redis, order, "1-1")
        await eventually(lambda: redis.zcard(keys.retries()), "the next attempt")
    [text] = await redis.zrange(keys.retries(), 0, -1)

    assert json.loads(text)["colour"] == {"of": "tomorrow"}
    assert json.loads(text)["attempt"] == 2


async def test_a_record_of_an_older_version_is_no_hindrance(serve: Serve, books: Books, redis: Any) -> None:
    """One without a lease: who held it is dead, and nobody can say how far it was."""
    await books.run_none()
    books.go()
    entry = await queue_unheard(redis, "an older one", "exp_1")
    await redis.zadd(keys.workers(), {"an older one": 1})
    await redis.hset(keys.run(f"exp_1:{entry}"), mapping={"status": "running", "worker": "an older one"})
    async with serve():
        await eventually(lambda: none_is_held(redis), "the end of the run")

    assert [one["status"] for one in await books.records()] == ["completed"]


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
    for module, name in ((patience, "FAREWELL_SECONDS"), (triggers, "LEAVE_SECONDS")):
        monkeypatch.setattr(module, name, 0.3)
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
