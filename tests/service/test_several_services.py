"""Several services on one Redis: each PUBLISH is one run, whoever comes and goes."""

import asyncio
import contextlib
import json
from collections import Counter
from pathlib import Path
from typing import Self

import pytest

from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.conftest import assert_works, client_ids

pytestmark = pytest.mark.usefixtures("echo")


async def runs_of(neighbour: Neighbour, count: int) -> Counter[int]:
    """How often each number became a run, once `count` runs ended and a later one had its turn."""
    await neighbour.results("exp_1", count)
    await assert_works(neighbour)
    heard = neighbour.heard_of("exp_1", "fullsend:experiment_results")
    return Counter(one["result_summary"]["number"] for one in heard)


@pytest.mark.parametrize("services", [2, 3])
async def test_each_publish_is_one_run_however_many_listen(
    serve: Serve, neighbour: Neighbour, services: int
) -> None:
    await neighbour.publish("exp_1", "echo")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(services):
            await stack.enter_async_context(serve())
        for number in range(20):
            await neighbour.trigger({"experiment_id": "exp_1", "params": {"number": number}})
        ran = await runs_of(neighbour, 20)

    assert ran == Counter(range(20))


async def test_equal_messages_are_as_many_runs_as_messages(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo")
    same = {"experiment_id": "exp_1", "params": {"number": 7}}

    async with serve(), serve():
        await asyncio.gather(*(neighbour.trigger(same) for _ in range(12)))
        ran = await runs_of(neighbour, 12)

    assert ran == Counter({7: 12})


async def test_a_message_that_is_no_trigger_is_refused_once(serve: Serve, neighbour: Neighbour) -> None:
    async with serve(), serve(), serve():
        await neighbour.trigger("no JSON")
        await neighbour.result(None)
        await assert_works(neighbour)

    assert len(neighbour.heard_of(None, "fullsend:experiment_results")) == 1


class Sender:
    """Publishes numbered triggers without a pause while its block runs."""

    def __init__(self, neighbour: Neighbour) -> None:
        self.sent = 0
        self._neighbour = neighbour
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._send())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._task

    async def _send(self) -> None:
        while not self._stop.is_set():
            await self._neighbour.trigger({"experiment_id": "exp_1", "params": {"number": self.sent}})
            self.sent += 1
            await asyncio.sleep(0.002)  # so that the services get the processor too


async def test_no_publish_is_lost_or_doubled_while_others_join_and_leave(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve():
        async with Sender(neighbour) as sender:
            for _ in range(3):
                async with serve():
                    pass
        ran = await runs_of(neighbour, sender.sent)

    assert ran == Counter(range(sender.sent))


async def test_no_publish_is_lost_or_doubled_when_the_first_service_hands_over(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")

    async with contextlib.AsyncExitStack() as first, contextlib.AsyncExitStack() as second:
        await first.enter_async_context(serve())
        async with Sender(neighbour) as sender:
            await second.enter_async_context(serve())
            await first.aclose()
        ran = await runs_of(neighbour, sender.sent)

    assert ran == Counter(range(sender.sent))


async def test_what_the_last_service_heard_before_it_left_is_run_by_the_next(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")
    messages = [{"experiment_id": "exp_1", "params": {"number": number}} for number in range(100)]

    async with serve():
        pipe = neighbour.redis.pipeline(transaction=False)
        for message in messages:
            pipe.publish("fullsend:execute_now", json.dumps(message))
        heard_by = await pipe.execute()
    async with serve():
        ran = await runs_of(neighbour, 100)

    assert heard_by == [1] * 100
    assert ran == Counter(range(100))


async def test_no_publish_is_doubled_when_a_service_subscribes_anew(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve():
        before = await client_ids(neighbour.redis, "pubsub")
        async with serve(), Sender(neighbour) as sender:
            for one in await client_ids(neighbour.redis, "pubsub") - before:
                await neighbour.redis.client_kill_filter(_id=one)
            await eventually(lambda: _listeners_are(neighbour, 2), "the new subscription")
        ran = await runs_of(neighbour, sender.sent)

    assert ran == Counter(range(sender.sent))


async def test_runs_are_shared_among_the_services(serve: Serve, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "echo")

    async with serve(concurrency=1), serve(concurrency=1):
        for number in range(40):
            await neighbour.trigger({"experiment_id": "exp_1", "params": {"number": number}})
        results = await neighbour.results("exp_1", 40)
        records = [await neighbour.record(one["run_id"]) for one in results]

    assert len({record["worker"] for record in records}) == 2


async def _listeners_are(neighbour: Neighbour, count: int) -> bool:
    [(_, found)] = await neighbour.redis.pubsub_numsub("fullsend:execute_now")
    return bool(found == count)


# -- tools that not every worker has ----------------------------------------------------


async def test_a_new_tool_loses_no_run_while_another_worker_has_no_tools(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    async with serve(tools_path=tmp_path / "none"), serve(tools_path=tmp_path / "none"), serve(concurrency=1):
        for number in range(4):
            tools(f"new_{number}", f"def new_{number}(): return {number}\n")
            await neighbour.publish(f"exp_{number}", f"new_{number}")
            for _ in range(3):
                await neighbour.trigger({"experiment_id": f"exp_{number}"})
        results = [one for number in range(4) for one in await neighbour.results(f"exp_{number}", 3)]

    returned = [one.get("result_summary") for one in results]
    assert returned == [{"value": number} for number in range(4) for _ in range(3)]


async def test_a_tool_that_no_worker_has_fails_and_one_that_comes_later_runs(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    await neighbour.publish("exp_1", "late")

    async with serve(tools_path=tmp_path / "none"), serve():
        missing = await asyncio.gather(*(neighbour.run("exp_1") for _ in range(3)))
        tools("late", "def late(): return 1\n")
        await neighbour.run("exp_1")

    assert {one["error_type"] for one in missing} == {"ToolNotFoundError"}
    assert neighbour.heard_of("exp_1", "fullsend:experiment_results")[-1]["result_summary"] == {"value": 1}


async def test_a_tool_that_was_deleted_here_runs_where_it_still_is(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    path = tools("tool", "def tool(): return 1\n")
    other = tmp_path / "other"
    other.mkdir()
    await neighbour.publish("exp_1", "tool")

    async with serve():
        assert (await neighbour.run("exp_1"))["status"] == "success"
        (other / "tool.py").write_text("def tool(): return 2\n")
        async with serve(tools_path=other):
            path.unlink()
            results = [await neighbour.run("exp_1") for _ in range(4)]

    assert [one.get("result_summary") for one in results] == [{"value": 2}] * 4
