"""What holds for every backend: each call has a result, and nothing is left behind."""

import asyncio
import json
import time
from typing import Any

import pytest

from services.executor.isolation.calls import Event, Metric, Progress
from services.executor.outcome import Status
from shared.errors import PlanError
from tests.planner.backends.conftest import Harness, execution, gone, written

HOLD = """
    import os, time

    def hold(path: str):
        open(path + ".new", "w").write(str(os.getpid()))
        os.rename(path + ".new", path)
        time.sleep(600)
"""


async def test_a_call_returns_the_result_and_the_artifacts(harness: Harness) -> None:
    result = await harness.called(
        """
        from shared import toolkit
        def tool(n):
            toolkit.artifact("small.txt", b"a" * 100)
            toolkit.artifact("large.bin", bytes(range(101)))
            return {"n": n + 1}
        """,
        n=1,
    )

    assert (result.status, result.error, result.run_id) == (Status.COMPLETED, None, "run-1")
    assert json.loads(result.result or "") == {"n": 2}
    assert result.artifacts["small.txt"].startswith("data:text/plain;base64,")
    assert result.artifacts["large.bin"].startswith("cas://")
    assert result.loader.load_bytes(result.artifacts["small.txt"]) == b"a" * 100
    assert result.loader.load_bytes(result.artifacts["large.bin"]) == bytes(range(101))
    assert (len(result.run_digest), len(result.tool_digest)) == (64, 64)
    assert result.execution_time_ms is not None


async def test_a_large_result_is_a_reference(harness: Harness) -> None:
    result = await harness.called("def tool(): return 'x' * 1_000\n")

    assert str(result.result).startswith("cas://")
    assert json.loads(result.loader.load_text(str(result.result))) == "x" * 1_000


FAULTS = {
    "raises": ("def tool(): raise ValueError('no')", "failed", "ValueError", False),
    "raises what may pass": ("def tool(): raise ConnectionError('no')", "failed", "ConnectionError", True),
    "raises a BaseException": (
        "class Odd(BaseException): pass\ndef tool(): raise Odd('no')",
        "failed",
        "Odd",
        False,
    ),
    "exits by an exception": ("def tool(): raise SystemExit(3)", "failed", "SystemExit", False),
    "is interrupted": ("def tool(): raise KeyboardInterrupt", "failed", "KeyboardInterrupt", False),
    "exits": ("import os\ndef tool(): os._exit(3)", "failed", "ToolCrashedError", False),
    "dies": (
        "import os\ndef tool(): os.kill(os.getpid(), 9)",
        "failed",
        "ToolCrashedError",
        False,
    ),
    "hangs": ("import time\ndef tool(): time.sleep(600)", "timeout", "ToolTimeoutError", False),
    "hangs in its import": (
        "import time\ntime.sleep(600)\ndef tool(): pass",
        "timeout",
        "ToolTimeoutError",
        False,
    ),
    "returns nonsense": ("def tool(): return object()", "failed", "ToolResultError", False),
    "returns no number": ("def tool(): return float('nan')", "failed", "ToolResultError", False),
    "can't be imported": ("import nothing_of_that_name\ndef tool(): pass", "failed", "ToolError", False),
    "is no Python": ("def tool(:", "failed", "ToolError", False),
    "exits in its import": ("import os\nos._exit(1)", "failed", "ToolCrashedError", False),
    "is something else": ("tool = 5", "failed", "ToolError", False),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_of_the_tool_is_a_result(harness: Harness, fault: str) -> None:
    text, status, error_type, retryable = FAULTS[fault]

    result = await harness.called(text, policy={"timeout_seconds": 2})

    assert result.error is not None
    assert (result.status, result.error.type, result.error.retryable) == (status, error_type, retryable)


async def test_a_tool_that_is_not_there_is_a_result(harness: Harness) -> None:
    async with harness.backend:
        result = await harness.run("nothing")

    assert result.status is Status.FAILED
    assert str(result.error).startswith("ToolNotFoundError: Tool 'nothing' not found")


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({}, "'n' is missing"),
        ({"n": 1, "m": 2}, "'m' is unknown"),
        ({"n": float("nan")}, "can't be sent to the tool"),
        ({"n": float("inf")}, "can't be sent to the tool"),
        ({"n": object()}, "can't be sent to the tool"),
    ],
)
async def test_parameters_that_dont_fit_are_a_result(
    harness: Harness, parameters: dict[str, Any], complaint: str
) -> None:
    result = await harness.called("def tool(n): return n\n", **parameters)

    assert result.status is Status.FAILED
    assert result.error is not None
    assert result.error.type == "ToolParameterError"
    assert complaint in result.error.message


