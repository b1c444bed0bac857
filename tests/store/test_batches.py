"""What several callers ask for in one turn of the event loop is one call; each has its own answer."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from services.executor.store import Finished, Order, Position, Store
from services.executor.store.resp import BATCH_BYTES, BATCH_ITEMS
from services.executor.store.scripts import FOLDER, Script, Scripts
from shared.errors import StoreError
from tests.store.conftest import EXPERIMENT, Worker, together


class Item(Struct):
    """An item of the script below."""

    name: str
    size: int = 0


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """Answers with the shared argument, and the name of each item but `bad`."""
    (tmp_path / "batches.lua").write_text((FOLDER / "batches.lua").read_text())
    (tmp_path / "one.lua").write_text(
        "-- ARGV  shared items[]\n-- include batches.lua\n"
        "local function act(one)\n"
        "  if one.name == 'bad' then error('it is bad') end\n"
        "  if one.name == 'wrong' then redis.call('HGET', 'text', 'field') end\n"
        "  return {shared, one.name}\n"
        "end\n"
        "return for_each(items, act)\n"
    )
    return Script("one", args=("shared", "items[]"), folder=tmp_path)


async def calls(redis: Any) -> int:
    """How many scripts the server has executed."""
    stats = await redis.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval"))


async def ask(scripts: Scripts, script: Script, item: Item) -> Any:
    return await scripts.call_together(script, (), lambda weight: [weight], item, weight=1)


async def test_items_of_one_turn_are_one_call_and_each_has_its_answer(redis: Any, script: Script) -> None:
    scripts = Scripts(redis)
    await ask(scripts, script, Item("first"))  # now the server knows the script
    before = await calls(redis)

    answers = await together(*(ask(scripts, script, Item(f"n{number}")) for number in range(9)))

    assert answers == [["9", f"n{number}"] for number in range(9)]
    assert await calls(redis) == before + 1


@pytest.mark.parametrize("name", ["bad", "wrong"])
async def test_an_item_that_fails_fails_alone(redis: Any, script: Script, name: str) -> None:
    await redis.set("text", "a")
    scripts = Scripts(redis)

    first, error, last = await asyncio.gather(
        *(ask(scripts, script, Item(one)) for one in ("a", name, "b")), return_exceptions=True
    )

    assert (first, last) == (["3", "a"], ["3", "b"])
    assert isinstance(error, StoreError)
    assert ("one.lua:" in str(error) and "it is bad" in str(error)) or "WRONGTYPE" in str(error)


async def test_a_script_that_answers_too_few_items_leaves_nobody_waiting(redis: Any, tmp_path: Path) -> None:
    (tmp_path / "one.lua").write_text("-- ARGV  shared items[]\nreturn {shared}\n")
    forgetful = Script("one", args=("shared", "items[]"), folder=tmp_path)
    scripts = Scripts(redis)

    found = await asyncio.gather(
        *(ask(scripts, forgetful, Item(name)) for name in ("a", "b")), return_exceptions=True
    )

    assert [str(one) for one in found] == ["one: Redis answers: 1 answers to 2 items"] * 2


async def test_a_batch_has_a_bounded_number_of_items(redis: Any, script: Script) -> None:
    scripts = Scripts(redis)
    await ask(scripts, script, Item("first"))
    before = await calls(redis)

    answers = await together(*(ask(scripts, script, Item("n")) for _ in range(BATCH_ITEMS + 1)))

    assert sorted(int(weight) for weight, _ in answers) == [1] + [BATCH_ITEMS] * BATCH_ITEMS
    assert await calls(redis) == before + 2


async def test_a_batch_has_a_bounded_size(redis: Any, script: Script) -> None:
    scripts = Scripts(redis)

    answers = await together(*(ask(scripts, script, Item("n" * (BATCH_BYTES // 2))) for _ in range(3)))

    assert [weight for weight, _ in answers] == ["1", "1", "1"]


async def test_orders_that_are_queued_together_are_handed_out_once(worker: Worker) -> None:
    await worker.ready()
    queue = worker.store.queue

    admitted = await together(
        *(queue.admit(Order(EXPERIMENT, "trigger"), Position("m", at), worker.name, 1) for at in range(7))
    )

    taken = [claim.order.timestamp for _, one in admitted for claim in one.claims]
    assert sorted(taken) == sorted(str(timestamp) for timestamp, _ in admitted)
    assert len(set(taken)) == 7


async def test_runs_that_end_together_all_end(worker: Worker, store: Store, redis: Any) -> None:
    await (await worker.begun()).finish()  # now the server knows the script
    runs = [await worker.begun() for _ in range(5)]
    before = await calls(redis)

    assert await together(*(run.finish() for run in runs)) == [Finished.FINISHED] * 5
    assert await calls(redis) == before + 1
    assert (await store.queue.depth()).held == 0
