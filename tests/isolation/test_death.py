"""Processes that end by themselves or are ended, and what they leave behind."""

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec import structs

from services.executor.isolation.calls import (
    Answer,
    Cancelled,
    Died,
    Level,
    Limits,
    LogLine,
    Partial,
    Returned,
    TimedOut,
)  # fmt: skip
from services.executor.isolation.common import process_tree
from services.executor.isolation.sandbox import Sandbox
from tests.isolation.bench import Bench, bench, gone

LEVELS = list(Level)
STUBBORN = {
    "spins": "def run():\n    print('begun')\n    while True: pass",
    "sleeps in C": """
import ctypes
def run():
    print('begun')
    while True: ctypes.PyDLL(None).sleep(100)
""",
    "traps TERM": """
import signal, time
def run():
    signal.signal(signal.SIGTERM, lambda *_: None)
    print('begun')
    while True:
        try: time.sleep(100)
        except BaseException: pass
""",
    "blocks all signals": """
import signal, time
def run():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    print('begun')
    while True: time.sleep(100)
""",
    "stopped itself": "import os\ndef run():\n    print('begun')\n    os.kill(os.getpid(), 19)",
}


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("body", "code", "name"),
    [
        ("os._exit(3)", 3, None),
        ("os.abort()", None, "SIGABRT"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", None, "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", None, "SIGKILL"),
        ("ctypes.string_at(0)", None, "SIGSEGV"),
    ],
)
async def test_a_crash_is_one_answer_and_the_next_call_works(
    bench: Bench, level: Level, body: str, code: int | None, name: str | None
) -> None:
    tool = bench.tool(f"""
        import ctypes, os, signal
        from shared import toolkit
        def run(crash):
            print("last words", flush=True)
            toolkit.partial(1)
            if crash: {body}
            return "fine"
    """)

    died = await bench.run(tool, params={"crash": True}, level=level)
    after = await bench.run(tool, params={"crash": False}, level=level)

    assert isinstance(died, Died)
    assert (died.exit.exit_code, died.exit.signal) == (code, name)
    assert died.exit.peak_rss_bytes
    assert died.exit.cpu_seconds is not None
    assert "last words" in died.exit.last_lines
    assert Partial(1, explicit=True) in bench.events
    assert after == Returned("fine")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", STUBBORN)
async def test_a_tool_that_hangs_is_ended_within_a_second_of_its_deadline(
    bench: Bench, kind: str, level: Level
) -> None:
    tool = bench.tool(STUBBORN[kind])

    begun = time.monotonic()
    answer = await bench.run(tool, timeout_seconds=0.5, level=level)
    took = time.monotonic() - begun

    assert isinstance(answer, TimedOut)
    assert answer.exit.signal in ("SIGTERM", "SIGKILL")
    assert took < 0.5 + 1.0


async def test_the_stacks_of_all_threads_are_in_the_log_and_in_the_record(bench: Bench) -> None:
    answer = await bench.run(
        """
        import threading, time
        def waits_here(): time.sleep(100)
        def spins_here():
            while True: pass
        def run():
            threading.Thread(target=waits_here, daemon=True).start()
            spins_here()
        """,
        timeout_seconds=0.5,
    )

    assert isinstance(answer, TimedOut)
    assert "in waits_here" in answer.exit.stacks
    assert "in spins_here" in answer.exit.stacks
    assert "isolation" not in answer.exit.stacks
    assert bench.lines("stacks") == answer.exit.stacks.splitlines()


async def test_an_import_that_hangs_is_a_time_out(bench: Bench) -> None:
    answer = await bench.run("while True: pass\ndef run(): pass", timeout_seconds=0.3)

    assert isinstance(answer, TimedOut)


async def test_cancelling_ends_a_run(bench: Bench) -> None:
    cancel = asyncio.Event()
    running = asyncio.create_task(bench.run(STUBBORN["spins"], cancel=cancel))
    await bench.printed("begun")

    cancel.set()

    assert isinstance(await running, Cancelled)


async def test_cancel_before_the_call_runs_nothing(bench: Bench) -> None:
    cancel = asyncio.Event()
    cancel.set()

    assert isinstance(await bench.run("print('begun')\ndef run(): pass", cancel=cancel), Cancelled)
    assert bench.events == []


async def test_a_cancelled_task_leaves_no_process(bench: Bench) -> None:
    tool = bench.tool("import os\ndef run():\n    print(os.getpid())\n    while True: pass")
    running = asyncio.create_task(bench.run(tool))
    line = await bench.until(lambda event: isinstance(event, LogLine))

    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    assert isinstance(line, LogLine)
    assert not Path(f"/proc/{line.text}").exists()


