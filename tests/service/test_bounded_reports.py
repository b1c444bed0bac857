"""What a tool reports has bounds in bytes, and the run's log says what was cut."""

from typing import Any

import pytest

from services.executor.store import Store
from shared import keys
from tests.conftest import KEPT, Neighbour, Serve, Tools

MEGABYTE = 1_000_000

LOUD = f"""
    from shared import toolkit

    def loud():
        toolkit.progress(1, 2, "p" * {MEGABYTE})
        for number in range(300):
            toolkit.metric("m" * {MEGABYTE} if number == 0 else "m", number, tag="t" * {MEGABYTE})
        toolkit.metric("many", 1, **{{f"tag_{{number}}": "t" * 500 for number in range(1_000)}})
        toolkit.metric("nested", 1, tag=["t" * {MEGABYTE}], **{{"n" * {MEGABYTE}: 1}})
        toolkit.metric("good", 1, tag=[1, {{"a": "b"}}])
        return {{"k" * {MEGABYTE}: 1, "long": "x" * 1000}}
"""

CLASSY = f"""
    class Base(Exception):
        pass

    def classy():
        raise type("E" * {MEGABYTE}, (Base,), {{}})("m" * {MEGABYTE})
"""

STEPS = """
    from shared import toolkit

    def steps(key: str, count: int, size: int):
        for number in range(count):
            toolkit.once(f"{key}{number}", lambda: "x" * size)
"""


async def memory_of(neighbour: Neighbour) -> int:
    return int((await neighbour.redis.info("memory"))["used_memory"])


async def log_of(neighbour: Neighbour, run_id: str, stream: str) -> list[str]:
    lines = await neighbour.redis.xrange(keys.logs(run_id))
    return [fields["text"] for _, fields in lines if fields["stream"] == stream]


async def test_a_tool_that_reports_megabytes_costs_redis_little_and_its_log_says_what_was_cut(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("loud", LOUD)
    await neighbour.publish("exp_1", "loud")
    before = await memory_of(neighbour)
    async with serve(metrics_kept=10**6, journal_kept=10**6, journal_max_bytes=10**12):
        result = await neighbour.run("exp_1")
        after = await memory_of(neighbour)

    metrics = [one for one in neighbour.heard_of("exp_1", keys.METRICS) if one["event"] == "metric"]
    assert result["type"] == "experiment_completed", result
    assert after - before < 40 * MEGABYTE
    assert [one["value"] for one in metrics] == [*range(300), 1, 1, 1]
    assert max(len(str(one)) for one in metrics) < 10_000
    assert metrics[0]["name"].startswith("mmm")
    assert len(metrics[-3]) < 60
    assert metrics[-1]["tag"] == [1, {"a": "b"}]
    assert max(map(len, result["result_summary"])) < 300
    assert await log_of(neighbour, result["run_id"], "executor") == [
        "the message of a progress report has 1,000 characters at most and was cut",
        "the name of a metric has 200 characters at most and was cut",
        "the value of a tag has 1,000 characters at most and was cut",
        "a metric has 50 tags and 4,096 bytes of tags at most; some are left out",
        "the name of a tag has 200 characters at most and was cut",
    ]


async def test_the_name_of_an_exceptions_class_and_its_message_are_cut(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("classy", CLASSY)
    await neighbour.publish("exp_1", "classy")
    async with serve():
        result = await neighbour.run("exp_1")

    record = await neighbour.record(result["run_id"])
    assert result["error_type"].startswith("EEEE")
    assert len(result["error_type"]) < 300
    assert len(result["error"]) < 20_000
    assert sum(map(len, record.values())) < 100_000


@pytest.mark.parametrize(
    ("params", "problem"),
    [
        ({"key": "k" * 600, "count": 1, "size": 1}, "the key of a step may have 500 characters, not 601"),
        (
            {"key": "k", "count": 1, "size": 5 * MEGABYTE},
            "may have 4,000,000 bytes of JSON, and step 'k0' adds",
        ),
        ({"key": "k", "count": 9, "size": MEGABYTE}, "may have 4,000,000 bytes of JSON, and step 'k3' adds"),
    ],
    ids=["key", "one result", "all results"],
)
async def test_a_step_that_is_too_large_fails_the_run_in_words(
    params: dict[str, Any], problem: str, serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("steps", STEPS)
    await neighbour.publish("exp_1", "steps", params=params)
    async with serve():
        result = await neighbour.run("exp_1")

    assert result["error_type"] == "ValueError"
    assert problem in result["error"]


async def test_the_journal_keeps_its_size_and_its_lifetime(redis: Any) -> None:
    store = Store.on(
        redis, redis, type(KEPT)(60_000, metrics=1, journal=10**6, log_lines=1, journal_bytes=500_000)
    )
    seconds, _ = await redis.time()
    await redis.xadd(keys.journal(), {"kind": "metric", "data": "old"}, id=f"{(seconds - 3_600) * 1_000}-0")
    for number in range(2_000):
        await redis.xadd(keys.journal(), {"kind": "metric", "data": f"{number} " + "x" * 1_000})

    await store.journal.tidy()

    entries = await redis.xrange(keys.journal())
    assert 100 < len(entries) < 500
    assert entries[-1][1]["data"].startswith("1999 ")
    assert await redis.memory_usage(keys.journal(), samples=0) <= 500_000
    assert 0 < await redis.pttl(keys.journal()) <= 60_000


async def test_old_entries_of_the_journal_are_dropped(redis: Any) -> None:
    store = Store.on(redis, redis, KEPT)
    seconds, _ = await redis.time()
    for age in (2 * 3_600, 1):
        await (
            redis.pipeline().xadd(keys.journal(), {"data": age}, id=f"{(seconds - age) * 1_000}-0").execute()
        )
        for _ in range(200):
            await redis.xadd(keys.journal(), {"data": age}, id=f"{(seconds - age) * 1_000}-*")

    await store.journal.tidy()

    assert {fields["data"] for _, fields in await redis.xrange(keys.journal())} == {"1"}


async def test_a_journal_of_another_type_is_left_alone(redis: Any) -> None:
    await redis.set(keys.journal(), "mine")

    await Store.on(redis, redis, KEPT).journal.tidy()

    assert (await redis.get(keys.journal()), await redis.pttl(keys.journal())) == ("mine", -1)
