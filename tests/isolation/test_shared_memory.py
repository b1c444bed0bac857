"""Shared memory belongs to its run: nothing of it is left, and a neighbour's is left alone."""

import asyncio
import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from services.executor.isolation.calls import Died, Level, Raised, Returned
from tests.isolation import shm_scene
from tests.isolation.bench import Bench, bench, gone
from tests.isolation.users import ROOT_AND_ORDINARY, run_as, start_as

SCENE = Path(shm_scene.__file__)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may have a mount namespace")


@pytest.mark.parametrize("user", ROOT_AND_ORDINARY)
def test_neither_runs_that_return_nor_runs_that_are_ended_leave_any(user: int) -> None:
    seen = json.loads(run_as(user, SCENE).splitlines()[-1])

    assert seen["left at once"] == seen["left in the end"] == []
    assert len(seen["named"]) == 18
    assert seen["neighbour"] is True
    assert seen["warm pids"] == 1
    assert seen["errors"] == []


@pytest.mark.parametrize("user", ROOT_AND_ORDINARY)
async def test_nothing_is_left_after_the_service_was_killed(user: int) -> None:
    with start_as(user, SCENE, "hold") as service:
        assert service.stdout is not None
        names = [name for name in service.stdout.readline().split() if name.startswith("/")]
        service.kill()

    assert len(names) == 2
    async with asyncio.timeout(20):
        while any(Path("/dev/shm" + name).exists() for name in names):
            await asyncio.sleep(0.01)


@needs_root
async def test_a_process_has_a_folder_of_its_own_that_is_emptied_between_runs(bench: Bench) -> None:
    tool = bench.tool("""
        import os
        def run():
            before = os.listdir("/dev/shm")
            os.mkdir("/dev/shm/folder")
            open("/dev/shm/folder/file", "w").close()
            return [os.getpid(), before]
    """)

    first, second = [await bench.run(tool) for _ in range(2)]

    assert isinstance(first, Returned)
    assert first == second
    assert first.value[1] == []
    assert not Path("/dev/shm/folder").exists()


@needs_root
@pytest.mark.parametrize("ending", ["pass", "os._exit(3)", "while True: time.sleep(1)"])
async def test_a_fork_does_not_find_what_another_has_left(bench: Bench, ending: str) -> None:
    tool = bench.tool(f"""
        import os, time
        open("/dev/shm/imported", "w").close()
        def run(leaves):
            seen = sorted(os.listdir("/dev/shm"))
            if leaves:
                open("/dev/shm/left", "w").close()
                {ending}
            return [seen, os.getppid()]
    """)

    before, _, after, last = [
        await bench.run(tool, level=Level.FORK, params={"leaves": leaves}, timeout_seconds=2)
        for leaves in (False, True, False, False)
    ]

    assert isinstance(before, Returned)
    assert isinstance(after, Returned)
    assert before.value[0] == after.value[0] == ["imported"]
    assert before.value[1] != after.value[1]
    assert after == last  # as nothing was left


@needs_root
async def test_the_folder_is_as_large_as_the_machines(bench: Bench) -> None:
    answer = await bench.run(
        "import os\ndef run():\n    s = os.statvfs('/dev/shm'); return s.f_blocks * s.f_frsize"
    )

    there = os.statvfs("/dev/shm")
    assert answer == Returned(there.f_blocks * there.f_frsize)


@pytest.fixture
def directory_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.parametrize("level", Level)
async def test_a_pool_may_have_its_files_in_shared_memory(
    directory_in_shared_memory: Path, level: Level
) -> None:
    async with bench(directory_in_shared_memory) as own:
        tool = own.tool("import os\ndef run():\n    open('file', 'w').close(); return os.listdir('.')")

        assert [await own.run(tool, level=level) for _ in range(2)] == [Returned(["file"], 1)] * 2


@pytest.mark.parametrize("ending", ["os._exit(1)", "os.kill(os.getpid(), 9)", "raise ValueError"])
async def test_the_trackers_clean_up_after_a_run_that_fails(bench: Bench, ending: str) -> None:
    answer = await bench.run(f"""
        import os
        from multiprocessing import shared_memory
        def run():
            print(shared_memory.SharedMemory(create=True, size=1000).name, flush=True)
            {ending}
    """)

    assert isinstance(answer, Died | Raised)
    await bench.pool.stop()
    assert not Path("/dev/shm", bench.lines()[0]).exists()


async def test_a_process_that_looks_like_a_tracker_is_ended_in_the_end(bench: Bench) -> None:
    tool = bench.tool("""
        import os, subprocess, sys
        def run():
            code = "import time; time.sleep(1000) # resource_tracker import main"
            child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
            print(child.pid, flush=True)
            os._exit(1)
    """)

    answer = await bench.run(tool)

    assert isinstance(answer, Died)
    await gone(int(bench.lines()[0]))


async def test_processes_that_look_like_trackers_and_start_each_other_are_ended(
    bench: Bench, tmp_path: Path
) -> None:
    lock = tmp_path / "lock"
    tool = bench.tool("""
        import fcntl, os, subprocess, sys
        CHAIN = "import os, time\\nwhile os.fork() == 0: time.sleep(0.3)\\n# resource_tracker import main"
        def run(path):
            lock = os.open(path, os.O_RDWR | os.O_CREAT)
            fcntl.flock(lock, fcntl.LOCK_EX)
            subprocess.Popen([sys.executable, "-c", CHAIN], start_new_session=True, pass_fds=[lock])
            os._exit(1)
    """)

    answer = await bench.run(tool, params={"path": str(lock)})

    assert isinstance(answer, Died)
    with lock.open() as held:
        await until_free(held)


async def until_free(held: TextIO) -> None:
    """Wait until no process holds the lock any more."""
    async with asyncio.timeout(20):
        while True:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.02)
            else:
                return


@needs_root
async def test_each_process_has_its_own_shared_memory_of_system_v(bench: Bench) -> None:
    source = "import os\ndef run(): return os.readlink('/proc/self/ns/ipc')"

    answers = [await bench.run(bench.tool(source)) for _ in range(2)]

    spaces = {answer.value for answer in answers if isinstance(answer, Returned)}
    assert len(spaces | {str(Path("/proc/self/ns/ipc").readlink())}) == 3