async def test_a_failed_call_has_the_artifacts_that_exist(harness: Harness) -> None:
    result = await harness.called(
        """
        from shared import toolkit
        def tool():
            toolkit.artifact("first", b"1")
            raise ValueError("no")
        """
    )

    assert (result.status, list(result.artifacts)) == (Status.FAILED, ["first"])


async def test_a_tool_may_ask_for_a_longer_pause(harness: Harness) -> None:
    result = await harness.called(
        """
        def tool():
            error = ConnectionError("too many")
            error.retry_after = 2.5
            raise error
        """
    )

    assert result.error is not None
    assert (result.error.retryable, result.error.retry_after_seconds) == (True, 2.5)


async def test_a_tool_over_its_time_limit_is_ended(harness: Harness) -> None:
    harness.tool("hold", HOLD)
    harness.tool("quick", "def quick(): return 1\n")
    async with harness.backend:
        await harness.run("quick")
        began = time.monotonic()
        result = await harness.run("hold", policy={"timeout_seconds": 0.2}, path=str(harness.folder / "pid"))
        seconds = time.monotonic() - began

        await gone(await written(harness.folder / "pid"))

    assert result.status is Status.TIMEOUT
    assert seconds < 10  # rather than 600; 1 on a machine that has nothing else to do


# -- what goes in ---------------------------------------------------------------------


async def test_parameters_of_every_kind_arrive(harness: Harness) -> None:
    given = {
        "null": None,
        "truth": [True, False],
        "integers": [0, -1, 2**53 + 1, 10**30],
        "floats": [1.0, -0.5, 1e-300, 1.7976931348623157e308, 0.1],
        "texts": ["", "ä \u2028 \U0001f600 \\ \" '", "\x00\x1f", "cas://x", "é\n"],
        "list": [[], [[1]], {}],
        "object": {"": 1, "a b": {"c": [None]}},
    }
    result = await harness.called("def tool(**given): return given\n", **given)
    text = str(result.result)
    returned = json.loads(result.loader.load_text(text) if text.startswith("cas://") else text)

    assert returned == given
    assert [type(one) for one in returned["floats"]] == [float] * 5
    assert result.parameters == given


async def test_the_seed_reaches_the_tool(harness: Harness) -> None:
    harness.tool(
        "tool",
        """
        import random
        from shared import toolkit
        def tool(): return [toolkit.run.seed, random.random()]
        """,
    )
    async with harness.backend:
        results = [await harness.run("tool", policy={"seed": seed}) for seed in (2**63 - 1, 7, 7)]
    first, second, third = [json.loads(str(one.result)) for one in results]

    assert (first[0], second[0]) == (2**63 - 1, 7)
    assert first[1] != second[1] == third[1]
    assert [one.seed for one in results] == [2**63 - 1, 7, 7]
    assert results[0].run_digest != results[1].run_digest == results[2].run_digest


async def test_the_level_of_isolation_is_the_policys(harness: Harness) -> None:
    harness.tool("tool", "import os\ndef tool(): return os.getpid()\n")
    async with harness.backend:
        pids = {
            level: {(await harness.run("tool", policy={"isolation": level})).result for _ in range(3)}
            for level in ("warm", "spawn")
        }

    assert (len(pids["warm"]), len(pids["spawn"])) == (1, 3)


# -- many, and meanwhile --------------------------------------------------------------


async def test_fifty_calls_at_once_have_each_its_own_result(harness: Harness) -> None:
    harness.tool("square", "def square(n): return n * n\n")
    async with harness.backend as backend:
        calls = [backend.run(execution("square", {"n": n}, n)) for n in range(50)]
        results = await asyncio.gather(*calls)

    assert [json.loads(str(one.result)) for one in results] == [n * n for n in range(50)]
    assert [one.run_id for one in results] == [f"run-{n}" for n in range(50)]
    assert backend.capacity >= 1


async def test_reports_of_the_tool_are_passed_on(harness: Harness) -> None:
    heard: list[Event] = []
    harness.tool(
        "tool",
        """
        from shared import toolkit
        def tool():
            for n in range(3):
                toolkit.progress(n, 3, "step")
            toolkit.metric("loss", 0.5, fold=2)
        """,
    )
    async with harness.backend:
        result = await harness.run("tool", heard.append)

    assert result.status is Status.COMPLETED
    assert heard[0] == Progress(0, 3, "step")  # those that follow fast are told as one
    assert Progress(2, 3, "step") in heard
    assert Metric("loss", 0.5, {"fold": 2}) in heard