@pytest.mark.parametrize("level", LEVELS)
async def test_the_whole_tree_is_ended_including_new_sessions(bench: Bench, level: Level) -> None:
    tool = bench.tool("""
        import os, signal, subprocess, sys
        def run():
            code = "import os, signal, time; os.setsid(); signal.signal(15, signal.SIG_IGN);"
            code += "print(os.getpid(), flush=True); time.sleep(1000)"
            middle = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {code!r}]);"
            middle += "time.sleep(1000)"
            child = subprocess.Popen([sys.executable, "-c", middle], start_new_session=True)
            child.wait()
    """)
    cancel = asyncio.Event()
    running = asyncio.create_task(bench.run(tool, level=level, cancel=cancel))
    line = await bench.until(lambda event: isinstance(event, LogLine))
    assert isinstance(line, LogLine)

    cancel.set()
    answer = await running

    assert isinstance(answer, Cancelled)
    await gone(int(line.text), 1.0)


async def test_an_orphaned_grandchild_is_ended_with_the_tool(bench: Bench) -> None:
    tool = bench.tool("""
        import os, subprocess, sys, time
        def run():
            code = "import subprocess, sys; subprocess.Popen(['sleep', '1000'], start_new_session=True)"
            subprocess.run([sys.executable, "-c", code])
            me = os.getpid()
            print(open(f"/proc/{me}/task/{me}/children").read().split()[0], flush=True)
            os._exit(1)
    """)

    answer = await bench.run(tool)

    assert isinstance(answer, Died)
    await gone(int(bench.lines()[0]), 1.0)


FIFTY = {
    "spins": "while True: pass",
    "sleeps in C": "while True: ctypes.PyDLL(None).sleep(100)",
    "traps TERM": """
        signal.signal(signal.SIGTERM, lambda *_: None)
        while True:
            try: time.sleep(100)
            except BaseException: pass""",
    "has a grandchild": """
        subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 1000"], start_new_session=True)
        time.sleep(1000)""",
}
FIFTY_SECONDS = 1.0
"""The time from the deadline to a free slot, for fifty runs with the same deadline."""

SLOWNESS = 3.0
"""A machine that does other work at the same time may be so many times slower."""


async def test_fifty_hanging_runs_are_ended_in_time(tools: Path) -> None:
    kinds = [*FIFTY, *FIFTY] * 7
    async with bench(tools, capacity=50) as many:
        tool = {
            kind: many.tool(f"""
import ctypes, signal, subprocess, time
def run(hang):
    if hang:
        {body}
""")
            for kind, body in FIFTY.items()
        }
        await asyncio.gather(*(many.run(tool[kind], params={"hang": False}) for kind in kinds[:50]))
        late: list[float] = []

        async def hang(kind: str) -> Answer:
            deadline = asyncio.get_running_loop().time() + 1.0
            answer = await many.run(tool[kind], params={"hang": True}, timeout_seconds=1.0)
            late.append(asyncio.get_running_loop().time() - deadline)
            return answer

        answers = await asyncio.gather(*map(hang, kinds[:50]))
        free = many.pool.inspect().free_slots

    print(
        f"50 ended: the median {statistics.median(late):.2f} s, the last {max(late):.2f} s after its deadline"
    )
    assert all(isinstance(answer, TimedOut) for answer in answers)
    assert free == 50
    assert max(late) < FIFTY_SECONDS * SLOWNESS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_tool_that_attacks_the_fork_server_harms_only_what_runs_now(
    bench: Bench, number: int
) -> None:
    tool = bench.tool(
        f"""
        import os, subprocess
        def run():
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            print(child.pid)
            os.kill(os.getppid(), {int(number)})
            while True: pass
        """,
        sandbox=Sandbox.OFF,
    )
    answer = await bench.run(tool, timeout_seconds=0.5)
    after = await bench.run("def run(): return 1")

    assert isinstance(answer, Died | TimedOut)
    assert after == Returned(1)
    await gone(int(bench.lines()[0]), 1.0)


@pytest.mark.parametrize("attacked", ["the fork server", "the fork server's guard", "both"])
async def test_a_grandchild_with_its_own_environment_dies_with_the_fork_server(
    bench: Bench, attacked: str
) -> None:
    source = """
        import os, subprocess
        def run(attacked, service):
            server = os.getppid()
            guard = int(open(f"/proc/{server}/stat").read().rpartition(")")[2].split()[1])
            assert guard != service
            child = subprocess.Popen(
                ["sleep", "1000"], start_new_session=True, env={} if attacked == "the fork server" else None
            )
            print(child.pid, flush=True)
            if attacked != "the fork server": os.kill(guard, 9)
            if attacked != "the fork server's guard": os.kill(server, 9)
            while True: pass
    """
    tool = bench.tool(source, sandbox=Sandbox.OFF)

    answer = await bench.run(tool, params={"attacked": attacked, "service": os.getpid()})

    assert isinstance(answer, Died)
    await gone(int(bench.lines()[0]), 2.0)
    assert await bench.run("def run(): return 1") == Returned(1)


