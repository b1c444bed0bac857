"""The command `fullsend`: how it finds its server, and how it reports errors."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.acceptance.commands import FULLSEND, Shell
from tests.acceptance.tool_texts import GREET
from tests.conftest import Neighbour, Tools

# -- the server of the directory ------------------------------------------------------


async def test_other_commands_find_the_embedded_server_of_a_worker(tmp_path: Path, tools: Tools) -> None:
    """The ten lines of README.md."""
    tools("greet", GREET)
    (tmp_path / "hello.yaml").write_text(
        "experiment: {id: exp_hello, execution: {tool: greet, params: {name: Ada}}}"
    )
    shell = Shell(tmp_path, {})

    async with shell.started(str(FULLSEND), "worker") as worker:
        published = await shell.run(str(FULLSEND), "publish", "hello.yaml")  # waits for the server
        done = await shell.run(str(FULLSEND), "trigger", "exp_hello", "--wait")  # waits for the worker
        worker.send_signal(signal.SIGTERM)
        await worker.communicate()
    after = await shell.run(str(FULLSEND), "runs")

    assert published.code == 0, published
    assert json.loads(done.lines[-1]) == {"greeting": "hello Ada", "times": 1}
    assert worker.returncode == 0
    assert "no embedded server runs in .fullsend; start `fullsend worker`" in after.error


# -- what goes wrong ------------------------------------------------------------------


async def test_an_unreachable_server_is_an_error_of_one_line(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"REDIS_URL": "redis://127.0.0.1:1/0"})

    done = await shell.fullsend("runs")

    assert done.code == 1
    assert "Redis can't be reached" in done.error


@pytest.mark.parametrize("command", ["runs", "worker"])
async def test_a_database_that_the_server_does_not_have_is_an_error_of_one_line(
    command: str, tmp_path: Path, redis_url: str
) -> None:
    shell = Shell(tmp_path, {"REDIS_URL": redis_url.rpartition("/")[0] + "/9999"})

    done = await shell.fullsend(command)

    assert done.code == 1
    assert "REDIS_URL names database 9999, which the server doesn't have" in done.error


async def test_each_wrong_setting_is_an_error_of_one_line(tmp_path: Path) -> None:
    shell = Shell(tmp_path, {"CONCURRENCY": "many", "RETRY_MAX_ATTEMPTS": "0"})

    done = await shell.fullsend("worker")

    assert done.code == 2
    assert [line.split(":")[0] for line in done.err.splitlines()] == ["error", "error"]
    assert "CONCURRENCY=many" in done.err


@pytest.mark.parametrize("arguments", [["fly"], ["runs", "--colour"], ["runs", "-n", "many"], ["show"]])
async def test_wrong_usage_is_an_error_of_one_line(tmp_path: Path, arguments: list[str]) -> None:
    done = await Shell(tmp_path, {}).fullsend(*arguments)

    assert done.code == 2
    assert "--help`)" in done.error


async def test_help_lists_every_command(tmp_path: Path) -> None:
    done = await Shell(tmp_path, {}).fullsend("--help")
    bare = await Shell(tmp_path, {}).fullsend()

    assert done.code == bare.code == 0
    assert done.out == bare.out
    for command in (
        "demo", "worker", "publish", "trigger", "runs", "show", "logs", "watch", "schedules", "tools",
        "doctor",
    ):  # fmt: skip
        [line] = [line for line in done.lines if line.split()[:1] == [command]]
        assert len(line.split()) > 3


@pytest.mark.parametrize("group", [(), ("artifacts",), ("plan",), ("sweep",)])
async def test_the_list_of_commands_cuts_no_description(tmp_path: Path, group: tuple[str, ...]) -> None:
    done = await Shell(tmp_path, {}).fullsend(*group, "--help")

    commands = done.lines[done.lines.index("Commands:") + 1 :]
    assert commands
    assert [line for line in commands if not line.endswith(".")] == []
    assert [line for line in commands if line.endswith("...")] == []


async def test_a_closed_pipe_is_not_reported(shell: Shell, neighbour: Neighbour) -> None:
    await neighbour.publish("exp_1", "greet")
    reader, writer = os.pipe()
    os.close(reader)

    command = subprocess.Popen(
        [FULLSEND, "doctor"],
        cwd=shell.directory,
        env={**os.environ, **shell.variables},
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    _, err = command.communicate(timeout=30)

    assert err == b""
    assert command.returncode != 0


async def test_output_contains_no_control_sequences_from_redis(shell: Shell, neighbour: Neighbour) -> None:
    tool = {"name": "odd", "status": "active", "description": "\x1b[2J\x1b]0;owned\x07 fine \udcff"}
    await neighbour.redis.hset("tools:odd", mapping=tool)

    done = await shell.fullsend("tools")

    assert done.code == 0
    assert "\x1b" not in done.out
    assert "fine" in done.out
