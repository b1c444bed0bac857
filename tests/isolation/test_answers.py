"""The answers of tools that return or raise."""

import pytest

from services.executor.isolation.calls import Partial, Raised, Returned
from tests.isolation.bench import Bench


async def test_a_tool_is_called_with_keyword_arguments(bench: Bench) -> None:
    answer = await bench.run("def run(a, *, b=2): return {'a': a, 'b': b}", params={"a": 1})

    assert answer == Returned({"a": 1, "b": 2})


async def test_the_function_named_like_the_file_comes_before_run(bench: Bench) -> None:
    tool = bench.tool("def run(): return 'run'\ndef scrape(): return 'scrape'", name="scrape")

    assert await bench.run(tool) == Returned("scrape")


@pytest.mark.parametrize(
    ("source", "value", "items"),
    [
        ("def run(): return [1, 2]", [1, 2], 2),
        ("async def run(): return {'x': 1}", {"x": 1}, None),
        ("def run():\n    yield 1\n    yield 2", [1, 2], 2),
        ("def run():\n    yield 1\n    return 'all'", "all", 1),
        ("async def run():\n    yield 1\n    yield 2", [1, 2], 2),
        ("import functools\ndef f(x): return x\nrun = functools.partial(f, 7)", 7, None),
        ("class Run:\n    async def __call__(self): return 8\nrun = Run()", 8, None),
        ("def run(): return None", None, None),
    ],
)
async def test_every_kind_of_function_is_a_tool(bench: Bench, source: str, value: object, items: int) -> None:
    assert await bench.run(source) == Returned(value, items)


async def test_each_yielded_item_is_reported_when_it_is_yielded(bench: Bench) -> None:
    answer = await bench.run(
        "def run():\n    yield {'n': 1}\n    yield {'n': 2}\n    raise ValueError('later')"
    )

    assert isinstance(answer, Raised)
    assert bench.events == [Partial({"n": 1}), Partial({"n": 2})]


async def test_a_forked_child_of_the_tool_that_returns_through_the_loop_does_not_answer(bench: Bench) -> None:
    source = """
        import os
        def run():
            pid = os.fork()
            if pid == 0:
                return "child"
            return [os.waitpid(pid, 0)[1], "parent"]
    """

    tool = bench.tool(source)

    assert await bench.run(tool) == Returned([0, "parent"], 2)
    assert await bench.run(tool) == Returned([0, "parent"], 2)


async def test_an_exception_arrives_with_its_own_traceback_and_chain(bench: Bench) -> None:
    tool = bench.tool("""
        def inner():
            raise KeyError("user")

        def run():
            try:
                inner()
            except KeyError as error:
                raise ValueError("no such user") from error
    """)

    answer = await bench.run(tool)

    assert isinstance(answer, Raised)
    assert (answer.error_type, answer.message, answer.retryable) == ("ValueError", "no such user", False)
    frames = [line for line in answer.traceback.splitlines() if line.startswith("  File ")]
    assert len(frames) == 3
    assert all(str(tool.path) in line for line in frames)
    assert "KeyError: 'user'" in answer.traceback
    assert "direct cause" in answer.traceback


async def test_an_async_tools_traceback_has_no_frame_of_the_event_loop(bench: Bench) -> None:
    answer = await bench.run("async def run():\n    raise ValueError('x')")

    assert isinstance(answer, Raised)
    assert answer.traceback.count("  File ") == 1


@pytest.mark.parametrize(
    ("expression", "retryable"),
    [
        ("ConnectionResetError()", True),
        ("TimeoutError()", True),
        ("FileNotFoundError(2, 'x')", True),
        ("__import__('asyncio').TimeoutError()", True),
        ("ValueError()", False),
        ("type('Limited', (Exception,), {'retryable': True})()", True),
        ("type('Fatal', (ConnectionError,), {'retryable': False})()", False),
        ("type('Odd', (Exception,), {'retryable': 'yes'})()", False),
    ],
)
async def test_what_is_retryable(bench: Bench, expression: str, retryable: bool) -> None:
    answer = await bench.run(f"def run(): raise {expression}")

    assert isinstance(answer, Raised)
    assert answer.retryable is retryable


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("30", 30), ("1.5", 1.5), ("-1", None), ("'soon'", None), ("float('nan')", None), ("10**400", None)],
)
async def test_retry_after_must_be_a_finite_number_of_seconds(
    bench: Bench, value: str, seconds: float | None
) -> None:
    answer = await bench.run(f"class E(Exception):\n    retry_after = {value}\ndef run(): raise E()")

    assert isinstance(answer, Raised)
    assert answer.retry_after_seconds == seconds


async def test_partial_results_come_with_the_exception(bench: Bench) -> None:
    answer = await bench.run("""
        def run():
            error = RuntimeError("half way")
            error.partial_results = {"sent": (1, 2)}
            raise error
    """)

    assert isinstance(answer, Raised)
    assert answer.partial_results == {"sent": [1, 2]}