async def test_the_embedding_programs_own_orphans_are_left_alone(bench: Bench) -> None:
    script = "sleep 1000 >/dev/null 2>&1 & echo $!"
    starter = await asyncio.create_subprocess_exec("sh", "-c", script, stdout=subprocess.PIPE, env={})
    orphan = int((await starter.communicate())[0])

    await bench.run(bench.tool("import os\ndef run(): os.kill(os.getppid(), 9)", sandbox=Sandbox.OFF))
    await bench.pool.stop()

    try:
        assert Path(f"/proc/{orphan}").exists()
        assert orphan not in process_tree.children(os.getpid())
    finally:
        os.kill(orphan, signal.SIGKILL)


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_nobody_survives_the_service(tools: Path, is_stopped: bool) -> None:
    script = tools / "service.py"
    script.write_text(f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from services.executor.isolation.sandbox import Sandbox
from tests.isolation.bench import bench
SOURCE = '''
import os, subprocess, time
def run():
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if {is_stopped}: os.kill(os.getppid(), 19)
    print(os.getpid(), os.getppid(), child.pid, flush=True)
    time.sleep(1000)
'''
async def main():
    async with bench(Path({str(tools)!r})) as b:
        task = asyncio.create_task(b.run(b.tool(SOURCE, sandbox=Sandbox.OFF)))
        event = await b.until(lambda event: True)
        print(event.text, flush=True)
        await task
asyncio.run(main())
""")
    service = await asyncio.create_subprocess_exec(sys.executable, str(script), stdout=subprocess.PIPE)
    assert service.stdout is not None
    pids = [int(text) for text in (await service.stdout.readline()).split()]

    service.send_signal(signal.SIGKILL)
    await service.wait()

    assert len(pids) == 3
    async with asyncio.timeout(1.0):
        await asyncio.gather(*(gone(pid) for pid in pids))


async def test_the_last_lines_are_those_of_the_run_that_died(bench: Bench) -> None:
    tool = bench.tool("import os\ndef run(n, die):\n    print(n)\n    if die: os._exit(1)")
    await bench.run(tool, params={"n": "earlier", "die": False})

    answer = await bench.run(tool, params={"n": "last", "die": True})

    assert isinstance(answer, Died)
    assert answer.exit.last_lines == ("last",)


async def test_closing_every_descriptor_is_a_death_not_a_hang(bench: Bench) -> None:
    answer = await bench.run("import os\ndef run(): os.closerange(3, 1000)")

    assert isinstance(answer, Died)


async def test_a_process_that_breaks_the_protocol_is_ended(bench: Bench) -> None:
    answer = await bench.run("""
        import os, stat
        def run():
            for fd in range(3, 1024):
                try:
                    if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b"\\x00\\x00\\x00\\x02no")
                except OSError: pass
            while True: pass
    """)

    assert isinstance(answer, Died)
    assert "broke the protocol" in answer.reason


async def test_stop_ends_what_is_under_way_and_may_be_repeated(bench: Bench) -> None:
    running = asyncio.create_task(bench.run(STUBBORN["traps TERM"]))
    await bench.printed("begun")

    await bench.pool.stop()
    await bench.pool.stop()

    assert isinstance(await running, Cancelled)
    assert isinstance(await bench.run("def run(): pass"), Cancelled)


async def test_a_pool_leaves_no_descriptor_process_or_directory(tools: Path) -> None:
    before = descriptors()
    pids: list[int] = []

    async with bench(tools) as used:
        for level in Level:
            answer = await used.run(
                "import os\ndef run(): return [os.getpid(), os.getppid(), os.getcwd()]", level=level
            )
            assert isinstance(answer, Returned)
            *found, directory = answer.value
            pids += found
        await used.run("import os\ndef run(): os._exit(1)")

    await asyncio.get_running_loop().shutdown_default_executor()  # whose threads removed what runs had left
    assert descriptors() == before
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not Path(directory).parent.exists()


# -- a process that ends before it has begun ------------------------------------------


async def stopped(pid: int) -> None:
    """Stop a process, and wait until it is."""
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [1, 1_000_000])
async def test_a_call_that_its_process_has_not_read_is_made_again_by_another(bench: Bench, size: int) -> None:
    tool = bench.tool("import os\ndef run(x):\n    print(len(x))\n    return os.getpid()")
    first = await bench.run(tool, params={"x": ""})
    assert isinstance(first, Returned)
    await stopped(first.value)

    running = asyncio.create_task(bench.run(tool, params={"x": "x" * size}))
    await asyncio.sleep(0.05)
    os.kill(first.value, signal.SIGKILL)
    second = await running

    assert isinstance(second, Returned)
    assert second.value != first.value
    assert bench.lines() == ["0", str(size)]


async def test_a_call_of_a_dead_process_is_made_again(bench: Bench) -> None:
    tool = bench.tool("import os\ndef run(): return os.getpid()")
    first = await bench.run(tool)
    assert isinstance(first, Returned)

    os.kill(first.value, signal.SIGKILL)
    while Path(f"/proc/{first.value}/stat").exists():
        time.sleep(0.001)  # the loop shall not hear of it yet
    described = await bench.pool.describe(tool, 10)
    second = await bench.run(tool)

    assert described.entry == "run"
    assert isinstance(second, Returned)
    assert second.value != first.value


async def test_a_call_that_has_begun_is_not_made_again(bench: Bench) -> None:
    tool = bench.tool("""
        import os, select
        from shared import toolkit
        def run(die):
            if not die: return
            print("begun", flush=True)
            if die == "asking":
                channel = toolkit._executor.channel
                channel.send(b'{"jsonrpc":"2.0","id":1,"method":"recall","params":{"key":"k"}}')
                select.select([channel.sock], [], [])
            os.kill(os.getpid(), 9)
    """)
    for die in ("", "at once", "", "asking"):
        await bench.run(tool, params={"die": die})

    assert bench.lines() == ["begun"] * 2


# -- a process that hides ----------------------------------------------------------------

HIDING = """
    import ctypes, os, signal, sys, time
    def run(leave=False):
        ctypes.CDLL(None).prctl(36, 0)  # adopt no orphans any more
        reading, writing = os.pipe()
        if os.fork() == 0:
            if os.fork() == 0:
                os.setsid()
                os.environ.clear()
                os.write(writing, b"%d" % os.getpid())
                os.closerange(0, 100)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True: time.sleep(1000)
            os._exit(0)
        os.wait()
        print(os.read(reading, 100).decode(), flush=True)
        os.close(reading); os.close(writing)
        if leave: os._exit(1)
        return os.getpid()
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("leave", [False, True])
async def test_a_process_that_hides_from_its_tool_does_not_outlive_the_run(
    bench: Bench, level: Level, leave: bool
) -> None:
    answer = await bench.run(HIDING, params={"leave": leave}, level=level)

    assert isinstance(answer, Died if leave else Returned)
    await gone(int(bench.lines()[0]))


