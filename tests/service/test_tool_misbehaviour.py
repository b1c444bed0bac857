"""Whatever a tool does to its process, the service survives it and says what happened."""

import json
from functools import partial

import pytest

from services.executor.isolation.pool import Pool
from tests.conftest import Neighbour, Serve, Tools
from tests.service.conftest import assert_works
from tests.service.worker import nobody_is_left

pytestmark = pytest.mark.usefixtures("echo")

HARMLESS = {
    "writes to fd 1": """
        import os

        def tool():
            os.write(1, b"Content-Length: 5\\r\\n\\r\\n\\x00\\x00\\x00\\x05hello\\n")
            return "done"
    """,
    "reads stdin": """
        import sys

        def tool():
            return "done" if sys.stdin.read() == "" else "heard something"
    """,
    "closes its streams": """
        import os, sys

        def tool():
            sys.stdout.close()
            os.close(2)
            return "done"
    """,
    "forks": """
        import os

        def tool():
            child = os.fork()
            if child == 0:
                return "answered twice"
            os.waitpid(child, 0)
            return "done"
    """,
    "leaves a process": """
        import subprocess

        def tool():
            subprocess.Popen(["sleep", "600"])
            return "done"
    """,
    "leaves threads": """
        import threading

        def tool():
            for _ in range(3):
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            return "done"
    """,
    "changes everything it can reach": """
        import os, signal, sys

        def tool():
            os.chdir("/")
            os.environ.clear()
            sys.path.clear()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            return "done"
    """,
}


@pytest.mark.parametrize("deed", HARMLESS)
async def test_a_run_succeeds_although_its_tool(
    serve: Serve, neighbour: Neighbour, tools: Tools, deed: str
) -> None:
    tools("tool", HARMLESS[deed])
    await neighbour.publish("exp_1", "tool")

    async with serve():
        first = await neighbour.run("exp_1")
        second = await neighbour.run("exp_1")
        await assert_works(neighbour)

    assert first["result_summary"] == {"value": "done"}, first
    assert second["result_summary"] == {"value": "done"}, second
    assert len(neighbour.heard_of("exp_1", "fullsend:experiment_results")) == 2


FATAL = {
    "sys.exit": ("import sys; sys.exit(3)", "SystemExit", "sys.exit(3)"),
    "os._exit": ("import os; os._exit(3)", "ToolCrashedError", "exit code 3"),
    "os.abort": ("import os; os.abort()", "ToolCrashedError", "SIGABRT"),
    "a segmentation fault": ("import ctypes; ctypes.string_at(0)", "ToolCrashedError", "SIGSEGV"),
    "a kill": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ToolCrashedError", "SIGKILL"),
    "BaseException": ("raise BaseException('oh')", "BaseException", "oh"),
    "KeyboardInterrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
    "RecursionError": ("f = lambda: f(); f()", "RecursionError", "recursion"),
    "MemoryError": ("raise MemoryError('too much')", "MemoryError", "too much"),
    "an exception without words": (
        "class Silent(Exception):\n        __str__ = None\n    raise Silent",
        "Silent",
        "",
    ),
}


@pytest.mark.parametrize("end", FATAL)
async def test_a_run_fails_by_name_when_its_tool_ends_with(
    serve: Serve, neighbour: Neighbour, tools: Tools, end: str
) -> None:
    deed, error_type, error = FATAL[end]
    tools("tool", f"def tool():\n    {deed}\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        await assert_works(neighbour)

    assert (result["error_type"], result["status"]) == (error_type, "failed")
    assert error in result["error"]


async def test_the_record_says_how_a_process_died(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("tool", "import os\n\ndef tool():\n    print('last words')\n    os._exit(7)\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

    exit_ = json.loads((await neighbour.record(result["run_id"]))["exit"])
    assert exit_["exit_code"] == 7
    assert exit_["peak_rss_bytes"] > 1_000_000
    assert "last words" in exit_["last_lines"]


async def test_a_traceback_holds_the_tools_frames_only(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    path = tools("tool", "def deep():\n    return {}['key']\n\ndef tool():\n    return deep()\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

    traceback = (await neighbour.record(result["run_id"]))["traceback"]
    assert traceback.endswith("KeyError: 'key'")
    assert traceback.count("File ") == traceback.count(f'File "{path}"') == 2


async def test_what_a_tool_printed_is_kept_in_order(serve: Serve, neighbour: Neighbour, tools: Tools) -> None:
    tools("tool", "def tool():\n    for number in range(3):\n        print('line', number)\n")
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

    lines = await neighbour.redis.xrange(f"fullsend:executor:logs:{result['run_id']}")
    assert [fields["text"] for _, fields in lines] == ["line 0", "line 1", "line 2"]


async def test_a_tool_may_print_100_megabytes(
    serve: Serve, neighbour: Neighbour, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At the usual 4 MB/s the tool would be held back for 25 s.
    monkeypatch.setattr("services.executor.service.Pool", partial(Pool, log_bytes_per_second=10**9))
    tools(
        "tool", "def tool():\n    for _ in range(100):\n        print('x' * 1_000_000)\n    return 'done'\n"
    )
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")
        await assert_works(neighbour)

    assert result["result_summary"] == {"value": "done"}


async def test_a_tool_that_prints_without_end_holds_up_nobody(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", "def tool():\n    while True:\n        print('x' * 1_000)\n")
    await neighbour.publish("exp_1", "tool", timeout_seconds=4)

    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "run_started")
        await assert_works(neighbour)
        in_between = neighbour.heard_of("exp_1", "fullsend:experiment_results")
        result = await neighbour.result("exp_1")

    assert (in_between, result["error_type"]) == ([], "ToolTimeoutError")


async def test_a_flood_of_output_is_kept_up_to_a_limit(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools("tool", "def tool():\n    for number in range(20_000):\n        print('line', number)\n")
    await neighbour.publish("exp_1", "tool")

    async with serve(log_lines_kept=100):
        result = await neighbour.run("exp_1")

    lines = await neighbour.redis.xrevrange(f"fullsend:executor:logs:{result['run_id']}")
    assert lines[0][1]["text"] == "line 19999"
    assert len(lines) <= 300  # the limit is approximate


async def test_a_process_that_a_tool_left_behind_is_ended(
    serve: Serve, neighbour: Neighbour, tools: Tools
) -> None:
    tools(
        "tool",
        "import subprocess\n\ndef tool():\n    return subprocess.Popen(['sleep', '600']).pid\n",
    )
    await neighbour.publish("exp_1", "tool")

    async with serve():
        result = await neighbour.run("exp_1")

        await nobody_is_left([result["result_summary"]["value"]])


async def test_the_services_own_environment_is_not_shown_to_tools(
    serve: Serve, neighbour: Neighbour, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hunter22@localhost:6379")
    monkeypatch.setenv("LAB_KEY", "allowed")
    tools(
        "tool",
        "from os import environ\n\n"
        "def tool():\n    return {'url': environ.get('REDIS_URL'), 'key': len(environ['LAB_KEY'])}\n",
    )
    await neighbour.publish("exp_1", "tool")

    async with serve(tool_environment=("LAB_KEY",)):
        result = await neighbour.run("exp_1")

    assert json.loads((await neighbour.record(result["run_id"]))["result"]) == {
        "url": None,
        "key": len("allowed"),
    }
