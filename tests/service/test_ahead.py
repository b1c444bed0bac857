"""A tool that is called while its begin is still on the way to Redis."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.executor.service import Service
from services.executor.store import Begun, Runs, Workers
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.conftest import assert_works

MARK = """
    import os, time
    from shared import toolkit

    def mark(started: str, until: str):
        open(started, "w").close()
        toolkit.progress(1)
        while not os.path.exists(until):
            time.sleep(0.01)
        return {"value": 1}
"""


async def until(fact: Callable[[], bool], what: str) -> None:
    """Wait until it is so."""

    async def is_so() -> bool:
        return fact()

    await eventually(is_so, what)


class Held:
    """Begins that don't come about before `let` is set; what they are answered can be chosen."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()
        self.answer: Begun | None = None

    def around(self, begin: Callable[..., Any]) -> Callable[..., Any]:
        async def held(*args: Any, **kwargs: Any) -> Any:
            self.asked.set()
            await self.let.wait()
            if self.answer is not None:
                return self.answer, args[2]
            return await begin(*args, **kwargs)

        return held


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    one = Held()
    monkeypatch.setattr(Runs, "begin", one.around(Runs.begin))
    return one


@pytest.fixture
async def started(neighbour: Neighbour, tools: Tools, tmp_path: Path) -> Path:
    """There once the tool of `exp_1` has started; it lasts until the file `go` is there."""
    tools("mark", MARK)
    params = {"started": str(tmp_path / "started"), "until": str(tmp_path / "go")}
    await neighbour.publish("exp_1", "mark", params=params)
    return tmp_path / "started"


async def test_a_tool_starts_before_its_begin_is_known_and_is_reported_after_it(
    serve: Serve, neighbour: Neighbour, started: Path, held: Held
) -> None:
    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await until(started.exists, "the tool")
        said_before = neighbour.heard_of("exp_1", keys.METRICS)
        started.with_name("go").touch()
        held.let.set()
        result = await neighbour.result("exp_1")

    assert said_before == []
    assert result["status"] == "success"
    events = [one["event"] for one in neighbour.heard_of("exp_1", keys.METRICS)]
    assert events == ["run_started", "progress", "run_completed"]


@pytest.mark.usefixtures("echo")
async def test_a_tool_whose_begin_is_refused_is_ended_and_nothing_is_said_of_it(
    serve: Serve, neighbour: Neighbour, started: Path, held: Held
) -> None:
    async with serve() as service:
        held.answer = Begun.LOST
        await neighbour.trigger({"experiment_id": "exp_1"})
        await until(started.exists, "the tool")
        held.let.set()
        await until(lambda: not service.running, "the end")
        held.answer = None
        await assert_works(neighbour)

    assert neighbour.heard_of("exp_1", keys.METRICS) == neighbour.heard_of("exp_1", keys.RESULTS) == []


async def is_called_ahead(service: Service, neighbour: Neighbour, held: Held) -> bool:
    """Whether the tool's process is at work, or made, when the begin is asked for."""
    await neighbour.run("exp_1")  # so that there is a process
    held.asked.clear()
    held.let.clear()
    await neighbour.trigger({"experiment_id": "exp_1"})
    await held.asked.wait()
    counts = service.processes()
    held.let.set()
    await neighbour.result("exp_1", 2)
    return counts["busy"] + counts["starting"] > 0


@pytest.mark.parametrize(
    "policy",
    [{}, {"on_worker_death": "fail"}, {"cache": "true"}, {"max_concurrent": 1}],
    ids=lambda one: str(*one),
)
async def test_a_tool_waits_for_its_begin_where_something_hangs_on_it(
    policy: dict[str, Any], serve: Serve, neighbour: Neighbour, started: Path, held: Held
) -> None:
    await neighbour.publish("exp_1", "mark", **policy)
    started.with_name("go").touch()
    held.let.set()

    async with serve() as service:
        is_ahead = await is_called_ahead(service, neighbour, held)

    assert is_ahead == (not policy)


async def test_a_worker_that_may_count_as_dead_asks_first(
    serve: Serve, neighbour: Neighbour, started: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    started.with_name("go").touch()
    held.let.set()
    monkeypatch.setattr(Workers, "heartbeat", only_once(Workers.heartbeat))

    async with serve(heartbeat_ttl=0.5) as service:
        await until(lambda: not service._intake._is_sure(), "its time to be over")
        is_ahead = await is_called_ahead(service, neighbour, held)

    assert not is_ahead


def only_once(heartbeat: Callable[..., Any]) -> Callable[..., Any]:
    """After the first two, of which one registers the worker, nothing is answered any more."""
    beats = 0

    async def beat(*args: Any, **kwargs: Any) -> Any:
        nonlocal beats
        beats += 1
        if beats > 2:
            await asyncio.Event().wait()
        return await heartbeat(*args, **kwargs)

    return beat


async def test_a_heartbeat_counts_from_when_it_was_sent(
    serve: Serve, neighbour: Neighbour, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_slow, heard, let = asyncio.Event(), asyncio.Event(), asyncio.Event()
    heartbeat = Workers.heartbeat

    async def slow(*args: Any, **kwargs: Any) -> Any:
        answer = await heartbeat(*args, **kwargs)
        if is_slow.is_set():
            heard.set()
            await let.wait()
        return answer

    monkeypatch.setattr(Workers, "heartbeat", slow)
    async with serve(heartbeat_ttl=1.0) as service:
        is_slow.set()
        await heard.wait()
        before, latest = service._intake.sure_until, time.monotonic() + 1.0
        let.set()
        await until(lambda: service._intake.sure_until != before, "the answer")

        assert service._intake.sure_until <= latest
