"""The limits of a run, and the answer when it exceeds one."""

import asyncio
import json
import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

from services.executor.isolation import cgroups, resource_limits
from services.executor.isolation.calls import Died, Level, Limits, Raised, Returned
from services.executor.isolation.common import memory
from tests.isolation import limits_scene
from tests.isolation.bench import Bench
from tests.isolation.bench import bench as bench_of
from tests.isolation.users import ROOT_AND_ORDINARY, run_as

LEVELS = list(Level)


@pytest.mark.parametrize("level", LEVELS)
async def test_memory_is_limited_for_the_whole_tree(bench: Bench, level: Level) -> None:
    answer = await bench.run(
        """
        import subprocess, sys
        def run():
            code = "x = bytearray(150_000_000); x[::4096] = b'1' * len(x[::4096]); input()"
            child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
            child.wait()
        """,
        limits=Limits(memory_bytes=100_000_000),
        level=level,
    )

    assert isinstance(answer, Died)
    assert answer.reason.startswith("memory limit: ")
    assert "100000000" in answer.reason
    assert answer.exit.peak_rss_bytes
    assert answer.exit.peak_rss_bytes > 100_000_000


async def test_nobody_waits_while_a_run_is_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    measured_in: list[threading.Thread] = []
    real = memory.held_bytes

    def held_bytes(pids: list[int], **options: int) -> int:
        if not options:  # but for one process with few files, when the run is over
            measured_in.append(threading.current_thread())
        return real(pids, **options)

    monkeypatch.setattr(memory, "held_bytes", held_bytes)

    await bench.run("import time\ndef run(): time.sleep(0.5)", limits=Limits(memory_bytes=100_000_000))

    assert measured_in
    assert threading.main_thread() not in measured_in


def test_many_open_files_are_not_looked_at_if_there_is_no_time() -> None:
    descriptors = [os.memfd_create("x") for _ in range(3)]
    try:
        for descriptor in descriptors:
            os.write(descriptor, bytes(10_000_000))

        assert memory.held_bytes([os.getpid()]) - memory.held_bytes([os.getpid()], max_files=2) >= 30_000_000
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


async def test_memory_that_is_only_reserved_does_not_count(bench: Bench) -> None:
    answer = await bench.run(
        "import mmap, time\ndef run():\n    m = mmap.mmap(-1, 10**10)\n    time.sleep(0.4)\n    return 1",
        limits=Limits(memory_bytes=100_000_000),
    )

    assert isinstance(answer, Returned)


@pytest.mark.parametrize("ending", ["return 1", "raise ValueError"])
@pytest.mark.parametrize("seconds", [0, 0.3])
async def test_the_memory_of_a_limited_run_is_reported(bench: Bench, ending: str, seconds: float) -> None:
    answer = await bench.run(
        f"""
        import time
        held = []
        def run():
            held.append(b"1" * 50_000_000)
            time.sleep({seconds})
            {ending}
        """,
        limits=Limits(memory_bytes=500_000_000),
    )

    assert isinstance(answer, Returned | Raised)
    assert answer.peak_rss_bytes
    assert 50_000_000 < answer.peak_rss_bytes < 500_000_000


async def test_the_memory_of_a_run_without_limits_is_not_measured(bench: Bench) -> None:
    assert await bench.run("def run(): return 1") == Returned(1)


@pytest.mark.parametrize("level", LEVELS)
async def test_cpu_seconds_are_limited(bench: Bench, level: Level) -> None:
    answer = await bench.run(
        "def run():\n    while True: pass", limits=Limits(cpu_seconds=1), level=level, timeout_seconds=20
    )

    assert isinstance(answer, Died)
    assert answer.reason.startswith("CPU limit")


@pytest.mark.parametrize("level", LEVELS)
async def test_cpu_seconds_are_limited_for_a_tool_that_ignores_the_kernels_signal(
    bench: Bench, level: Level
) -> None:
    answer = await bench.run(
        """
        import signal
        def run():
            signal.signal(signal.SIGXCPU, signal.SIG_IGN)
            while True: pass
        """,
        limits=Limits(cpu_seconds=1), level=level, timeout_seconds=20,
    )  # fmt: skip

    assert isinstance(answer, Died)
    assert answer.reason.startswith("CPU limit: ")


CHILDREN = {
    "one after the other": "for _ in range(20): subprocess.run(command)",
    "at once": "[child.wait() for child in [subprocess.Popen(command) for _ in range(4)]]",
    "one that goes on": "subprocess.run([*command[:-1], 'while True: pass'])",
    "orphans": "subprocess.run(['sh', '-c', '\"$@\" & \"$@\" &', '', *command]); time.sleep(30)",
}


@pytest.mark.parametrize("kind", CHILDREN)
async def test_cpu_seconds_are_those_of_all_processes_of_the_run(bench: Bench, kind: str) -> None:
    answer = await bench.run(
        f"""
        import subprocess, sys, time
        command = [sys.executable, "-S", "-c", "import time\\nwhile time.process_time() < 0.8: pass"]
        def run():
            {CHILDREN[kind]}
        """,
        limits=Limits(cpu_seconds=1), timeout_seconds=30,
    )  # fmt: skip

    assert isinstance(answer, Died)
    assert answer.reason.startswith("CPU limit: ")