@pytest.mark.parametrize(
    ("body", "error_type", "part"),
    [
        ("import sys; sys.exit(3)", "SystemExit", "sys.exit(3)"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", ""),
        ("raise GeneratorExit('x')", "GeneratorExit", "x"),
        ("raise type('Odd', (BaseException,), {})('odd')", "Odd", "odd"),
        ("run()", "RecursionError", "recursion"),
        ("raise MemoryError('much')", "MemoryError", "much"),
        ("raise StopIteration('stop')", "StopIteration", "stop"),
    ],
)
async def test_no_exception_ends_the_process(bench: Bench, body: str, error_type: str, part: str) -> None:
    tool = bench.tool(f"import os\ndef run(pid=False):\n    if pid: return os.getpid()\n    {body}")
    before = await bench.run(tool, params={"pid": True})

    answer = await bench.run(tool)

    assert isinstance(answer, Raised)
    assert answer.error_type == error_type
    assert part in answer.message
    assert await bench.run(tool, params={"pid": True}) == before


async def test_an_exception_that_is_broken_everywhere_is_still_reported(bench: Bench) -> None:
    answer = await bench.run("""
        class Broken(Exception):
            def __str__(self): raise RuntimeError("no text")
            def __getattribute__(self, name): raise RuntimeError("no attributes")
        def run(): raise Broken()
    """)

    assert isinstance(answer, Raised)
    assert answer.error_type == "Broken"


async def test_an_exception_group_is_reported_with_its_parts(bench: Bench) -> None:
    answer = await bench.run("def run(): raise ExceptionGroup('both', [ValueError('a'), KeyError('b')])")

    assert isinstance(answer, Raised)
    assert "ValueError: a" in answer.traceback


async def test_wrong_parameters_are_a_type_error_of_the_run(bench: Bench) -> None:
    answer = await bench.run("def run(a): pass", params={"b": 1})

    assert isinstance(answer, Raised)
    assert answer.error_type == "TypeError"
    assert "'b'" in answer.message


async def test_parameters_that_json_cannot_hold_never_reach_a_process(bench: Bench) -> None:
    answer = await bench.run("def run(a): pass", params={"a": object()})

    assert isinstance(answer, Raised)
    assert answer.error_type == "ToolParameterError"


async def test_the_error_for_a_result_that_json_cannot_hold_names_the_part(bench: Bench) -> None:
    answer = await bench.run("def run(): return {'a': [1, b'x']}")

    assert isinstance(answer, Raised)
    assert answer.error_type == "ToolResultError"
    assert answer.message.startswith("result['a'][1] is bytes")


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("x = 1", "has no function"),
        ("run = 5", "run is a int, not a function"),
        ("import nothing_like_it", "ModuleNotFoundError: No module named 'nothing_like_it'"),
        ("def run(:", "SyntaxError"),
        ("import sys; sys.exit(4)", "sys.exit(4)"),
        ("raise ValueError('at import')", "ValueError: at import"),
    ],
)
async def test_the_error_for_a_module_that_is_no_tool_says_what_to_do(
    bench: Bench, source: str, part: str
) -> None:
    tool = bench.tool(source)

    answer = await bench.run(tool)

    assert isinstance(answer, Raised)
    assert answer.error_type == "ToolError"
    assert str(tool.path) in answer.message
    assert part in answer.message
    assert "isolation" not in answer.traceback


async def test_a_file_that_changed_since_it_was_looked_up_is_not_run(bench: Bench) -> None:
    tool = bench.tool("def run(): return 1")
    tool.path.write_text("def run(): return 2")

    answer = await bench.run(tool)

    assert isinstance(answer, Raised)
    assert answer.retryable
    assert "changed" in answer.message


async def test_an_answer_says_what_the_call_used(bench: Bench) -> None:
    body = """
        import os, time
        def run(seconds, child=False, fail=False):
            if child:
                if os.fork() == 0:
                    run(seconds)
                    os._exit(0)
                os.wait()
                return None
            until = time.process_time() + seconds
            while time.process_time() < until:
                pass
            if fail:
                raise ValueError
    """
    tool = bench.tool(body)
    for params in [{"seconds": 0.2}, {"seconds": 0}, {"seconds": 0.2, "child": True}]:
        assert await bench.run(tool, params=params) == Returned(None)
    assert isinstance(await bench.run(tool, params={"seconds": 0.2, "fail": True}), Raised)

    used = [(one.cpu_seconds or 0) if one else -1 for one in bench.used]
    assert [round(seconds, 1) for seconds in used] == [0.2, 0.0, 0.2, 0.2]
    assert all(one and 1_000_000 < one.peak_bytes < 10**9 for one in bench.used)
