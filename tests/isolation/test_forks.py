"""What a fork shares with its template and with other forks."""

import asyncio
import contextlib
import gc
import itertools
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.executor.isolation.calls import Died, Event, Level, LogLine, Module, Returned, TimedOut
from services.executor.isolation.child import os_state
from services.executor.isolation.process import Process
from services.executor.isolation.templates import MAX_PREFORKED
from tests.isolation.bench import Bench, bench

DESCRIPTORS_OF_FORK = 8
"""Two pipes, the stacks twice, and a pair of sockets."""

OPEN_FILES = """
import os, time
def run(gate=""):
    found = []
    for name in os.listdir("/proc/self/fd"):
        try: found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError: pass
    while gate and not os.path.exists(gate): time.sleep(0.001)
    return [os.getpid(), found]
"""


@contextlib.asynccontextmanager
async def held(bench: Bench, tool: Module, gate: Path, number: int) -> AsyncIterator[Process]:
    """So many runs that go on until the block ends; yields the template, which has no other forks."""
    params = {"gate": str(gate)}
    running = [asyncio.create_task(bench.run(tool, params=params, level=Level.FORK)) for _ in range(number)]
    while sum(process.has_room for process in bench.pool.inspect().alive) < number:
        await asyncio.sleep(0)
    await asyncio.sleep(0)  # for the forks that are made once the last run has begun
    [template] = bench.pool.inspect().templates
    bench.pool.processes.templates.end_preforked(template)
    yield template
    gate.touch()
    assert all(isinstance(answer, Returned) for answer in await asyncio.gather(*running))


async def test_forks_that_are_made_together_share_no_open_file_of_their_own(tools: Path) -> None:
    async with bench(tools, capacity=2 * MAX_PREFORKED) as many:
        tool = many.tool(OPEN_FILES)
        async with held(many, tool, tools / "gate", MAX_PREFORKED) as template:
            many.pool.processes.templates.prefork(template)

            runs = [many.run(tool, level=Level.FORK) for _ in range(MAX_PREFORKED)]
            answers = await asyncio.gather(*runs)

    found = [answer.value for answer in answers if isinstance(answer, Returned)]
    assert len({pid for pid, _ in found}) == MAX_PREFORKED
    for kind, number in (("socket:", 1), ("pipe:", 2)):
        own = [name for _, names in found for name in names if name.startswith(kind)]
        assert len(own) == len(set(own)) == number * MAX_PREFORKED
    assert [sum("memfd:" in name for name in names) for _, names in found] == [1] * MAX_PREFORKED


@pytest.mark.parametrize(("runs", "forks"), [(1, 1), (2, 2), (2 * MAX_PREFORKED, MAX_PREFORKED)])
async def test_as_many_forks_wait_as_there_are_runs_up_to_a_limit(tools: Path, runs: int, forks: int) -> None:
    async with (
        bench(tools, capacity=2 * MAX_PREFORKED) as many,
        held(many, many.tool(OPEN_FILES), tools / "gate", runs) as template,
    ):
        while template.child_count > runs:
            await asyncio.sleep(0)

        many.pool.processes.templates.prefork(template)

        assert len(many.pool.inspect().preforked) == forks


async def test_a_fork_is_the_first_to_call_the_tool_and_to_say_anything(bench: Bench) -> None:
    tool = bench.tool("""
        calls = []
        def run():
            calls.append(1)
            print("here")
            return len(calls)
    """)

    answers = [await bench.run(tool, level=Level.FORK) for _ in range(3)]

    assert answers == [Returned(1)] * 3
    assert [event.text for event in bench.events if isinstance(event, LogLine)] == ["here"] * 3


async def test_a_tool_may_change_what_sockets_are_when_it_is_imported(bench: Bench) -> None:
    tool = bench.tool("""
        import socket, time
        socket.setdefaulttimeout(0.001)
        socket.socket = socket.socketpair = None
        def run():
            time.sleep(0.01)
            return 1
    """)

    assert [await bench.run(tool, level=Level.FORK) for _ in range(3)] == [Returned(1)] * 3


async def test_a_forks_log_can_be_followed_while_it_runs(bench: Bench, tools: Path) -> None:
    tool = bench.tool("""
        import os, time
        def run(gate):
            print("begun")
            while not os.path.exists(gate): time.sleep(0.001)
    """)

    def release(event: Event) -> None:
        (tools / "gate").touch()

    call = bench.call(tool, {"gate": str(tools / "gate")}, level=Level.FORK)
    answer = await bench.perform(call, release)

    assert answer == Returned(None)