@pytest.mark.parametrize("level", LEVELS)
async def test_a_child_whose_end_sends_no_signal_does_not_outlive_the_run(bench: Bench, level: Level) -> None:
    answer = await bench.run(
        """
        import ctypes, os, time
        CLONE = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
        def run():
            pid = ctypes.CDLL(None).syscall(CLONE, 0, 0, 0, 0, 0)
            if pid == 0:
                while True: time.sleep(1000)
            return pid
        """,
        level=level,
    )

    assert isinstance(answer, Returned)
    await gone(answer.value)


async def test_a_process_that_gave_up_its_orphans_adopts_those_of_the_next_run(bench: Bench) -> None:
    tool = bench.tool("""
        import ctypes, os
        def run(give_up):
            answer = ctypes.c_int()
            ctypes.CDLL(None).prctl(37, ctypes.byref(answer))
            if give_up: ctypes.CDLL(None).prctl(36, 0)
            return [os.getpid(), answer.value]
    """)

    first, second = [await bench.run(tool, params={"give_up": give_up}) for give_up in (True, False)]

    assert isinstance(first, Returned)
    assert first == second
    assert first.value[1] == 1


async def test_a_process_that_hides_is_ended_while_its_run_has_limits(bench: Bench) -> None:
    tool = bench.tool(HIDING + "\n    def run_on(): run(); time.sleep(1000)")
    cancel = asyncio.Event()
    call = structs.replace(bench.call(tool, limits=Limits(cpu_seconds=100)), entry="run_on")

    running = asyncio.create_task(bench.pool.call(call, bench.report, cancel=cancel))
    line = await bench.until(lambda event: isinstance(event, LogLine))
    assert isinstance(line, LogLine)
    await gone(int(line.text))
    cancel.set()

    assert isinstance(await running, Cancelled)
