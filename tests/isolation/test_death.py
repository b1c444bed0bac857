"""Processes that end themselves, that have to be ended, and what they leave behind."""

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.executor.isolation.calls import Cancelled, Died, Level, LogLine, Partial, Returned, TimedOut
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
    assert Partial(1) in bench.events
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


async def test_cancel_ends_a_run_and_says_so(bench: Bench) -> None:
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
async def test_the_whole_tree_is_ended_even_what_called_setsid(bench: Bench, level: Level) -> None:
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


async def test_a_grandchild_whose_parents_are_dead_goes_with_the_tool(bench: Bench) -> None:
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


async def test_fifty_hanging_at_once_are_all_ended_in_time(tools: Path) -> None:
    async with bench(tools, capacity=50) as many:
        tool = many.tool("import time\ndef run(hang):\n    while hang: time.sleep(100)")
        await asyncio.gather(*(many.run(tool, params={"hang": False}) for _ in range(50)))

        begun = time.monotonic()
        answers = await asyncio.gather(
            *(many.run(tool, params={"hang": True}, timeout_seconds=0.5) for _ in range(50))
        )
        took = time.monotonic() - begun

    assert all(isinstance(answer, TimedOut) for answer in answers)
    assert took < 0.5 + 2.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_tool_that_attacks_the_fork_server_harms_only_what_runs_now(
    bench: Bench, number: int
) -> None:
    answer = await bench.run(
        f"""
        import os, subprocess
        def run():
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            print(child.pid)
            os.kill(os.getppid(), {int(number)})
            while True: pass
        """,
        timeout_seconds=0.5,
    )
    after = await bench.run("def run(): return 1")

    assert isinstance(answer, Died | TimedOut)
    assert after == Returned(1)
    await gone(int(bench.lines()[0]), 1.0)


def descriptors() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


async def test_nobody_survives_the_service(tools: Path) -> None:
    script = tools / "service.py"
    script.write_text(f"""
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.isolation.bench import bench
SOURCE = '''
import os, subprocess, time
def run():
    child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    print(os.getpid(), os.getppid(), child.pid)
    time.sleep(1000)
'''
async def main():
    async with bench(Path({str(tools)!r})) as b:
        task = asyncio.create_task(b.run(SOURCE))
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


async def test_nonsense_on_the_connection_costs_the_process_its_life(bench: Bench) -> None:
    answer = await bench.run("""
        import os, stat
        def run():
            for fd in range(3, 20):
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

    assert descriptors() == before
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
    assert not Path(directory).parent.exists()