async def test_a_report_that_raises_loses_no_result(harness: Harness) -> None:
    def broken(event: Event) -> None:
        raise ValueError("the display is gone")

    harness.tool("tool", "from shared import toolkit\ndef tool():\n  toolkit.progress(1)\n  return 1\n")
    async with harness.backend:
        results = [await harness.run("tool", report) for report in (broken, None)]

    assert [one.result for one in results] == ["1", "1"]


# -- the end --------------------------------------------------------------------------


async def test_a_call_cancelled_in_advance_never_begins(harness: Harness) -> None:
    harness.tool("hold", HOLD)
    cancel = asyncio.Event()
    cancel.set()
    async with harness.backend:
        result = await harness.run("hold", cancel=cancel, path=str(harness.folder / "pid"))

    assert result.status is Status.CANCELLED
    assert result.error is not None
    assert result.error.type == "RunCancelledError"
    assert not (harness.folder / "pid").exists()


async def test_cancelling_ends_the_tool(harness: Harness) -> None:
    harness.tool("hold", HOLD)
    cancel = asyncio.Event()
    async with harness.backend, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(harness.run("hold", cancel=cancel, path=str(harness.folder / "pid")))
        pid = await written(harness.folder / "pid")
        cancel.set()
        result = await call
        await gone(pid)

    assert result.status is Status.CANCELLED
    assert result.error is not None
    assert result.error.type == "RunCancelledError"


async def test_cancelling_ends_an_import(harness: Harness) -> None:
    text = "\n".join(HOLD.replace("    ", "").splitlines()[1:2])
    path = harness.folder / "pid"
    harness.tool(
        "slow",
        f"{text}\nopen('{path}.new', 'w').write(str(os.getpid()))\nos.rename('{path}.new', '{path}')\n"
        "time.sleep(600)\ndef slow(): pass\n",
    )
    cancel = asyncio.Event()
    async with harness.backend, asyncio.TaskGroup() as tasks:
        call = tasks.create_task(harness.run("slow", cancel=cancel, policy={"timeout_seconds": 2}))
        pid = await written(path)
        cancel.set()
        result = await call
        await gone(pid)

    assert result.status is Status.CANCELLED


async def test_a_call_whose_caller_is_cancelled_is_ended(harness: Harness) -> None:
    harness.tool("hold", HOLD)
    async with harness.backend:
        call = asyncio.create_task(harness.run("hold", path=str(harness.folder / "pid")))
        pid = await written(harness.folder / "pid")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await gone(pid)


async def test_closing_cancels_running_calls(harness: Harness) -> None:
    harness.tool("hold", HOLD)
    async with harness.backend:
        calls = [
            asyncio.create_task(harness.run("hold", path=str(harness.folder / f"{n}"))) for n in range(8)
        ]
        await asyncio.wait(
            [asyncio.create_task(written(harness.folder / f"{n}")) for n in range(8)],
            return_when=asyncio.FIRST_COMPLETED,
        )
    results = await asyncio.gather(*calls)
    pids = [path.read_text() for n in range(8) if (path := harness.folder / f"{n}").exists()]
    for pid in pids:
        await gone(pid)

    assert {one.status for one in results} == {Status.CANCELLED}
    assert pids


async def test_a_backend_may_be_opened_again(harness: Harness) -> None:
    results = [await harness.called("def tool(n): return n\n", n=n) for n in range(3)]

    assert [one.result for one in results] == ["0", "1", "2"]


async def test_a_backend_says_whether_it_is_open_and_where(harness: Harness) -> None:
    async def elsewhere() -> None:
        harness.backend.check_open()

    with pytest.raises(PlanError, match=r"is not open: .* inside `async with backend:`, or give"):
        harness.backend.check_open()
    async with harness.backend as backend:
        backend.check_open()
        with pytest.raises(PlanError, match="was opened in another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())
    with pytest.raises(PlanError, match="is not open"):
        harness.backend.check_open()


async def test_a_call_of_a_backend_that_is_not_open_is_cancelled(harness: Harness) -> None:
    harness.tool("tool", "def tool(): return 1\n")
    async with harness.backend:
        pass

    assert (await harness.run("tool")).status is Status.CANCELLED
