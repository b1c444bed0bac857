"""Which process serves which run."""

import asyncio
import os
import resource
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Answer, Cancelled, Died, Level, Returned, TimedOut
from services.executor.isolation.common import process_tree
from tests.isolation.bench import Bench, bench, gone

PID = "import os\ndef run(wait=0):\n    import time; time.sleep(wait)\n    return os.getpid()"


def value(answer: Answer) -> Any:
    assert isinstance(answer, Returned)
    return answer.value


async def test_warm_runs_share_a_process_and_others_do_not(bench: Bench) -> None:
    tool = bench.tool(PID)

    pids = {level: [value(await bench.run(tool, level=level)) for _ in range(3)] for level in Level}

    assert len(set(pids[Level.WARM])) == 1
    assert len(set(pids[Level.FORK])) == 3
    assert len(set(pids[Level.SPAWN])) == 3


async def test_a_fork_has_the_import_but_nothing_of_other_runs(bench: Bench) -> None:
    tool = bench.tool("""
        import os
        IMPORTED_BY = os.getpid()
        RUNS = []
        def run():
            RUNS.append(1)
            return [IMPORTED_BY, len(RUNS)]
    """)

    first = value(await bench.run(tool, level=Level.FORK))
    second = value(await bench.run(tool, level=Level.FORK))

    assert first == second
    assert first[1] == 1


async def test_no_process_interrupts_the_executor_when_it_is_woken(bench: Bench) -> None:
    tool = bench.tool("import os\ndef run(): return os.sched_getscheduler(0)")

    policies = [value(await bench.run(tool, level=level)) for level in Level]

    assert policies == [os.SCHED_BATCH] * 3


async def test_an_import_that_leaves_threads_behind_is_not_forked(bench: Bench) -> None:
    tool = bench.tool("""
        import os, threading, time
        IMPORTED_BY = os.getpid()
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        RUNS = []
        def run():
            RUNS.append(1)
            return [IMPORTED_BY == os.getpid(), len(RUNS), threading.active_count()]
    """)

    answers = [await bench.run(tool, level=Level.FORK) for _ in range(2)]

    assert answers == [Returned([True, 1, 2], 3)] * 2


async def test_such_a_tool_can_still_be_warm(bench: Bench) -> None:
    tool = bench.tool("""
        import os, threading, time
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        def run(): return os.getpid()
    """)

    assert await bench.run(tool) == await bench.run(tool)


async def test_an_exception_keeps_its_process(bench: Bench) -> None:
    tool = bench.tool("import os\ndef run(fail):\n    if fail: raise ValueError\n    return os.getpid()")
    before = await bench.run(tool, params={"fail": False})

    await bench.run(tool, params={"fail": True})

    assert await bench.run(tool, params={"fail": False}) == before


async def test_a_process_is_recycled_after_its_runs(tools: Path) -> None:
    async with bench(tools, max_runs=2) as few:
        tool = few.tool(PID)

        pids = [value(await few.run(tool)) for _ in range(6)]

    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]


async def test_a_process_is_recycled_when_it_holds_too_much_memory(tools: Path) -> None:
    async with bench(tools, max_rss_bytes=60_000_000) as lean:
        tool = lean.tool(
            "import os\nKEPT = []\ndef run(n):\n    KEPT.append(bytearray(n))\n    return os.getpid()"
        )
        small = [value(await lean.run(tool, params={"n": 1000})) for _ in range(2)]

        large = value(await lean.run(tool, params={"n": 80_000_000}))
        after = value(await lean.run(tool, params={"n": 1000}))

    assert small[0] == small[1] == large
    assert after != large


async def test_another_digest_is_another_process(bench: Bench) -> None:
    old = bench.tool(PID, name="edited")
    before = value(await bench.run(old))

    new = bench.tool(PID + "\n# edited", name="edited")

    assert value(await bench.run(new)) != before


async def test_calls_at_once_get_a_process_each_up_to_the_capacity(tools: Path) -> None:
    async with bench(tools, capacity=2) as two:
        tool = two.tool(f"""
            import os
            def run():
                print("begun")
                while not os.path.exists(GO): pass
                return os.getpid()
            GO = {str(tools / "go")!r}
        """)
        running = [asyncio.create_task(two.run(tool)) for _ in range(4)]
        while len(two.lines()) < 2:
            await asyncio.sleep(0)
        third = asyncio.create_task(two.run("def run(): return 1"))
        await asyncio.wait([third], timeout=0.2)
        begun = len(two.lines())
        (tools / "go").touch()
        pids = {value(await task) for task in running}

    assert begun == 2
    assert not third.cancelled()
    assert len(pids) == 2


