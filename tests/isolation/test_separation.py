"""Level `process`: a tool reaches no process that it has not started, as root and as an ordinary user."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.executor.isolation import sandbox
from services.executor.isolation.calls import Level, Raised, Returned, TimedOut
from services.executor.isolation.sandbox import Sandbox
from tests.isolation import hanging_scene, separation_scene
from tests.isolation.bench import Bench
from tests.isolation.users import NOBODY, ROOT_AND_ORDINARY, run_as

SCENE, HANGING = Path(separation_scene.__file__), Path(hanging_scene.__file__)
REFUSED = {"EACCES", "EPERM"}

needs_landlock = pytest.mark.skipif(
    bool(sandbox.unprotected()), reason="this kernel lacks Landlock or filters, or has an old Landlock"
)


def attacked(user: int, level: Level, walls: Sandbox) -> dict[str, Any]:
    printed = run_as(user, SCENE, level.value, walls.value)
    return dict(json.loads(printed.splitlines()[-1]))


@needs_landlock
@pytest.mark.parametrize("level", Level)
@pytest.mark.parametrize("user", ROOT_AND_ORDINARY)
def test_a_tool_reaches_neither_the_service_nor_other_tools(user: int, level: Level) -> None:
    seen = attacked(user, level, Sandbox.PROCESS)

    came = {(whom, what): result for whom, tries in seen["came"].items() for what, result in tries.items()}
    assert {what: result for what, result in came.items() if result not in REFUSED} == {}
    assert {"service", "guard", "fork server", "program", "tool", "other tool"} <= seen["came"].keys()
    assert "SERVICE_SECRET" not in seen["environ"]


@pytest.mark.parametrize("user", ROOT_AND_ORDINARY)
def test_a_tool_has_no_capabilities_and_gains_none(user: int) -> None:
    seen = attacked(user, Level.WARM, Sandbox.PROCESS)

    assert (seen["CapEff"], seen["CapPrm"], seen["NoNewPrivs"]) == ("0" * 16, "0" * 16, "1")
    if user == 0:
        assert seen["CapBnd"] == "0" * 16


def test_without_confinement_the_executors_processes_can_still_not_be_looked_into() -> None:
    came = attacked(NOBODY, Level.WARM, Sandbox.OFF)["came"]

    looks = ("open environ of a neighbour", "see an open file", "find a secret")
    assert {came["program"][look] for look in looks} == {"done"}
    for ours in ("service", "guard", "fork server"):
        assert {came[ours][look] for look in looks} <= REFUSED


@pytest.mark.parametrize("level", Level)
async def test_what_tools_do_in_plain_python_works(bench: Bench, level: Level) -> None:
    answer = await bench.run(
        """
        import asyncio, os, resource, signal, socket, subprocess, sys, tempfile
        def run():
            with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
                open(one + "/file", "w").close()
                os.rename(one + "/file", other + "/moved")
                os.link(other + "/moved", one + "/linked")
                os.chmod(other + "/moved", 0o600)
            me = os.getpid()
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, me))
            os.sched_setaffinity(0, os.sched_getaffinity(me))
            assert subprocess.run(["nice", "-n", "1", "true"]).returncode == 0
            assert open("/proc/self/environ").read()
            assert os.listdir("/proc/self/fd") and os.readlink("/proc/self/exe")
            open("/proc/self/mem", "rb").close()
            open("/proc/self/oom_score_adj", "w").close()
            child = subprocess.Popen(["sleep", "1000"])
            assert b"PATH" in open(f"/proc/{child.pid}/environ", "rb").read()
            child.terminate()
            assert child.wait() == -signal.SIGTERM
            with socket.socket(socket.AF_UNIX) as ours, socket.socket(socket.AF_UNIX) as theirs:
                ours.bind(f"\\0fullsend-own-{me}"); ours.listen()
                theirs.connect(f"\\0fullsend-own-{me}")
            assert subprocess.run(["sh", "-c", "exit 7"]).returncode == 7
            async def talk():
                one = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(1)", stdout=-1)
                return (await one.communicate())[0]
            return asyncio.run(talk()).decode()
        """,
        level=level,
    )

    assert answer == Returned("1\n")


@pytest.mark.parametrize("level", Level)
async def test_the_stacks_of_a_tool_that_hangs_are_seen(bench: Bench, level: Level) -> None:
    answer = await bench.run(
        "import time\ndef waits_here():\n    time.sleep(100)\ndef run(): waits_here()",
        timeout_seconds=0.5,
        level=level,
    )

    assert isinstance(answer, TimedOut)
    assert "in waits_here" in answer.exit.stacks


@pytest.mark.parametrize("user", ROOT_AND_ORDINARY)
def test_a_hanging_tree_is_shown_and_ended_whoever_the_user_is(user: int) -> None:
    seen = json.loads(run_as(user, HANGING).splitlines()[-1])

    assert ["in waits_here" in stacks for stacks in seen["stacks"]] == [True] * 3
    assert len(seen["pids"]) == 6
    assert [pid for pid in seen["pids"] if Path(f"/proc/{pid}").exists()] == []


async def test_on_a_kernel_without_landlock_a_tool_runs_with_what_is_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = sandbox.of_processes((), 0)
    monkeypatch.setattr(sandbox, "of_processes", lambda *_: nothing)

    answer = await bench.run("def run(): return open('/proc/self/status').read().split('NoNewPrivs:')[1][:2]")

    assert answer == Returned("\t1")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_a_tool_keeps_the_capability_that_it_was_given(bench: Bench) -> None:
    source = """
        import socket, subprocess
        def run():
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP): pass
            grep = ["grep", "CapEff", "/proc/self/status"]
            return subprocess.run(grep, stdout=-1, text=True).stdout.split()[1]
    """
    tool = bench.tool(source)

    given = await bench.run(replace(tool, capabilities=("net_raw",)))
    without = await bench.run(tool)

    assert given == Returned(f"{1 << 13:016x}")
    assert isinstance(without, Raised)
    assert without.error_type == "PermissionError"
