"""A large document holds up nobody: beyond a bound it is refused unread, and below it is read aside."""

import json

import pytest

from shared import keys
from tests.conftest import Neighbour, Serve
from tests.service.conftest import assert_works

pytestmark = pytest.mark.usefixtures("echo")

DENSE = 90_000
"""So many values take half a second to read, and are allowed."""
MANY = 8

TOO_LARGE = {
    "2,000,000 values of YAML": {"spec": "tool: echo\nparams: {x: [" + "1," * 2_000_000 + "]}"},
    "params of 30 MB": {"tool": "echo", "params": json.dumps({"x": "y" * 30_000_000})},
    "many small fields": {"tool": "echo"} | {f"field_{number}": "x" for number in range(1_000)},
}


def dense(number: int) -> str:
    return f"tool: echo\nparams: {{n: {number}, x: [" + "1," * DENSE + "]}"


@pytest.mark.parametrize("kind", TOO_LARGE)
async def test_what_is_too_large_is_refused_unread_and_each_time(
    kind: str, serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.hset("experiments:exp_1", mapping=TOO_LARGE[kind])
    async with serve():
        answers = [await neighbour.run("exp_1") for _ in range(2)]
        await assert_works(neighbour)

    for answer in answers:
        assert (answer["type"], answer["error_type"]) == ("experiment_failed", "ContractError")
        assert "are read (EXPERIMENT_MAX_BYTES)" in answer["error"]
    assert "EXPERIMENT_MAX_BYTES" in await neighbour.redis.hget(keys.compiled("exp_1"), "body")


async def test_a_text_that_is_too_large_is_refused(serve: Serve, neighbour: Neighbour) -> None:
    document = {"execution": {"tool": "echo", "params": {"x": "y" * 2_000}}}
    await neighbour.redis.set("experiments:exp_1", json.dumps(document))
    async with serve(experiment_max_bytes=2_000):
        answer = await neighbour.run("exp_1")
        await assert_works(neighbour)
    async with serve():
        other = await neighbour.run("exp_1")

    assert "holds 2052 bytes; at most 2000 bytes" in answer["error"]
    assert other["type"] == "experiment_completed"


async def test_while_large_documents_are_read_others_run(serve: Serve, neighbour: Neighbour) -> None:
    large = [f"exp_{number}" for number in range(MANY)]
    for number, experiment_id in enumerate(large):
        await neighbour.redis.hset(f"experiments:{experiment_id}", mapping={"spec": dense(number)})
    await neighbour.publish("exp_small", "echo")
    async with serve(concurrency=2):  # which are not held while documents are read
        for experiment_id in large:
            await neighbour.trigger({"experiment_id": experiment_id})
        await neighbour.run("exp_small")
        done = [one for one in large if neighbour.heard_of(one, keys.RESULTS)]
        results = [await neighbour.result(one) for one in large]

    assert len(done) < MANY / 2
    assert [one["result_summary"]["n"] for one in results] == list(range(MANY))


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("tool: echo\nparams: [" + "[" * 200 + "]" * 200 + "]" + "#" * 6_000, "nested deeper than 100"),
        ("tool: echo\nparams: [" + "1," * 110_000 + "]", "more than 100,000 values"),
        ("tool: echo\nparams: [" + "1," * 3_000, "is not a YAML document"),
        ("tool: echo\nparams: {x: .inf}\n#" + "#" * 6_000, "inf is not a JSON number"),
    ],
    ids=["deep", "too many values", "not YAML", "no number"],
)
async def test_what_is_wrong_with_a_large_document_is_told_once_read(
    spec: str, problem: str, serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.hset("experiments:exp_1", mapping={"spec": spec})
    async with serve():
        answers = [await neighbour.run("exp_1") for _ in range(2)]

    assert all(problem in one["error"] for one in answers), answers
