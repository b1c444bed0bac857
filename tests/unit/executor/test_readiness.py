"""What is made ready for the slots that come next, and when it is looked for."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from services.executor import readiness
from services.executor.isolation.calls import Level
from services.executor.policy import Defaults, ToolNeeds
from services.executor.readiness import Readiness
from services.executor.store import Ahead, Seen, Stored, Upcoming
from shared.backoff import Backoff
from shared.errors import ToolError
from shared.messages import Experiment, Policy, State

NOW_MS = 1_000_000_000


def slot(tool: str, seconds: float, state: State = State.READY, isolation: Any = None) -> Upcoming:
    policy = Policy(isolation=isolation)
    experiment = Experiment(
        id="one", state=state, tool=tool, params={}, schedule=None, timezone=None, policy=policy
    )
    seen = Seen("", None, Stored("", experiment, None), has_open_runs=False)
    return Upcoming("one", NOW_MS + round(seconds * 1_000), "", seen)


class World:
    """Slots, tools and processes; keeps what is asked."""

    def __init__(self) -> None:
        self.slots: Sequence[Upcoming] = []
        self.following_ms: int | None = None
        self.looks = 0
        self.looked = asyncio.Event()
        self.made: list[tuple[str, Level]] = []
        self.hanging = asyncio.Event()

    async def ahead(self, within_ms: int, passed_over: int, most: int) -> Ahead:
        self.looks += 1
        self.looked.set()
        return Ahead(self.slots[:most], self.following_ms, NOW_MS * 1_000)

    def loaded(self, name: str) -> Any:
        return None

    async def load(self, name: str, timeout_seconds: float, *, aside: bool) -> Any:
        assert aside
        if name == "broken":
            raise ToolError("it is broken")
        if name == "odd":
            raise RuntimeError("a fault of ours")
        return SimpleNamespace(module=name, needs=ToolNeeds())

    async def make_ready(self, module: Any, level: Level, timeout_seconds: float) -> None:
        self.made.append((module, level))
        if module == "hanging":
            await self.hanging.wait()


@pytest.fixture
async def world() -> World:
    return World()


async def look(world: World) -> tuple[list[tuple[str, Level]], float]:
    """What is made ready, and the seconds until the next look."""
    store: Any = SimpleNamespace(slots=world)
    fake: Any = world
    defaults = Defaults(5.0, Backoff(0.0, 0.0, max_attempts=1), Level.WARM, (), {})
    one = Readiness(store, fake, fake, defaults, most=10)
    async with asyncio.TaskGroup() as tasks:
        seconds = await one._look(tasks)
        world.hanging.set()
    assert not one._under_way
    return world.made, seconds


async def test_each_kind_is_made_ready_once_the_soonest_first(world: World) -> None:
    world.slots = [slot("b", 1), slot("a", 2), slot("b", 2), slot("a", 3, isolation="fork")]

    made, _ = await look(world)

    assert made == [("b", Level.WARM), ("a", Level.WARM), ("a", Level.FORK)]


async def test_what_will_not_run_needs_no_process(world: World) -> None:
    unreadable = Upcoming("two", NOW_MS, "", Seen("", None, Stored.nothing(), has_open_runs=False))
    world.slots = [unreadable, slot("a", 1, State.PAUSED), slot("b", 1, State.ARCHIVED), slot("c", 1)]

    made, _ = await look(world)

    assert made == [("c", Level.WARM)]


async def test_what_is_wrong_with_one_tool_is_no_harm_to_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "ONE_SECONDS", 0.01)
    world.slots = [slot("broken", 1), slot("odd", 1), slot("hanging", 1), slot("good", 1)]

    made, _ = await look(world)

    assert [name for name, _ in made] == ["hanging", "good"]


@pytest.mark.parametrize(
    ("slots", "following", "expected"),
    [
        ([], None, float("inf")),
        ([], 3_600.0, 3_600 - readiness.EARLY_SECONDS),
        ([3.0], None, 3 + readiness.AFTER_SECONDS),
        ([3.0, 8.0], 10.0, readiness.LEAST_SECONDS),
        ([8.0], 14.0, 14 - readiness.EARLY_SECONDS),
    ],
)
async def test_it_is_looked_again_when_there_is_more_to_be_seen(
    slots: list[float], following: float | None, expected: float, world: World
) -> None:
    world.slots = [slot("a", seconds) for seconds in slots]
    world.following_ms = None if following is None else NOW_MS + round(following * 1_000)

    _, seconds = await look(world)

    assert seconds == pytest.approx(expected, abs=0.5)


async def test_who_plans_something_has_it_looked_at(world: World) -> None:
    store: Any = SimpleNamespace(slots=world)
    fake: Any = world
    defaults = Defaults(5.0, Backoff(0.0, 0.0, max_attempts=1), Level.WARM, (), {})
    one = Readiness(store, fake, fake, defaults, most=10)
    task = asyncio.create_task(one.run(600.0))
    await world.looked.wait()
    world.looked.clear()
    world.slots = [slot("a", 1)]

    one.woken.set()
    await world.looked.wait()
    task.cancel()
    await asyncio.wait([task])

    assert world.looks == 2
