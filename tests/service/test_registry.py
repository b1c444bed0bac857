"""A tool is described once, and again when its registration may be out of date."""

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.ports import free_port
from tests.service.trouble import Log

PROCESSES = "fullsend_pool_processes"
ONE = "def {name}(number: int): return number\n"
OTHER = "def {name}(text: str): return text\n"
BROKEN = "import nowhere_to_be_found\n"
WITH_NEIGHBOUR = """
    from beside import DEFAULT

    def tool(number: int = DEFAULT):
        return number
"""
OWN_PYTHON = """
    # /// script
    # requires-python = ">=3.11"
    # ///
    def tool(): return 1
"""

Change = Callable[[Neighbour], Awaitable[Any]]


async def started(serve: Serve, log: Log, tools: int) -> float:
    """Run a service until so many tools are recognised or registered; return the number of its processes."""
    log.lines.clear()
    port = free_port()
    async with serve(health_port=port):
        [line] = await log.said("tools.recognised")
        if line["tools"] < tools:
            await log.said("tool.registered", tools - line["tools"])
        return await asyncio.to_thread(processes, port)


def processes(port: int) -> float:
    """Return the number of tool processes of the worker with this health port."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    return sum(one.value for family in families for one in family.samples if one.name == PROCESSES)


async def parameters(neighbour: Neighbour, name: str) -> set[str]:
    """Return the names of the registered parameters."""
    return set(json.loads(await neighbour.redis.hget(f"tools:{name}", "parameters"))["properties"])


async def test_a_second_start_describes_only_the_new_tool(
    serve: Serve, neighbour: Neighbour, tools: Tools, log: Log
) -> None:
    names = [f"tool_{number}" for number in range(5)]
    for name in names:
        tools(name, ONE.format(name=name))
    await started(serve, log, 5)
    before = [await neighbour.redis.hgetall(f"tools:{name}") for name in names]
    tools("zz_new", ONE.format(name="zz_new"))

    count = await started(serve, log, 6)

    assert log.of("tools.recognised", tools=5, of=6)
    assert [line["tool"] for line in log.of("tool.registered")] == ["zz_new"]
    assert count == 1
    assert [await neighbour.redis.hgetall(f"tools:{name}") for name in names] == before


async def test_a_tool_that_was_recognised_runs(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("tool", ONE.format(name="tool"))
    await neighbour.publish("exp_1", "tool", params={"number": 7})
    async with serve():
        assert (await neighbour.run("exp_1"))["status"] == "success"

    async with serve():
        good = await neighbour.run("exp_1")
        wrong = await neighbour.run("exp_1", params={"text": "x"})

    assert good["status"] == "success"
    assert wrong["error_type"] == "ToolParameterError"


async def test_only_a_tool_that_changed_is_described_again(
    serve: Serve, neighbour: Neighbour, tools: Tools, log: Log
) -> None:
    for name in ("same", "changed"):
        tools(name, ONE.format(name=name))
    await started(serve, log, 2)
    tools("changed", OTHER.format(name="changed"))

    await started(serve, log, 2)

    assert [line["tool"] for line in log.of("tool.registered")] == ["changed"]
    assert await parameters(neighbour, "changed") == {"text"}
    assert await parameters(neighbour, "same") == {"number"}


async def in_another_layout(neighbour: Neighbour) -> None:
    _, _, fingerprint = (await neighbour.redis.hget("tools:tool", "described_by")).partition(":")
    await neighbour.redis.hset("tools:tool", "described_by", f"0:{fingerprint}")


STALE: dict[str, Change] = {
    "gone": lambda neighbour: neighbour.redis.delete("tools:tool"),
    "without its parameters": lambda neighbour: neighbour.redis.hdel("tools:tool", "parameters"),
    "by an older version": lambda neighbour: neighbour.redis.hdel("tools:tool", "described_by"),
    "with another fingerprint": lambda neighbour: neighbour.redis.hset("tools:tool", "described_by", "1:x"),
    "in another layout": lambda neighbour: in_another_layout(neighbour),
    "from another folder": lambda neighbour: neighbour.redis.hset("tools:tool", "file", "/elsewhere/tool.py"),
    "invalid": lambda neighbour: neighbour.redis.hset("tools:tool", "status", "invalid"),
    "missing": lambda neighbour: neighbour.redis.hset("tools:tool", "state", "missing"),
    "with an error": lambda neighbour: neighbour.redis.hset("tools:tool", "error", "x"),
}


@pytest.mark.parametrize("state", STALE)
async def test_a_registration_that_is_out_of_date_is_written_again(
    serve: Serve, neighbour: Neighbour, tools: Tools, log: Log, state: str
) -> None:
    path = tools("tool", ONE.format(name="tool"))
    await started(serve, log, 1)
    good = await neighbour.redis.hgetall("tools:tool")
    await STALE[state](neighbour)

    await started(serve, log, 1)

    assert len(log.of("tool.registered")) == 1
    now = await neighbour.redis.hgetall("tools:tool")
    left_out = {"updated_at", "created_at", "registered_by"}
    assert {name: now[name] for name in now.keys() - left_out} == {
        name: good[name] for name in good.keys() - left_out
    }
    assert now["path"] == str(path)


async def test_a_tool_that_was_broken_is_tried_again(
    serve: Serve, neighbour: Neighbour, tools: Tools, log: Log
) -> None:
    tools("tool", BROKEN)
    async with serve():
        await eventually(lambda: neighbour.redis.hget("tools:tool", "error"), "the registration")
    log.lines.clear()

    async with serve():
        await log.said("tool.refused")

    assert log.of("tools.recognised", tools=0, of=1)


async def test_a_tool_is_registered_with_the_neighbours_it_imports_and_described_again_for_them(
    serve: Serve, neighbour: Neighbour, tools: Tools, log: Log
) -> None:
    tools("tool", WITH_NEIGHBOUR)
    tools("beside", "DEFAULT = 1\ndef beside(): pass\n")
    await started(serve, log, 2)
    before = await neighbour.redis.hgetall("tools:tool")
    tools("beside", "DEFAULT = 20\ndef beside(): pass\n")

    await started(serve, log, 2)

    after = await neighbour.redis.hgetall("tools:tool")
    assert after["digest"] != before["digest"]
    assert json.loads(after["parameters"])["properties"]["number"]["default"] == 20


async def test_the_environment_of_a_tool_is_there_before_its_first_run(
    serve: Serve, tools: Tools, log: Log
) -> None:
    tools("tool", OWN_PYTHON)
    await started(serve, log, 1)

    await started(serve, log, 1)

    assert len(log.of("tool.registered")) == 1


async def test_a_long_description_is_registered_in_short(
    serve: Serve, neighbour: Neighbour, tools: Tools, log: Log
) -> None:
    tools(
        "tool",
        """
        def tool(long: str = "x" * 1_000_000, short: int = 1): pass
        tool.__doc__ = "y" * 1_000_000 + "\\n\\nArgs:\\n    short: " + "z" * 1_000_000
        """,
    )
    await started(serve, log, 1)

    fields = await neighbour.redis.hgetall("tools:tool")
    properties = json.loads(fields["parameters"])["properties"]
    assert sum(map(len, fields.values())) < 30_000
    assert properties["long"] == {"type": "string"}
    assert properties["short"]["default"] == 1
    assert properties["short"]["description"].startswith("zzz")


# -- tools that no worker has any more --------------------------------------------------


async def test_a_tool_is_missing_once_no_live_worker_has_it(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.tools.readiness.LOOK_SECONDS", 0.1)
    monkeypatch.setattr("services.executor.tools.registry.LOOK_SECONDS", 0.1)

    async def state(name: str) -> str | None:
        return str(await neighbour.redis.hget(f"tools:{name}", "state"))

    soon = {"cron_check_interval": 0.05}
    await neighbour.redis.hset("tools:builders", mapping={"name": "builders", "status": "active"})
    for name in ("kept", "deleted"):
        tools(name, ONE.format(name=name))
    tools("broken", BROKEN)
    async with serve(**soon), serve(tools_path=tmp_path / "none", **soon):
        for name, first in {"kept": "active", "deleted": "active", "broken": "invalid"}.items():
            await eventually(functools.partial(_is, state, name, first))
        (tmp_path / "tools" / "deleted.py").unlink()
        await eventually(lambda: _is(state, "deleted", "missing"))
        still = [await state(name) for name in ("kept", "broken")]
        tools("deleted", ONE.format(name="deleted"))
        await eventually(lambda: _is(state, "deleted", "active"))
        await neighbour.redis.delete("tools:kept")
        await eventually(lambda: _is(state, "kept", "active"))
    async with serve(tools_path=tmp_path / "none"):
        await eventually(lambda: _is(state, "kept", "missing"))
        await eventually(lambda: _is(state, "broken", "missing"))
    async with serve():
        await eventually(lambda: _is(state, "kept", "active"))

    assert still == ["active", "invalid"]
    assert await neighbour.redis.hgetall("tools:builders") == {"name": "builders", "status": "active"}


async def _is(state: Callable[[str], Awaitable[str | None]], name: str, expected: str) -> bool:
    return await state(name) == expected


async def test_what_the_builder_of_a_tool_wrote_stays(
    serve: Serve, neighbour: Neighbour, tools: Tools, log: Log
) -> None:
    path = tools("tool", 'def tool():\n    """Ours."""\n')
    built = {"description": "The builder's.", "path": "/build/tool.py", "owner": "builder"}
    await neighbour.redis.hset("tools:tool", mapping=built)

    await started(serve, log, 1)

    fields = await neighbour.redis.hgetall("tools:tool")
    assert built.items() <= fields.items()
    assert (fields["summary"], fields["file"], fields["state"]) == ("Ours.", str(path), "active")


async def test_a_worker_with_another_folder_says_nothing_bad_about_the_tools_of_others(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, log: Log
) -> None:
    soon = {"cron_check_interval": 0.05}
    tools("tool", ONE.format(name="tool"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "tool.py").write_text(BROKEN)

    async def state() -> str | None:
        return str(await neighbour.redis.hget("tools:tool", "state"))

    async with serve(**soon):
        await log.said("tool.registered")
    # The first of these recognises what was registered, and registers it again after the second.
    async with serve(**soon), serve(tools_path=other, **soon):
        await log.said("tool.refused")
        await log.said("tool.registered", 2)
        await eventually(lambda: _is(lambda _: state(), "tool", "active"))
        together = await state()
    async with serve(tools_path=other, **soon):
        await eventually(lambda: _is(lambda _: state(), "tool", "invalid"))

    assert together == "active"
