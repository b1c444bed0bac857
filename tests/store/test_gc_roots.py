"""Every reference to an artifact is found, in whatever key it is."""

import asyncio
import json
from typing import Any

import pytest

from services.executor.store import GcRoots, Order, Store
from services.executor.store.scripts import Scripts
from shared import keys
from shared.errors import StoreError, StoreUnavailableError
from tests.store.conftest import Worker

A, B, C, D = (letter * 64 for letter in "abcd")
CAS = f"cas://{A}"
ARTIFACT = {"reference": CAS, "size_bytes": 3, "sha256": A, "media_type": "text/plain"}


async def test_an_empty_server_refers_to_nothing(store: Store) -> None:
    found = await store.gc_roots.all()

    assert (found.addresses, found.code) == (frozenset(), frozenset())


@pytest.mark.parametrize(
    ("key", "fields"),
    [
        ("experiment_runs:exp:1-0", {"result": CAS}),
        ("experiment_runs:exp:1-0", {"partial_results": CAS}),
        ("experiment_runs:exp:1-0", {"traceback": CAS}),
        ("experiment_runs:exp:1-0", {"status": "running", "params": json.dumps({"of": CAS})}),
        ("experiment_runs:exp:1-0", {"artifacts": json.dumps({"a.bin": ARTIFACT})}),
        ("fullsend:executor:artifacts:exp:1-0", {"a.bin": json.dumps(ARTIFACT)}),
        ("fullsend:executor:checkpoints:exp:1-0", {"step": json.dumps([CAS])}),
        ("experiments:exp", {"tool": "t", "params": json.dumps({"of": CAS})}),
        ("experiments:exp", {"spec": f"execution:\n  params:\n    of: {CAS}\n"}),
    ],
)
async def test_a_reference_in_a_hash_is_found(store: Store, redis: Any, key: str, fields: Any) -> None:
    await redis.hset(key, mapping=fields)

    assert (await store.gc_roots.all()).addresses == {A}


@pytest.mark.parametrize("key", ["fullsend:executor:cached:" + "0" * 64, "experiments:exp"])
async def test_a_reference_in_a_string_is_found(store: Store, redis: Any, key: str) -> None:
    await redis.set(key, json.dumps({"result": CAS}))

    assert (await store.gc_roots.all()).addresses == {A}


@pytest.mark.parametrize("text", [f"cas:\\/\\/{A}", f"cas%3a%2f%2f{A}", f"sha256/aa/{A}", A, f"x@sha256:{A}"])
async def test_a_reference_counts_however_it_is_written(store: Store, redis: Any, text: str) -> None:
    await redis.hset("experiment_runs:exp:1-0", "result", text)

    assert (await store.gc_roots.all()).addresses == {A}


async def test_a_reference_in_an_order_is_found_wherever_the_order_waits(
    store: Store, redis: Any, worker: Worker
) -> None:
    await worker.queued(params={"of": CAS})
    await worker.queued(params={"of": f"cas://{B}"}, priority="high")
    await redis.zadd(keys.retries(), {Order("exp", "t", params={"of": f"cas://{C}"}).encode(): 1})
    await redis.rpush(keys.blocked("limit"), Order("exp", "t", params={"of": f"cas://{D}"}).encode())

    assert (await store.gc_roots.all()).addresses == {A, B, C, D}


async def test_a_queue_that_is_longer_than_one_read_is_read_completely(worker: Worker, redis: Any) -> None:
    expected = {f"{number:064x}" for number in range(10**20, 10**20 + 7)}
    for sha256 in expected:
        await worker.queued(params={"of": f"cas://{sha256}"})
    roots = GcRoots(Scripts(redis), entries_at_once=2)

    assert (await roots.all()).addresses == expected


async def test_digests_of_code_are_listed_as_code(store: Store, redis: Any) -> None:
    await redis.hset("tools:t", mapping={"digest": A})
    await redis.hset("experiment_runs:exp:1-0", mapping={"tool_digest": B, "run_digest": D})
    await redis.hset("experiments:exp", mapping={"tool": f"t@sha256:{C}"})

    found = await store.gc_roots.all()

    assert found.code == {A, B, C}
    assert found.addresses == {A, B, C, D}


@pytest.mark.parametrize("kind", ["list", "set", "zset", "stream"])
async def test_a_record_of_another_type_is_read_as_well(store: Store, redis: Any, kind: str) -> None:
    key = "experiment_runs:exp:1-0"
    match kind:
        case "list":
            await redis.rpush(key, CAS)
        case "set":
            await redis.sadd(key, CAS)
        case "zset":
            await redis.zadd(key, {CAS: 1})
        case _:
            await redis.xadd(key, {"a": CAS})

    assert (await store.gc_roots.all()).addresses == {A}
    assert [pair async for pair in store.gc_roots.records()] == []


async def test_keys_that_are_no_roots_are_not_read(store: Store, redis: Any) -> None:
    await redis.rpush("metrics:exp", CAS)
    await redis.set("somebody:elses", CAS)

    assert (await store.gc_roots.all()).addresses == frozenset()


async def test_every_record_of_many_is_read(store: Store, redis: Any) -> None:
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(2_500):
            pipe.hset(f"experiment_runs:exp:{number}-0", "result", f"cas://{number:064x}")
        await pipe.execute()

    found, records = await asyncio.gather(store.gc_roots.all(), _records(store))

    assert len(found.addresses) == 2_500
    assert {run_id: fields["result"] for run_id, fields in records} == {
        f"exp:{number}-0": f"cas://{number:064x}" for number in range(2_500)
    }


async def _records(store: Store) -> list[tuple[str, dict[str, str]]]:
    return [pair async for pair in store.gc_roots.records()]


async def test_a_key_that_cant_be_read_is_an_error(store: Store, redis: Any) -> None:
    await redis.hset("experiment_runs:exp:1-0", "result", CAS)
    await redis.rpush(keys.blocked("limit"), CAS)
    await redis.execute_command("ACL", "SETUSER", "default", "-lrange")

    with pytest.raises(StoreUnavailableError, match="no permissions"):
        await store.gc_roots.all()


async def test_a_key_of_a_type_in_which_references_cant_be_found_is_an_error(redis: Any) -> None:
    class Module(Scripts):
        async def call(self, *_: Any, **__: Any) -> Any:
            return [["ReJSON-RL", ""]]

    with pytest.raises(StoreError, match="ReJSON-RL"):
        await GcRoots(Module(redis)).all()
