"""Scripts are declared as they are written, and a script that the server forgot is sent again."""

import asyncio
import importlib
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

import services.executor.store as store_package
from services.executor.store import Order, Position, Store
from services.executor.store.scripts import FOLDER, Script, Scripts
from shared.errors import StoreError
from tests.store.conftest import EXPERIMENT, orders

MESSAGES = 200
MANY = 20_000

Write = Callable[..., Script]


def declared() -> list[str]:
    """The names of all scripts that modules of the store declare, each as often as it is declared."""
    found: dict[int, Script] = {}
    for one in pkgutil.iter_modules(store_package.__path__, f"{store_package.__name__}."):
        for member in vars(importlib.import_module(one.name)).values():
            if isinstance(member, Script):
                found[id(member)] = member
    return sorted(script.name for script in found.values())


def test_each_script_is_declared_once_and_each_other_file_is_included() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.lua")}
    included = {
        name for text in texts.values() for name in re.findall(r"^-- include (\w+)\.lua$", text, re.M)
    }

    assert declared() == sorted(set(texts) - included)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes files, and declares the script `one` of them."""

    def declare(text: str, keys: Any = (), args: Any = (), **others: str) -> Script:
        for name, content in {"one": text, **others}.items():
            (tmp_path / f"{name}.lua").write_text(content)
        return Script("one", keys=keys, args=args, folder=tmp_path)

    return declare


HEADER = "-- Does it.\n--\n-- KEYS  a b\n-- ARGV  c d[]\n"


@pytest.mark.parametrize(
    ("keys", "args"),
    [(("a",), ("c", "d[]")), (("b", "a"), ("c", "d[]")), (("a", "b"), ("c", "d")), (("a", "b"), ())],
)
def test_a_header_that_differs_from_its_caller_is_refused(write: Write, keys: Any, args: Any) -> None:
    with pytest.raises(ValueError, match=r"one\.lua: (KEYS|ARGV) is \[.*\], but its caller declares \["):
        write(HEADER + "return 1", keys, args)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("-- KEYS  a\nreturn KEYS[1]", r"one\.lua:2: KEYS and ARGV are used by the names in the header"),
        (
            "-- KEYS  a\nif a then\n  -- include two.lua\nend",
            r"one\.lua:3: an include must be part of the header",
        ),
    ],
)
def test_a_script_that_is_not_written_as_agreed_is_refused(write: Write, text: str, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        write(text, ("a",), two="")


def test_only_the_last_key_may_be_a_list(write: Write) -> None:
    with pytest.raises(ValueError, match="only the last may be a list"):
        write("-- KEYS  a[] b\nreturn 1", ("a[]", "b"))


@pytest.mark.parametrize("keys", [["a"], ["a", "b", "c"]])
async def test_a_call_with_another_number_of_keys_is_refused(write: Write, redis: Redis, keys: Any) -> None:
    with pytest.raises(TypeError, match=r"one\.lua was called with"):
        await Scripts(redis).call(write(HEADER + "return 1", ("a", "b"), ("c", "d[]")), keys, ["c", []])


async def test_keys_arguments_and_lists_arrive_by_name(write: Write, redis: Redis) -> None:
    script = write(
        "-- KEYS  a b[]\n-- ARGV  c d[] e f[]\nreturn {a, #b, b[2], c, #d, d[#d], e, #f}",
        ("a", "b[]"),
        ("c", "d[]", "e", "f[]"),
    )

    answer = await Scripts(redis).call(script, ["A", "B", "C"], ["D", range(MANY), "E", []])

    assert answer == ["A", 2, "C", "D", MANY, str(MANY - 1), "E", 0]


async def test_an_error_names_the_line_of_the_file_that_it_is_in(write: Write, redis: Redis) -> None:
    fail = "-- Fails.\nlocal function fail() error({}.x.y) end\n"
    script = write(
        "-- KEYS  a\n-- include two.lua\n-- include three.lua\nfail()", ("a",), two=fail, three="--\n"
    )

    with pytest.raises(StoreError, match=r"two\.lua:2: "):
        await Scripts(redis).call(script, ["a"])


async def test_no_message_is_lost_while_the_server_forgets_scripts(store: Store, redis: Any) -> None:
    async def forget() -> None:
        while True:
            await redis.script_flush()

    forgetting = asyncio.create_task(forget())
    for count in range(MESSAGES):
        await store.queue.enqueue(Order(EXPERIMENT, "trigger"), Position("m", count))
    forgetting.cancel()

    assert len(await orders(redis)) == MESSAGES
