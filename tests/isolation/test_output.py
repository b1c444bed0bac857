"""What tools print: all of it reaches the log of the right run, and none of it holds up the service."""

import asyncio
import time

from services.executor.isolation.calls import LogLine, Returned, TimedOut
from tests.isolation.bench import Bench


async def test_python_c_code_and_grandchildren_all_print_to_the_runs_log(bench: Bench) -> None:
    await bench.run("""
        import ctypes, os, subprocess, sys
        def run():
            print("from print")
            print("to stderr", file=sys.stderr)
            os.write(1, b"from write\\n")
            ctypes.CDLL(None).puts(b"from C")
            subprocess.run(["echo", "from a grandchild"])
    """)

    assert sorted(bench.lines()) == ["from C", "from a grandchild", "from print", "from write"]
    assert bench.lines("stderr") == ["to stderr"]


async def test_lines_arrive_while_the_tool_runs_with_the_time_of_their_arrival(bench: Bench) -> None:
    before = time.time()
    running = asyncio.create_task(
        bench.run("import time\ndef run():\n    print('begun')\n    time.sleep(100)", timeout_seconds=1.0)
    )

    event = await bench.until(lambda event: isinstance(event, LogLine))

    assert not running.done()
    assert isinstance(event, LogLine)
    assert before <= event.at <= time.time()
    await running


async def test_the_last_output_of_a_run_does_not_go_to_the_next(bench: Bench) -> None:
    tool = bench.tool("def run(text): print(text, end='')")

    await bench.run(tool, params={"text": "first"})
    first = bench.lines()
    await bench.run(tool, params={"text": "second"})

    assert first == ["first"]
    assert bench.lines() == ["first", "second"]


async def test_stdin_is_empty(bench: Bench) -> None:
    assert await bench.run("import sys\ndef run(): return sys.stdin.read()") == Returned("")


async def test_a_long_line_is_cut_with_a_note(bench: Bench) -> None:
    await bench.run("def run():\n    print('x' * 1_000_000)\n    print('next')")

    cut, following = bench.lines()
    assert cut.startswith("xxx")
    assert cut.endswith("(line cut at 65536 bytes)")
    assert following == "next"


async def test_only_the_last_state_of_a_progress_bar_is_kept(bench: Bench) -> None:
    await bench.run("import sys\ndef run(): sys.stdout.write('10%\\r20%\\r30%\\r\\n')")

    assert bench.lines() == ["30%"]


async def test_invalid_utf_8_becomes_replacement_characters(bench: Bench) -> None:
    await bench.run("import os\ndef run(): os.write(1, b'a\\xffb\\n')")

    assert bench.lines() == ["a\ufffdb"]


async def test_lone_surrogates_are_escaped(bench: Bench) -> None:
    assert await bench.run("def run(): print('\\ud800')") == Returned(None)
    assert bench.lines() == ["\\ud800"]


async def test_a_flood_of_output_slows_the_tool_and_not_the_service(bench: Bench) -> None:
    running = asyncio.create_task(
        bench.run("def run():\n    for _ in range(1_000_000): print('x' * 100)", timeout_seconds=3.0)
    )
    await bench.until(lambda event: isinstance(event, LogLine))

    answered = 0
    while not running.done():
        assert await bench.run("def run(): return 1") == Returned(1)
        answered += 1

    assert isinstance(await running, TimedOut)
    assert sum(map(len, bench.lines())) < 3 * 2 * 4_194_304
    assert answered > 2  # in the last of which the flood may have ended


async def test_a_tool_that_closes_its_streams_still_answers(bench: Bench) -> None:
    tool = bench.tool("import os, sys\ndef run():\n    sys.stdout.close()\n    os.close(2)\n    return 1")

    assert await bench.run(tool) == Returned(1)
    assert await bench.run(tool) == Returned(1)
