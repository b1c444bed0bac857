"""What other services, other versions or an older state of the data left in Redis holds up nobody."""

import json
from typing import Any

import pytest

from shared import keys
from tests.conftest import Serve, Tools, eventually
from tests.service.trouble import Books, Log, Server, none_is_held, queue, queue_unheard

RUNS = 3


@pytest.fixture
def redis_url(server: Server) -> str:
    """Where all that the tests share goes."""
    return server.url


# -- what is wrong with one run -------------------------------------------------------------


async def test_a_run_whose_record_is_somebody_elses_ends_and_holds_up_nobody(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    await books.run_none()
    async with serve():
        await queue(redis, {"experiment_id": "exp_1", "trigger": "trigger"}, "1-1", spoilt=True)
        await books.run(1)
        books.go()
        await eventually(lambda: books.says_one_result("exp_1:1-1"), "the end of both runs")

    assert len(log.of("key.unusable", key=keys.run("exp_1:1-1"))) == 1
    assert await none_is_held(redis)


async def test_a_dead_workers_run_whose_record_is_somebody_elses_ends_and_holds_up_nobody(
    serve: Serve, books: Books, redis: Any, log: Log
) -> None:
    await books.run_none()
    books.go()
    spoilt = await queue_unheard(redis, "dead", "exp_1")
    await redis.set(keys.run(f"exp_1:{spoilt}"), "somebody else's")
    await queue_unheard(redis, "dead", "exp_1")
    await redis.zadd(keys.workers(), {"dead": 1})
    async with serve():
        await log.said("record.unreadable", run_id=f"exp_1:{spoilt}")
        await eventually(lambda: books.says_one_result(f"exp_1:{spoilt}"), "the end of both runs")

    assert await none_is_held(redis)


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