async def test_cpu_seconds_count_per_run_in_a_warm_process(bench: Bench) -> None:
    tool = bench.tool("""
        import os, time
        def run():
            end = time.process_time() + 0.7
            while time.process_time() < end: pass
            return os.getpid()
    """)

    answers = [await bench.run(tool, limits=Limits(cpu_seconds=1)) for _ in range(3)]

    assert all(isinstance(answer, Returned) for answer in answers)
    assert answers[0] == answers[1] == answers[2]


async def test_file_size_and_open_files_are_limited_and_restored(bench: Bench) -> None:
    tool = bench.tool("""
        import os
        def run(what):
            if what == "size":
                with open("x", "wb") as file: file.write(bytes(100_000))
            if what == "files":
                files = [open("/dev/null") for _ in range(100)]
                for file in files: file.close()
            return os.getpid()
    """)
    before = await bench.run(tool, params={"what": ""})

    size = await bench.run(tool, params={"what": "size"}, limits=Limits(file_size_bytes=10_000))
    files = await bench.run(tool, params={"what": "files"}, limits=Limits(open_files=50))

    assert isinstance(size, Raised)
    assert "File too large" in size.message
    assert isinstance(files, Raised)
    assert "Too many open files" in files.message
    assert await bench.run(tool, params={"what": "size"}) == before
    assert await bench.run(tool, params={"what": "files"}) == before


BOMB = """
    import os, time
    def run(number, wait=0):
        made = 0
        for _ in range(number):
            try: pid = os.fork()
            except OSError: break
            if pid == 0:
                time.sleep(1000)
            made += 1
            print(made, flush=True)
        time.sleep(wait)
        if wait: raise ValueError("it went on")
        return made
"""


@pytest.mark.parametrize("level", LEVELS)
async def test_the_number_of_processes_is_limited(bench: Bench, level: Level) -> None:
    answer = await bench.run(
        BOMB, params={"number": 150, "wait": 20}, limits=Limits(processes=40), level=level
    )

    assert isinstance(answer, Died), answer
    assert answer.reason.startswith("process limit: ")
    assert "40 are allowed" in answer.reason


needs_cgroups = pytest.mark.skipif(cgroups.home() is None, reason="no control group can be made here")


@needs_cgroups
@pytest.mark.parametrize("level", LEVELS)
async def test_where_the_kernel_limits_processes_there_are_never_more(bench: Bench, level: Level) -> None:
    answer = await bench.run(BOMB, params={"number": 150}, limits=Limits(processes=40), level=level)

    assert isinstance(answer, Died), answer
    assert answer.reason.startswith("process limit: ")
    assert len(bench.lines()) == 39


async def test_a_tool_can_not_have_another_process_limited_in_place_of_its_own(bench: Bench) -> None:
    victim = subprocess.Popen(["sleep", "1000"])
    groups = [Path(f"/proc/{pid}/cgroup") for pid in (victim.pid, os.getpid())]
    before = [group.read_text() for group in groups]
    tool = bench.tool(f"""
        import time
        from shared import toolkit
        channel = toolkit._executor.channel
        notify = channel.notify
        def forging(method, params):
            if method == "forked":
                params = {{"children": [(token, {victim.pid}) for token, _ in params["children"]]}}
            notify(method, params)
        channel.notify = forging
        def run(): time.sleep(5)
    """)
    try:
        answer = await bench.run(tool, level=Level.FORK, limits=Limits(processes=2))

        assert isinstance(answer, Died)
        assert [group.read_text() for group in groups] == before
    finally:
        victim.kill()
        victim.wait()


@needs_cgroups
async def test_the_limit_of_one_run_does_not_hold_for_the_next(bench: Bench) -> None:
    tool = bench.tool("""
        import os, subprocess
        def run(number):
            children = [subprocess.Popen(["sleep", "1000"]) for _ in range(number)]
            for child in children: child.kill(); child.wait()
            return os.getpid()
    """)

    answers = [
        await bench.run(tool, params={"number": number}, limits=Limits(processes=limit))
        for number, limit in ((2, 3), (4, None), (2, 3), (5, 6))
    ]

    assert isinstance(answers[0], Returned)
    assert [answer.value for answer in answers if isinstance(answer, Returned)] == [answers[0].value] * 4


@needs_cgroups
async def test_the_threads_that_the_import_has_started_do_not_count(bench: Bench) -> None:
    tool = bench.tool("""
        import subprocess, threading, time
        for _ in range(5): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        def run(): return subprocess.run(["true"]).returncode
    """)

    answer = await bench.run(tool, limits=Limits(processes=2))

    assert isinstance(answer, Returned), answer
    assert answer.value == 0


