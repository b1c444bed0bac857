"""Large and too large: an error of the run, not of the connection."""

from pathlib import Path

import pytest

from services.executor.isolation.calls import Died, Partial, Raised, Returned
from tests.isolation.bench import Bench, bench

ECHO = "import os\ndef run(x): return x"


@pytest.mark.parametrize("size", [70_000, 10_000_000])
async def test_large_values_pass_in_both_directions(bench: Bench, size: int) -> None:
    text = "\u00e4" + "x" * size

    assert await bench.run(ECHO, params={"x": text}) == Returned(text)


async def test_one_byte_over_the_limit_fails_and_keeps_the_process(tools: Path) -> None:
    async with bench(tools, limit_bytes=1000) as small:
        tool = small.tool("import os\ndef run(n): return 'x' * n if n else os.getpid()")
        pid = await small.run(tool, params={"n": 0})

        fits = await small.run(tool, params={"n": 998})
        over = await small.run(tool, params={"n": 999})

        assert fits == Returned("x" * 998)
        assert isinstance(over, Raised)
        assert over.error_type == "ToolResultError"
        assert "1001" in over.message
        assert "1000" in over.message
        assert await small.run(tool, params={"n": 0}) == pid


async def test_parameters_over_the_limit_are_not_sent(tools: Path) -> None:
    async with bench(tools, limit_bytes=1000) as small:
        fits = await small.run(ECHO, params={"x": "x" * (1000 - len('{"x":""}'))})
        over = await small.run(ECHO, params={"x": "x" * (1001 - len('{"x":""}'))})

    assert isinstance(fits, Returned)
    assert isinstance(over, Raised)
    assert "1001" in over.message
    assert "1000" in over.message


async def test_an_item_over_the_limit_is_an_error_of_the_run(tools: Path) -> None:
    async with bench(tools, limit_bytes=1000) as small:
        answer = await small.run("def run():\n    yield 1\n    yield 'x' * 2000")

        assert isinstance(answer, Raised)
        assert answer.error_type == "ToolResultError"
        assert small.of(Partial) == [Partial(1)]


async def test_a_frame_that_announces_too_much_ends_the_process(bench: Bench) -> None:
    answer = await bench.run("""
        import os, stat
        def run():
            for fd in range(3, 1024):
                try:
                    if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b"\\xff\\xff\\xff\\xff")
                except OSError: pass
            while True: pass
    """)

    assert isinstance(answer, Died)
    assert "4294967295" in answer.reason


async def test_a_huge_message_and_traceback_are_cut(bench: Bench) -> None:
    answer = await bench.run("def run(): raise ValueError('x' * 50_000_000)")

    assert isinstance(answer, Raised)
    assert len(answer.message) < 110_000
    assert len(answer.traceback) < 5_000_000


async def test_the_longest_traceback_passes_whatever_the_limit(tools: Path) -> None:
    async with bench(tools, limit_bytes=100_000) as small:
        answer = await small.run(r"def run(): raise ValueError('\x00' * 50_000_000)")

    assert isinstance(answer, Raised)
    assert answer.error_type == "ValueError"