@pytest.mark.parametrize("level", list(Level))
async def test_a_tool_sees_nothing_of_how_its_interpreter_was_started(bench: Bench, level: Level) -> None:
    tool = bench.tool("""
        import os, subprocess
        def run():
            seen = subprocess.run(["env"], stdout=subprocess.PIPE, check=True, text=True).stdout
            return "LD_BIND_NOW" in seen or "LD_BIND_NOW" in os.environ
    """)

    assert await bench.run(tool, level=level) == Returned(False)


async def test_a_template_keeps_nothing_of_the_forks_that_it_has_made(bench: Bench) -> None:
    tool = bench.tool(OPEN_FILES)

    async def rest() -> None:
        """Wait until the only forks are those that wait for a call, and these exist."""
        while not (waiting := bench.pool.inspect().preforked) or template.child_count > len(waiting):
            await asyncio.sleep(0.001)
        while not all(fork.pid for fork in waiting):
            await asyncio.sleep(0.001)

    await bench.run(tool, level=Level.FORK)
    [template] = bench.pool.inspect().templates
    await rest()
    before = sorted(Path(f"/proc/{template.pid}/fd").iterdir())

    for _ in range(3 * MAX_PREFORKED):
        await bench.run(tool, level=Level.FORK)
    await rest()

    assert sorted(Path(f"/proc/{template.pid}/fd").iterdir()) == before


@pytest.mark.parametrize("closed", ["1", "2", "1, 2", "0, 1, 2"])
async def test_a_fork_has_its_streams_where_the_import_has_closed_them(bench: Bench, closed: str) -> None:
    tool = bench.tool(f"""
        import os
        for descriptor in ({closed},): os.close(descriptor)
        def run():
            os.write(1, b"one\\n")
            os.write(2, b"two\\n")
    """)

    answers = [await bench.run(tool, level=Level.FORK) for _ in range(MAX_PREFORKED)]

    assert answers == [Returned(None)] * MAX_PREFORKED
    lines = [(event.stream, event.text) for event in bench.events if isinstance(event, LogLine)]
    assert lines == [("stdout", "one"), ("stderr", "two")] * MAX_PREFORKED


@pytest.mark.parametrize(
    ("at_import", "seen"),
    [
        ("pass", [False, False, False]),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])", [True, False, False]),
        ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", [False, True, False]),
        ("signal.signal(signal.SIGCHLD, heard)", [False, False, True]),
    ],
)
async def test_a_fork_has_the_sigchld_of_its_import(bench: Bench, at_import: str, seen: list[bool]) -> None:
    tool = bench.tool(f"""
        import os, signal
        calls = []
        def heard(number, frame): calls.append(number)
        {at_import}
        def run(exits):
            if exits: os._exit(3)
            if not os.fork(): os._exit(0)
            try: os.wait()
            except ChildProcessError: pass
            blocked = signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            return [blocked, signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN, bool(calls)]
    """)

    for _ in range(2):
        assert await bench.run(tool, params={"exits": False}, level=Level.FORK) == Returned(seen, len(seen))
    died = await bench.run(tool, params={"exits": True}, level=Level.FORK)

    assert isinstance(died, Died)
    assert died.exit.exit_code == 3


@pytest.mark.parametrize("action", ["ignored", "no zombies"])
async def test_an_import_that_has_the_kernel_reap_its_children_holds_no_slot(
    tools: Path, action: str
) -> None:
    """By C, so that Python doesn't know: nobody would hear of a fork's end."""
    async with bench(tools, capacity=2) as small:
        tool = small.tool(f"""
            import ctypes, os, signal
            libc = ctypes.CDLL(None)
            action = (ctypes.c_ulong * 32)()
            if {action!r} == "ignored":
                action[0] = 1
            else:
                action[17] = 2  # SA_NOCLDWAIT
            assert libc.sigaction(signal.SIGCHLD, action, None) == 0
            def run():
                if not os.fork(): os._exit(0)
                try: os.wait()
                except ChildProcessError: return "buried"
        """)
        for _ in range(8):
            answer = await small.run(tool, level=Level.FORK, timeout_seconds=10)
            assert answer == Returned("buried")

        assert await small.run("def run(): return 1", timeout_seconds=10) == Returned(1)


