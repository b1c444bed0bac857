"""Confined tools in a real pool: at every level, with everything that the pool does for a run."""

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.executor.isolation import sandbox
from services.executor.isolation.calls import (
    Answer,
    Cancelled,
    Died,
    Level,
    Limits,
    Metric,
    Module,
    Raised,
    Returned,
    TimedOut,
)
from services.executor.isolation.sandbox import Bubblewrap, Sandbox, Unavailable
from shared.errors import SandboxUnavailableError
from tests.isolation.bench import ArtifactList, Bench, bench, gone

TRY_TO_READ = """
    import os
    def look(path):
        try:
            with open(path) as file:
                return file.read()
        except PermissionError:
            return "refused"
        except FileNotFoundError:
            return "not there"
    AT_IMPORT = look({secret!r})
    def run():
        return [AT_IMPORT, look({secret!r}), look("/etc/passwd"), look("/proc/%d/environ" % os.getppid())]
"""
OUT_OF_REACH = {"refused", "not there"}


@pytest.fixture(params=["landlock", "bubblewrap"], autouse=True)
def kind(request: pytest.FixtureRequest) -> sandbox.Kind:
    """By what means the tools of this test are confined."""
    if request.param == "bubblewrap":
        program = shutil.which("bwrap")
        if program is None:
            pytest.skip("bubblewrap is not installed")
        return Bubblewrap(Path(program))
    found = sandbox.detect()
    if not isinstance(found, sandbox.Landlock):
        pytest.skip("this kernel has no Landlock")
    return found


@pytest_asyncio.fixture(name="bench")
async def _bench(tmp_path: Path, kind: sandbox.Kind) -> AsyncIterator[Bench]:
    (tmp_path / "tools").mkdir()
    (tmp_path / ".env").write_text("secret")
    async with bench(tmp_path / "tools", detect_sandbox=lambda: kind) as ready:
        yield ready


def confined(bench: Bench, source: str, level: Sandbox = Sandbox.FILES_AND_NETWORK) -> Module:
    return replace(bench.tool(source.format(secret=str(bench.directory.parent / ".env"))), sandbox=level)


def value(answer: Answer) -> Any:
    assert isinstance(answer, Returned), answer
    return answer.value


@pytest.mark.parametrize("level", list(Level))
async def test_neither_the_import_nor_a_run_reads_a_secret(
    bench: Bench, kind: sandbox.Kind, level: Level
) -> None:
    tool = confined(bench, TRY_TO_READ)

    seen = [value(await bench.run(tool, level=level)) for _ in range(2)]

    secrets = [found[:3] if isinstance(kind, Bubblewrap) else found for found in seen]
    assert set().union(*secrets) <= OUT_OF_REACH


async def test_the_same_tool_unconfined_has_a_process_of_its_own(bench: Bench) -> None:
    tool = confined(bench, TRY_TO_READ)

    found = value(await bench.run(replace(tool, sandbox=Sandbox.OFF)))
    refused = value(await bench.run(tool))

    assert found[:2] == ["secret", "secret"]
    assert set(refused[:2]) <= OUT_OF_REACH


async def test_a_warm_confined_process_serves_the_next_run(bench: Bench) -> None:
    tool = confined(
        bench,
        """
        import os, tempfile
        def run():
            left = os.listdir(".")
            with open("mine", "w") as file:
                file.write("text")
            tempfile.NamedTemporaryFile(delete=False).close()
            return [os.getpid(), left, os.path.expanduser("~") == os.getcwd()]
    """,
    )

    first, second = [value(await bench.run(tool)) for _ in range(2)]

    assert first == second
    assert first[1:] == [[], True]


@pytest.mark.parametrize("level", [Level.WARM, Level.FORK])
async def test_runs_of_one_tool_do_not_see_each_others_directories(
    bench: Bench, kind: sandbox.Kind, level: Level
) -> None:
    if isinstance(kind, Bubblewrap):
        pytest.skip("the processes of one tool share a directory there")
    tool = confined(
        bench,
        """
        import os, sys
        def run(other=None):
            if other is None:
                with open("mine", "w") as file:
                    file.write("text")
                print(os.getcwd())
                input_ = os.open("wake", os.O_CREAT | os.O_WRONLY)
                import time; time.sleep(60)
            try:
                open(other + "/mine").read()
            except PermissionError:
                return "refused"
    """,
    )
    cancel = asyncio.Event()

    first = asyncio.create_task(bench.run(tool, level=level, cancel=cancel))
    place = (await bench.until(lambda event: hasattr(event, "text"))).text  # type: ignore[union-attr]
    second = value(await bench.run(tool, level=level, params={"other": place}))
    cancel.set()

    assert second == "refused"
    assert isinstance(await first, Cancelled)


@pytest.mark.parametrize("level", list(Level))
async def test_reports_and_artifacts_arrive(bench: Bench, level: Level) -> None:
    tool = confined(
        bench,
        """
        from shared import toolkit
        def run():
            toolkit.metric("seen", 1)
            toolkit.artifact("a.txt", b"kept")
            print("printed")
    """,
    )
    kept = ArtifactList()
    for _ in range(2):
        value(await bench.run(tool, level=level, effects=kept))

    assert kept.contents == [b"kept"] * 2
    assert [metric.name for metric in bench.of(Metric)] == ["seen"] * 2
    assert bench.lines() == ["printed"] * 2


