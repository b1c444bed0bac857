"""A run is answered from the result cache: same code, parameters and seed, and intact artifacts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Neighbour, Serve, Tools, eventually

COUNTING = """
import pathlib
from shared import toolkit
def tool(calls, fail=False, size=100_000, n=1):
    with open(calls, "a") as file: file.write("x")
    toolkit.artifact("large.bin", b"y" * size)
    if fail: raise ValueError("no")
    return {"n": n, "text": "z" * size}
"""


class Calls:
    """Counts the calls of the tool."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def count(self) -> int:
        return len(self.path.read_text())


@pytest.fixture
def calls(tmp_path: Path, tools: Tools) -> Calls:
    tools("tool", COUNTING)
    return Calls(tmp_path / "calls")


async def publish(neighbour: Neighbour, calls: Calls, name: str = "exp_1", **fields: Any) -> None:
    params = {"calls": str(calls.path), **fields.pop("params", {})}
    await neighbour.publish(name, "tool", params=params, **{"cache": "true", **fields})


async def test_a_repeat_is_answered_from_the_cache(serve: Serve, neighbour: Neighbour, calls: Calls) -> None:
    await publish(neighbour, calls)
    await publish(neighbour, calls, "exp_2")

    async with serve():
        results = [await neighbour.run("exp_1"), await neighbour.run("exp_1"), await neighbour.run("exp_2")]
        first, *others = [await neighbour.record(one["run_id"]) for one in results]

    assert calls.count == 1
    assert [one.get("cached") for one in results] == [None, True, True]
    for other in others:
        assert (other["cached"], other["cached_from"]) == ("true", results[0]["run_id"])
        assert {name: other[name] for name in ("result", "artifacts", "result_summary", "run_digest")} == {
            name: first[name] for name in ("result", "artifacts", "result_summary", "run_digest")
        }


async def test_another_parameter_seed_or_code_is_not_a_repeat(
    serve: Serve, neighbour: Neighbour, calls: Calls, tools: Tools
) -> None:
    await publish(neighbour, calls)
    await publish(neighbour, calls, "exp_2", params={"n": 2})
    await publish(neighbour, calls, "exp_3", seed=3)

    async with serve():
        digests = []
        for name in ("exp_1", "exp_2", "exp_3"):
            result = await neighbour.run(name)
            digests.append((await neighbour.record(result["run_id"]))["run_digest"])
        tools("tool", COUNTING + "\n# changed\n")
        result = await neighbour.run("exp_1")
        digests.append((await neighbour.record(result["run_id"]))["run_digest"])

    assert calls.count == 4
    assert len(set(digests)) == 4


async def test_without_the_policy_every_run_calls_the_tool(
    serve: Serve, neighbour: Neighbour, calls: Calls
) -> None:
    await publish(neighbour, calls, cache="false")

    async with serve():
        for _ in range(2):
            await neighbour.run("exp_1")

    assert calls.count == 2


async def test_a_failure_is_not_cached(serve: Serve, neighbour: Neighbour, calls: Calls) -> None:
    await publish(neighbour, calls, params={"fail": True})

    async with serve():
        results = [await neighbour.run("exp_1") for _ in range(2)]

    assert calls.count == 2
    assert [one["status"] for one in results] == ["failed", "failed"]


@pytest.mark.parametrize("what", ["result", "artifact"])
@pytest.mark.parametrize("harm", ["gone", "corrupt", "truncated"])
async def test_a_damaged_blob_is_never_an_answer(
    serve: Serve, neighbour: Neighbour, calls: Calls, tmp_path: Path, what: str, harm: str
) -> None:
    await publish(neighbour, calls)

    async with serve():
        first = await neighbour.run("exp_1")
        record = await neighbour.record(first["run_id"])
        reference = record["result"]
        if what == "artifact":
            reference = json.loads(record["artifacts"])["large.bin"]["reference"]
        spoil(tmp_path / "artifacts", reference, harm)
        second = await neighbour.run("exp_1")
        third = await neighbour.run("exp_1")

    assert calls.count == 2
    assert [one.get("cached") for one in (first, second, third)] == [None, None, True]


def spoil(store: Path, reference: str, harm: str) -> None:
    digest = reference.removeprefix("cas://")
    path = store / "sha256" / digest[:2] / digest
    path.chmod(0o644)
    content = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"?" if harm == "corrupt" else b""))


async def test_a_cache_entry_that_cannot_be_read_is_ignored(
    serve: Serve, neighbour: Neighbour, calls: Calls
) -> None:
    await publish(neighbour, calls)

    async with serve():
        first = await neighbour.run("exp_1")
        digest = (await neighbour.record(first["run_id"]))["run_digest"]
        key = f"fullsend:executor:cached:{digest}"
        sound = await _remembered(neighbour, key, first["run_id"])
        for number, rubbish in enumerate(_rubbish(sound), 2):
            await neighbour.redis.set(key, rubbish)
            result = await neighbour.run("exp_1")
            assert "cached" not in result
            assert calls.count == number
            await _remembered(neighbour, key, result["run_id"])
        await neighbour.redis.delete(key)
        await neighbour.redis.rpush(key, "a list")
        assert (await neighbour.run("exp_1"))["status"] == "success"


async def _remembered(neighbour: Neighbour, key: str, run_id: str) -> dict[str, Any]:
    """Return the entry of a run; it is stored after the run's result."""

    async def entry() -> dict[str, Any] | None:
        text = await neighbour.redis.get(key) or ""
        return json.loads(text) if f'"{run_id}"' in text else None

    found: dict[str, Any] = await eventually(entry, "the entry")
    return found


def _rubbish(sound: dict[str, Any]) -> list[str]:
    """Return values that somebody else may have stored there."""
    edited = [{**sound, "result": "42"}, {**sound, "items": "abc"}, {**sound, "result": "NaN"}]
    return [
        "[1]",
        "{}",
        '{"artifacts": 3, "result": "1"}',
        "no json",
        "[" * 100_000,
        *map(json.dumps, edited),
    ]


async def test_a_seed_makes_random_numbers_repeatable(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "dice",
        "import random\nfrom shared import toolkit\ndef dice(): return [toolkit.run.seed, random.random()]",
    )
    await neighbour.publish("exp_1", "dice", seed="7")

    async with serve():
        results = [await neighbour.run("exp_1") for _ in range(2)]
        values = [json.loads((await neighbour.record(one["run_id"]))["result"]) for one in results]

    assert values[0] == values[1]
    assert values[0][0] == 7