@needs_cgroups
async def test_reports_need_no_room_under_the_limit(bench: Bench) -> None:
    tool = bench.tool("""
        import subprocess
        from shared import toolkit
        def run():
            for number in range(3): toolkit.progress(number)
            return subprocess.run(["true"]).returncode
    """)

    answers = [await bench.run(tool, limits=Limits(processes=2)) for _ in range(2)]

    assert [answer.value for answer in answers if isinstance(answer, Returned)] == [0, 0], answers


@needs_cgroups
async def test_the_groups_go_with_their_processes(tmp_path: Path) -> None:
    home = cgroups.home()
    assert home is not None
    async with bench_of(tmp_path) as own:
        await own.run("def run(): return 1", limits=Limits(processes=3))
        assert list(home.glob(f"{cgroups.PREFIX}{os.getpid()}-*"))

    async with asyncio.timeout(10):
        while list(home.glob(f"{cgroups.PREFIX}{os.getpid()}-*")):
            await asyncio.sleep(0.01)


async def test_without_control_groups_processes_are_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource_limits, "home", lambda: None)

    answer = await bench.run(BOMB, params={"number": 10, "wait": 20}, limits=Limits(processes=5))

    assert isinstance(answer, Died)
    assert re.fullmatch(r"process limit: the run had \d+ processes, and 5 are allowed", answer.reason)


HIDDEN = {
    "a file in memory": "os.write(os.memfd_create('x'), bytes(150_000_000))",
    "a file in memory, piece by piece":
        "f = os.memfd_create('x'); [os.write(f, bytes(10_000_000)) for _ in range(15)]",
    "a shared map": "m = mmap.mmap(-1, 150_000_000); m.write(b'1' * 150_000_000)",
    "a shared segment":
        "s = shared_memory.SharedMemory(create=True, size=150_000_000); s.buf[:] = bytes(s.size)",
    "some of each":
        "f = os.memfd_create('x'); os.write(f, bytes(60_000_000));"
        "m = mmap.mmap(-1, 60_000_000); [m.write(b'1' * 1_000_000) for _ in range(60)]",
    "a file of a child":
        "code = 'import os, time; os.write(os.memfd_create(str()), bytes(150_000_000)); time.sleep(100)';"
        "child = subprocess.Popen([sys.executable, '-c', code])",
}  # fmt: skip
HIDDEN_FROM_OTHERS = {
    "a shared map that is let go":
        "m = mmap.mmap(-1, 150_000_000); m.write(b'1' * 150_000_000); m.madvise(mmap.MADV_DONTNEED)",
    "a file in shared memory that is closed": "open('/dev/shm/file', 'wb').write(bytes(150_000_000))",
}  # fmt: skip
HIDING = """
    import mmap, os, subprocess, sys, time
    from multiprocessing import shared_memory
    def run():
        {body}
        time.sleep(100)
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("what", HIDDEN)
async def test_memory_in_files_counts(bench: Bench, what: str, level: Level) -> None:
    answer = await bench.run(
        HIDING.format(body=HIDDEN[what]), limits=Limits(memory_bytes=100_000_000), level=level
    )

    assert isinstance(answer, Died), answer
    assert answer.reason.startswith("memory limit: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees it, and has a folder of its own")
@pytest.mark.parametrize("what", HIDDEN_FROM_OTHERS)
async def test_memory_that_only_root_sees_counts_for_root(bench: Bench, what: str) -> None:
    answer = await bench.run(
        HIDING.format(body=HIDDEN_FROM_OTHERS[what]), limits=Limits(memory_bytes=100_000_000)
    )

    assert isinstance(answer, Died), answer
    assert answer.reason.startswith("memory limit: ")


async def test_what_processes_share_counts_once(bench: Bench) -> None:
    answer = await bench.run(
        """
        import mmap, os, time
        from multiprocessing import shared_memory
        def run():
            block = shared_memory.SharedMemory(create=True, size=60_000_000)
            for start in range(0, block.size, 1_000_000):
                block.buf[start : start + 1_000_000] = b"1" * 1_000_000
            for _ in range(2):
                if os.fork() == 0:
                    assert sum(block.buf[::4096]) > 0
                    time.sleep(0.5)
                    os._exit(0)
            time.sleep(0.5)
            os.wait(); os.wait()
            block.unlink()
            return 1
        """,
        limits=Limits(memory_bytes=170_000_000),
    )

    assert isinstance(answer, Returned), answer
    assert answer.peak_rss_bytes
    assert 60_000_000 < answer.peak_rss_bytes < 170_000_000


@pytest.mark.parametrize("user", ROOT_AND_ORDINARY)
def test_limits_hold_whoever_the_user_is(user: int) -> None:
    seen = json.loads(run_as(user, Path(limits_scene.__file__)).splitlines()[-1])

    kinds = {what: reason.partition(":")[0] for what, reason in seen.items()}
    assert kinds == {
        what: "process limit" if what.startswith("processes") else "memory limit" for what in seen
    }
    assert len(seen) == 12