async def test_no_more_processes_than_the_capacity_live_at_any_moment(tools: Path) -> None:
    async with bench(tools, capacity=3) as three:
        kinds = [three.tool(PID) for _ in range(6)]
        seen: list[int] = []

        async def watch() -> None:
            while True:
                seen.append(len(three.pool.inspect().alive))
                await asyncio.sleep(0)

        watcher = asyncio.create_task(watch())
        await asyncio.gather(*(three.run(kinds[n % 6]) for n in range(60)))
        watcher.cancel()

    assert max(seen) == 3


async def test_the_least_recently_used_idle_process_makes_room(tools: Path) -> None:
    async with bench(tools, capacity=2) as two:
        a, b, c = (two.tool(PID) for _ in range(3))
        first_a = value(await two.run(a))
        first_b = value(await two.run(b))
        await two.run(a)

        await two.run(c)

        assert value(await two.run(a)) == first_a
        assert value(await two.run(b)) != first_b


async def test_an_idle_process_is_ended_after_a_while(tools: Path) -> None:
    async with bench(tools, idle_seconds=0.2) as brief:
        warm = value(await brief.run(PID))
        template = value(await brief.run("import os\nP = os.getpid()\ndef run(): return P", level=Level.FORK))

        await gone(warm)
        await gone(template)


async def test_a_template_is_not_ended_while_a_fork_of_it_runs(tools: Path) -> None:
    async with bench(tools, idle_seconds=0.1, capacity=1) as brief:
        tool = brief.tool(PID)

        answer = await brief.run(tool, params={"wait": 0.5}, level=Level.FORK)

    assert isinstance(answer, Returned)


async def test_a_template_that_makes_room_for_another_leaves_its_running_fork_alone(tools: Path) -> None:
    async with bench(tools, capacity=2) as two:
        tool = two.tool(f"""
            import os
            def run():
                print("begun")
                while not os.path.exists({str(tools / "go")!r}): pass
                return 1
        """)
        running = asyncio.create_task(two.run(tool, level=Level.FORK))
        await two.printed("begun")

        for _ in range(3):
            value(await two.run(two.tool(PID), level=Level.FORK))
        (tools / "go").touch()

        assert await running == Returned(1)


async def test_a_preforked_process_that_dies_is_replaced(bench: Bench) -> None:
    tool = bench.tool(PID)
    first = value(await bench.run(tool, level=Level.FORK))
    [preforked] = bench.pool.inspect().preforked
    while not preforked.pid:
        await asyncio.sleep(0)

    process_tree.kill(preforked.pid)
    await preforked.ended

    assert value(await bench.run(tool, level=Level.FORK)) not in (first, preforked.pid)


async def test_a_process_that_died_while_idle_is_replaced(bench: Bench) -> None:
    tool = bench.tool(PID)
    pid = value(await bench.run(tool))

    process_tree.kill(pid)
    await gone(pid)
    while pid in [process.pid for process in bench.pool.inspect().idle]:
        await asyncio.sleep(0)

    assert value(await bench.run(tool)) != pid


async def test_the_wait_for_a_slot_does_not_count_against_the_time_limit(tools: Path) -> None:
    async with bench(tools, capacity=1) as one:
        tool = one.tool(PID)

        answers = await asyncio.gather(
            *(one.run(tool, params={"wait": 0.3}, timeout_seconds=0.6) for _ in range(4))
        )

    assert all(isinstance(answer, Returned) for answer in answers)


async def test_a_call_that_waits_for_a_slot_can_be_cancelled(tools: Path) -> None:
    async with bench(tools, capacity=1) as one:
        tool = one.tool("def run():\n    print('begun')\n    while True: pass")
        holder_cancel, waiter_cancel = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(one.run(tool, cancel=holder_cancel))
        await one.printed("begun")
        waiter = asyncio.create_task(one.run(tool, cancel=waiter_cancel))
        dropped = asyncio.create_task(one.run(tool))
        await asyncio.sleep(0)

        waiter_cancel.set()
        dropped.cancel()
        assert isinstance(await waiter, Cancelled)
        holder_cancel.set()

        assert isinstance(await holder, Cancelled)
        assert isinstance(await one.run(PID), Returned)


async def test_many_first_calls_at_level_fork_import_once(bench: Bench) -> None:
    tool = bench.tool("import os\nprint('imported')\ndef run(): return 1")

    answers = await asyncio.gather(*(bench.run(tool, level=Level.FORK) for _ in range(8)))

    assert answers == [Returned(1)] * 8
    assert bench.lines() == ["imported"]


