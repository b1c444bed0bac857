"""Each due time of a schedule fires once, however many services there are."""

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from services.executor.store import Order, Store
from shared import keys
from tests.conftest import Neighbour, Serve, eventually
from tests.service.conftest import Work
from tests.service.worker import ROOT

EVERY_SECOND = "* * * * * *"
SELDOM = "0 0 1 1 *"

pytestmark = pytest.mark.usefixtures("echo")


@pytest.fixture(autouse=True)
async def experiment(neighbour: Neighbour) -> None:
    """`exp_1` is there and ready, and runs at every due time, however slow the machine is."""
    await neighbour.publish("exp_1", "echo", catch_up="all", overlap="allow")


async def fired(neighbour: Neighbour) -> list[datetime]:
    """The due times of `exp_1` that fired, in order, when all services have stopped."""
    records = [await neighbour.record(name.partition(":")[2]) for name in await runs(neighbour)]
    waiting = [
        Order.decode(fields["order"], entry)
        for entry, fields in await neighbour.redis.xrange(keys.queue("normal"))
    ]
    known = {one["run_id"]: one["scheduled_for"] for one in records}
    queued = [one for one in waiting if one.run_id not in known]
    due_times = [
        *known.values(),
        *(str(one.scheduled_for) for one in queued if one.experiment_id == "exp_1"),
    ]
    return sorted(map(datetime.fromisoformat, due_times))


async def runs(neighbour: Neighbour) -> list[str]:
    """The records of `exp_1`."""
    return list(await neighbour.redis.keys("experiment_runs:exp_1:*"))


async def has_due_time(store: Store) -> bool:
    """Whether `exp_1` has a due time."""
    return "exp_1" in await store.due_times.all()


async def test_each_due_time_fires_once_and_is_told_with_two_services(
    serve: Serve, neighbour: Neighbour
) -> None:
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)

    async with serve(schedule_mode="cron"), serve(schedule_mode="cron"):
        await neighbour.results("exp_1", 3)

    due_times = await fired(neighbour)
    assert len(due_times) >= 3
    assert due_times == [due_times[0] + timedelta(seconds=number) for number in range(len(due_times))]


async def test_a_service_that_has_not_read_a_change_does_not_undo_it(
    serve: Serve, neighbour: Neighbour, store: Store
) -> None:
    await neighbour.publish("exp_2", "echo")
    await neighbour.redis.set("schedules:exp_1", SELDOM)
    await neighbour.redis.set("schedules:exp_2", EVERY_SECOND)  # keeps both services awake

    async with (
        serve(schedule_mode="cron", cron_check_interval=600),
        serve(schedule_mode="cron", cron_check_interval=0.2),
    ):
        await asyncio.gather(eventually(lambda: has_due_time(store)), neighbour.result("exp_2"))
        await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)
        await neighbour.results("exp_1", 3)

    due_times = await fired(neighbour)
    assert len(due_times) >= 3
    assert due_times == [due_times[0] + timedelta(seconds=number) for number in range(len(due_times))]


SKEWED = """
import time

here = time.time
time.time = lambda: here() + {seconds}
"""


async def test_due_times_fire_once_and_on_time_whatever_the_clocks_of_the_services_say(
    work: Work, neighbour: Neighbour, store: Store, tmp_path: Path
) -> None:
    """Redis' clock decides: by its own clock, a service would be a minute early or late."""
    paths = []
    for seconds in (60, -60):
        folder = tmp_path / f"skewed by {seconds}"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(SKEWED.format(seconds=seconds))
        paths.append(f"{folder}:{ROOT}")
    await neighbour.redis.set("schedules:exp_1", EVERY_SECOND)

    async with (
        work(schedule_mode="cron", pythonpath=paths[0]) as fast,
        work(schedule_mode="cron", pythonpath=paths[1]) as slow,
    ):
        await asyncio.gather(fast.said("service.started"), slow.said("service.started"))
        results = await neighbour.results("exp_1", 4)
        records = [await neighbour.record(one["run_id"]) for one in results]

    due_times, queued, started = (
        [datetime.fromisoformat(one[name]).timestamp() for one in records]
        for name in ("scheduled_for", "queued_at", "started_at")
    )
    assert len(set(due_times)) == len(due_times)
    assert all(0 <= at - due < 30 for due, at in zip(due_times, queued, strict=True))
    assert all(abs(at - before) > 30 for before, at in zip(queued, started, strict=True))  # they are skewed