@pytest.mark.parametrize("level", list(Level))
async def test_the_whole_tree_of_a_confined_tool_is_ended(bench: Bench, level: Level) -> None:
    tool = confined(
        bench,
        """
        import os, subprocess, sys, time
        def run():
            sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
            child = subprocess.Popen(sleep, start_new_session=True)
            print("started", flush=True)
            time.sleep(600)
    """,
    )

    answer = await bench.run(tool, level=level, timeout_seconds=1.5)

    assert isinstance(answer, TimedOut)
    assert "time.sleep(600)" in answer.exit.stacks or "run" in answer.exit.stacks
    assert bench.lines() == ["started"]


async def test_a_memory_limit_holds_for_a_confined_tool(bench: Bench) -> None:
    tool = confined(bench, "import time\ndef run():\n    held = bytearray(200_000_000); time.sleep(60)")

    answer = await bench.run(tool, limits=Limits(memory_bytes=100_000_000))

    assert isinstance(answer, Died)
    assert answer.reason.startswith("memory limit")


async def test_a_run_that_leaves_a_child_behind_is_noticed(bench: Bench) -> None:
    tool = confined(
        bench,
        """
        import os, subprocess, sys
        def run():
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            return os.getpid()
    """,
    )

    first, second = [value(await bench.run(tool)) for _ in range(2)]

    assert first != second


async def test_nothing_is_left_when_the_pool_stops(tmp_path: Path) -> None:
    async with bench(tmp_path) as ready:
        tool = confined(ready, "import os\ndef run():\n    return os.getcwd()")
        place = value(await ready.run(tool))
        value(await ready.run(tool, level=Level.FORK))

    assert not Path(place).parents[1].exists()


async def test_the_network_is_out_of_reach(bench: Bench) -> None:
    source = "import socket\ndef run():\n    socket.create_connection(('127.0.0.1', {port}), 5).close()"
    with socket.create_server(("127.0.0.1", 0)) as server:
        source = source.replace("{port}", str(server.getsockname()[1]))

        refused = await bench.run(confined(bench, source))
        allowed = await bench.run(confined(bench, source, Sandbox.FILES))

    assert isinstance(refused, Raised)
    assert isinstance(allowed, Returned)


async def test_a_confined_tool_is_confined_while_it_is_described(bench: Bench) -> None:
    tool = confined(bench, 'open({secret!r})\ndef run(a: int):\n    """Do it."""')

    answer = await bench.run(tool, params={"a": 1})

    assert isinstance(answer, Raised)
    assert "{secret}" not in answer.message


async def test_no_tool_runs_if_nothing_can_confine_it(tmp_path: Path) -> None:
    nothing = Unavailable("the kernel has no Landlock")
    async with bench(tmp_path, detect_sandbox=lambda: nothing) as own:
        tool = confined(own, "def run(): return 1")

        answer = await own.run(tool)

        assert isinstance(answer, Raised)
        assert answer.error_type == "SandboxUnavailableError"
        with pytest.raises(SandboxUnavailableError):
            await own.pool.describe(tool, 10)


async def test_a_killed_service_leaves_no_confined_process(bench: Bench) -> None:
    tool = confined(bench, "import os, time\ndef run():\n    print(os.getpid()); time.sleep(600)")
    task = asyncio.create_task(bench.run(tool))
    await bench.until(lambda event: hasattr(event, "text"))
    state = bench.pool.inspect()
    [process] = state.alive

    for server in state.fork_servers:
        os.kill(server.pid, 9)

    assert isinstance(await task, Died)
    await gone(process.pid)


PROCESSES = """
    import multiprocessing as mp, multiprocessing.connection
    def say(pipe):
        pipe.send("hello")
    def run(method, what):
        context = mp.get_context(method)
        if what != "Process":
            return getattr(context, what)()
        here, there = context.Pipe()
        process = context.Process(target=say, args=(there,))
        process.start()
        there.close()
        return here.recv()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
async def test_at_files_a_tool_starts_processes_and_talks_to_them_through_pipes(
    bench: Bench, method: str
) -> None:
    tool = confined(bench, PROCESSES, Sandbox.FILES)

    assert value(await bench.run(tool, params={"method": method, "what": "Process"})) == "hello"


@pytest.mark.parametrize(
    ("method", "what"),
    [("fork", "Lock"), ("fork", "Queue"), ("fork", "Pool"), ("spawn", "Pool"), ("forkserver", "Process")],
)
async def test_at_files_what_needs_shared_memory_or_a_socket_is_refused(
    bench: Bench, kind: sandbox.Kind, method: str, what: str
) -> None:
    if isinstance(kind, Bubblewrap):
        pytest.skip("this is promised of Landlock only")
    tool = confined(bench, PROCESSES, Sandbox.FILES)

    answer = await bench.run(tool, params={"method": method, "what": what})

    assert isinstance(answer, Raised), answer
    assert answer.error_type == "PermissionError"