async def test_a_template_that_reaps_nobody_is_given_up(tools: Path) -> None:
    """It answers, so only that it reaps nobody gives it away."""
    async with bench(tools, capacity=2, overdue_seconds=0.05) as small:
        tool = small.tool("""
            import os
            os.wait4 = lambda *_: (0, 0, None)
            def run(): return 1
        """)
        for _ in range(8):  # its end takes along what it has forked
            assert isinstance(await small.run(tool, level=Level.FORK, timeout_seconds=20), Returned | Died)

        assert await small.run("def run(): return 1", timeout_seconds=20) == Returned(1)


async def test_functions_called_after_a_fork_have_the_sigchld_of_the_import(bench: Bench) -> None:
    tool = bench.tool("""
        import os, signal
        seen = []
        def after(): seen.append(signal.SIGCHLD in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        os.register_at_fork(after_in_child=after)
        def run(): return seen
    """)

    assert await bench.run(tool, level=Level.FORK) == Returned([False], 1)


async def test_a_program_that_a_fork_starts_has_streams_that_the_import_had_closed(bench: Bench) -> None:
    tool = bench.tool("""
        import os, subprocess
        for descriptor in (0, 1): os.close(descriptor)
        def run(): subprocess.run(["echo", "here"], check=True)
    """)

    for _ in range(MAX_PREFORKED):
        assert await bench.run(tool, level=Level.FORK) == Returned(None)

    lines = [(event.stream, event.text) for event in bench.events if isinstance(event, LogLine)]
    assert lines == [("stdout", "here")] * MAX_PREFORKED


async def test_a_fork_that_closes_the_file_of_its_stacks_is_ended(bench: Bench) -> None:
    tool = bench.tool("""
        import os, time
        def run():
            for name in os.listdir("/proc/self/fd"):
                try: goes = os.readlink(f"/proc/self/fd/{name}")
                except OSError: continue
                if "memfd:" in goes: os.close(int(name))
            time.sleep(60)
    """)

    answer = await bench.run(tool, level=Level.FORK, timeout_seconds=0.2)

    assert isinstance(answer, TimedOut)
    assert answer.exit.stacks == ""


@pytest.mark.parametrize(
    ("descriptors", "ranges"),
    [([], []), ([4], [(4, 5)]), ([9, 4, 5, 6, 8], [(4, 7), (8, 10)])],
)
def test_descriptors_are_closed_in_as_few_ranges_as_there_are(
    descriptors: list[int], ranges: list[tuple[int, int]]
) -> None:
    assert os_state.ranges(descriptors) == ranges


async def test_nothing_of_a_fork_waits_for_the_garbage_collector(bench: Bench) -> None:
    tool = bench.tool("def run(): return 1")
    await bench.run(tool, level=Level.FORK)
    gc.collect()
    gc.disable()
    try:
        for _ in range(4):
            assert await bench.run(tool, level=Level.FORK) == Returned(1)
        while len((state := bench.pool.inspect()).alive) > len(state.preforked) + len(state.templates):
            await asyncio.sleep(0.001)
        await asyncio.sleep(0)
        existing = sum(isinstance(found, Process) for found in gc.get_objects())
    finally:
        gc.enable()

    assert existing == len(bench.pool.inspect().alive)


# -- when something is short ----------------------------------------------------------


@contextlib.contextmanager
def free_descriptors(number: int) -> Iterator[None]:
    """Let this process open so many more descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    free = (descriptor for descriptor in itertools.count() if descriptor not in used)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(itertools.islice(free, number, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("free", "forks"), [(4, 0), (DESCRIPTORS_OF_FORK + 4, 1)])
async def test_with_too_few_descriptors_a_single_fork_or_none_is_made(
    bench: Bench, tools: Path, free: int, forks: int
) -> None:
    async with held(bench, bench.tool(OPEN_FILES), tools / "gate", 2) as template:
        while template.child_count > 2:
            await asyncio.sleep(0)
        alive = len(bench.pool.inspect().alive)

        with free_descriptors(free):
            bench.pool.processes.templates.prefork(template)

        state = bench.pool.inspect()
        assert len(state.preforked) == forks
        assert len(state.alive) == alive + forks
