"""Tools of every kind, as they are in the folder."""

import json
from pathlib import Path

import pytest

from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.conftest import assert_works

KINDS = {
    "a function": """
        def tool(count: int) -> list:
            return list(range(count))
    """,
    "a function called run": """
        def run(count):
            return list(range(count))
    """,
    "a generator": """
        def tool(count):
            yield from range(count)
    """,
    "async": """
        import asyncio

        async def tool(count):
            await asyncio.sleep(0)
            return list(range(count))
    """,
    "an async generator": """
        async def tool(count):
            for number in range(count):
                yield number
    """,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_tool_may_be(serve: Serve, neighbour: Neighbour, tools: Tools, kind: str) -> None:
    tools("tool", KINDS[kind])
    await neighbour.publish("exp_1", "tool", params={"count": 3})

    async with serve():
        result = await neighbour.run("exp_1")
        [items] = await neighbour.events("exp_1", "items_processed")

    assert json.loads((await neighbour.record(result["run_id"]))["result"]) == [0, 1, 2]
    assert items["count"] == 3


async def test_a_generators_return_value_is_the_result(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "tool",
        """
        def tool():
            yield "a"
            yield "b"
            return {"letters": 2}
        """,
    )
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        [items] = await neighbour.events("exp_1", "items_processed")

    assert result["result_summary"] == {"letters": 2}
    assert items["count"] == 2


async def test_a_tool_changed_on_disk_is_used_in_its_new_form(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", "def tool():\n    return 'old'\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        before = await neighbour.run("exp_1")
        tools("tool", "def tool():\n    return 'new'\n")
        after = await neighbour.run("exp_1")

    assert (before["result_summary"], after["result_summary"]) == ({"value": "old"}, {"value": "new"})
    records = [await neighbour.record(one["run_id"]) for one in (before, after)]
    assert records[0]["tool_digest"] != records[1]["tool_digest"]


async def test_a_tool_added_while_the_service_runs_is_found(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    await neighbour.publish("exp_1", "late")

    async with serve():
        before = await neighbour.run("exp_1")
        tools("late", "def late():\n    return 1\n")
        after = await neighbour.run("exp_1")

    assert (before["error_type"], after.get("status")) == ("ToolNotFoundError", "success")


async def test_a_tool_may_import_its_neighbours(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("letters", "ALL = 'abc'\n")
    tools("tool", "from letters import ALL\n\ndef tool():\n    return ALL\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["result_summary"] == {"value": "abc"}


# -- tools that can't be found ---------------------------------------------------------


async def test_a_missing_tool_is_named(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    await neighbour.publish("exp_1", "linkedin_scraper")

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["error_type"] == "ToolNotFoundError"
    assert "Tool 'linkedin_scraper' not found" in result["error"]


@pytest.mark.parametrize(
    "name",
    ["../outside", "/etc/passwd", "sub/inside", "outside.py", "..outside", ".hidden", "linked", "tôol"],
)
async def test_a_name_that_leaves_the_folder_is_refused(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text("def outside():\n    return 1\n\nrun = outside\n")
    (tmp_path / "tools" / "linked.py").symlink_to(outside)
    await neighbour.publish("exp_1", name)

    async with serve():
        result = await neighbour.run("exp_1")

    if name == "linked":  # a name like others, whose tool could be built
        assert result["error_type"] == "ToolNotFoundError"
        assert "Tool 'linked' not found" in result["error"]
    else:
        assert result["error_type"] == "ContractError"
        assert f"'{name}': can't be a tool" in result["error"]


# -- tools that break the contract -----------------------------------------------------

BROKEN = {
    "a syntax error": ("def tool(:\n    pass\n", "SyntaxError"),
    "an import error": ("import nowhere_to_be_found\n\ndef tool():\n    pass\n", "nowhere_to_be_found"),
    "no function": ("ANSWER = 42\n", "tool.py"),
    "an exit on import": ("import sys\nsys.exit(3)\n", "sys.exit(3)"),
    "a crash on import": ("import os\nos._exit(3)\n", "can't be imported"),
    "a bad metadata block": (
        "# /// script\n# [tool.fullsend\n# ///\n\ndef tool():\n    pass\n",
        "[tool.fullsend]",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.usefixtures("echo")
async def test_a_broken_tool_fails_the_run_with_its_reason(
    serve: Serve, neighbour: Neighbour, tools: Tools, kind: str
) -> None:
    text, reason = BROKEN[kind]
    tools("tool", text)
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        await assert_works(neighbour)

    assert result["error_type"] in {"ToolError", "ToolCrashedError"}
    assert reason in result["error"]


async def test_an_import_that_hangs_is_a_time_out(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("tool", "import time\ntime.sleep(60)\n\ndef tool():\n    pass\n")
    await neighbour.publish("exp_1", "tool")

    async with serve(tool_execution_timeout=0.3):
        result = await neighbour.run("exp_1")

    assert (result["error_type"], result["status"]) == ("ToolTimeoutError", "timeout")
    assert result["timeout_seconds"] == 0.3


async def test_a_tool_that_was_deleted_since_it_last_ran_is_not_found(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    path = tools("tool", "def tool():\n    pass\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        assert (await neighbour.run("exp_1"))["status"] == "success"
        path.unlink()
        result = await neighbour.run("exp_1")

    assert result["error_type"] == "ToolNotFoundError"


# -- parameters --------------------------------------------------------------------------

TWO = """
    from pathlib import Path

    def tool(city: str, *, count: int = 1):
        Path(%r).touch()
"""


@pytest.mark.parametrize(
    ("params", "named"),
    [({}, "city"), ({"city": "Lisbon", "town": 1}, "town"), ({"Count": 3}, "Count"), ({"count": 3}, "city")],
)
async def test_wrong_parameters_are_named_before_the_tool_is_called(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, params: dict[str, object], named: str
) -> None:
    tools("tool", TWO % str(tmp_path / "called"))
    await neighbour.publish("exp_1", "tool", params=params)

    async with serve():
        result = await neighbour.run("exp_1")

    assert result["error_type"] == "ToolParameterError"
    assert f"'{named}'" in result["error"]
    assert not (tmp_path / "called").exists()


# -- the register ------------------------------------------------------------------------


async def test_found_tools_are_registered(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    path = tools("tool", 'def tool(city: str):\n    """Go there."""\n')
    await neighbour.redis.hset("tools:tool", mapping={"owner": "somebody", "created_at": "yesterday"})

    async with serve():
        await eventually(lambda: neighbour.redis.hget("tools:tool", "parameters"), "the registration")

    entry = await neighbour.redis.hgetall("tools:tool")
    assert (entry["name"], entry["status"], entry["path"]) == ("tool", "active", str(path))
    assert entry["description"] == "Go there."
    assert json.loads(entry["parameters"])["required"] == ["city"]
    assert (entry["owner"], entry["created_at"]) == ("somebody", "yesterday")


async def test_a_broken_tool_is_registered_as_invalid(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", "import nowhere_to_be_found\n")

    async with serve():
        await eventually(lambda: neighbour.redis.hget("tools:tool", "error"), "the registration")

    entry = await neighbour.redis.hgetall("tools:tool")
    assert entry["status"] == "invalid"
    assert "nowhere_to_be_found" in entry["error"]