async def test_a_template_whose_import_hangs_fails_each_caller_at_its_own_deadline(bench: Bench) -> None:
    tool = bench.tool("while True: pass\ndef run(): pass")

    answers = await asyncio.gather(
        *(bench.run(tool, level=Level.FORK, timeout_seconds=0.3) for _ in range(3))
    )

    assert all(isinstance(answer, TimedOut) for answer in answers)


async def test_a_missing_interpreter_is_reported(bench: Bench) -> None:
    tool = bench.tool(PID, python=Path("/nowhere/python"))

    answer = await bench.run(tool)

    assert isinstance(answer, Died)
    assert "/nowhere/python" in answer.reason


async def test_a_file_that_is_no_interpreter_is_reported(bench: Bench) -> None:
    tool = bench.tool(PID, python=Path("/bin/true"))

    assert isinstance(await bench.run(tool), Died)
    assert isinstance(await bench.run(PID), Returned)


async def test_a_tool_may_not_outlive_its_answer_at_level_fork(bench: Bench) -> None:
    tool = bench.tool("""
        import os, subprocess
        def run():
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
            return [os.getpid(), child.pid]
    """)

    for level in Level:
        for pid in value(await bench.run(tool, level=level)):
            await gone(pid, 1.0)


async def test_an_event_that_cannot_be_reported_does_not_harm_the_pool(bench: Bench) -> None:
    def report(_: object) -> None:
        raise RuntimeError("the reporter is broken")

    tool = bench.tool("def run():\n    print('x')\n    return 1")

    answer = await bench.perform(bench.call(tool), report)

    assert answer == Returned(1)
    assert await bench.run(tool) == Returned(1)


async def test_running_out_of_descriptors_is_reported_and_does_no_lasting_harm(bench: Bench) -> None:
    tool = bench.tool(PID)
    free = len(list(Path("/proc/self/fd").iterdir()))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    answers = []
    for more in range(12):
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
        try:
            answers.append(await bench.run(bench.tool(PID), level=Level.SPAWN))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert isinstance(answers[0], Died)
    assert "Too many open files" in answers[0].reason
    assert isinstance(answers[-1], Returned)
    for _ in range(3):
        assert len({value(one) for one in await asyncio.gather(*(bench.run(tool) for _ in range(4)))}) >= 1


async def test_a_tool_that_forges_answers_ends_only_itself(bench: Bench) -> None:
    forge = """
        import os, stat
        for number in (%s):
            message = b'{"jsonrpc":"2.0","id":%%s,"result":%s}' %% str(number).encode()
            for fd in range(3, 1024):
                try:
                    if not stat.S_ISSOCK(os.fstat(fd).st_mode): continue
                    os.write(fd, len(message).to_bytes(4, "big") + message)
                except OSError: pass
        def run(): return 1
    """
    forgeries = [("1,", "null"), ("1,", "[]"), ("7,", "{}"), ("[1],", "{}"), ("1, 2", '{"unforkable":""}')]

    for ids, result in forgeries:
        assert isinstance(await bench.run(forge % (ids, result)), Died)
    assert await bench.run("def run(): return 1") == Returned(1)


async def test_what_is_installed_can_be_imported_at_every_level(bench: Bench) -> None:
    tool = bench.tool("import pydantic_core\ndef run(): return pydantic_core.__name__")

    answers = [await bench.run(tool, level=level) for level in Level]

    assert answers == [Returned("pydantic_core")] * 3


async def test_no_module_of_ours_can_be_mistaken_for_the_tools(bench: Bench) -> None:
    for name in ("wire", "tool", "owner", "limits"):
        (bench.directory / f"{name}.py").write_text(f"NAME = {name!r}")
    tool = bench.tool("""
        import limits, owner, tool, wire
        def run(): return [module.NAME for module in (limits, owner, tool, wire)]
    """)

    assert await bench.run(tool) == Returned(["limits", "owner", "tool", "wire"], 4)


async def test_a_tool_whose_import_blocks_all_signals_can_be_forked_again_and_again(tools: Path) -> None:
    async with bench(tools, capacity=1) as single:
        tool = single.tool("""
            import signal
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            def run(): return len(signal.pthread_sigmask(signal.SIG_BLOCK, [])) > 10
        """)

        answers = [await single.run(tool, level=Level.FORK, timeout_seconds=5) for _ in range(3)]

    assert answers == [Returned(True)] * 3
