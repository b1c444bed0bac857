"""What neighbours wrote, read by TYPE and never changed beyond what the contract allows."""

import json
from typing import Any

import pytest

from services.executor.store import Published, Store
from shared import keys
from shared.errors import ContractError, ExperimentNotFoundError, StoreError
from shared.messages import State, read_experiment_file
from shared.schedules import Schedule
from tests.store.conftest import SHAPES, everything, publish, state_of


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_experiment_is_read_in_every_shape(shape: str, store: Store, redis: Any) -> None:
    await publish(redis, shape, "paused", "a:ü:c")
    stored = await store.experiments.read("a:ü:c")

    experiment = stored.readable()
    assert (experiment.id, experiment.tool, experiment.state) == ("a:ü:c", "t", State.PAUSED)
    assert stored.error is None


async def test_an_error_is_raised_once_and_not_kept(store: Store, redis: Any) -> None:
    """A traceback grows each time that it is raised, and keeps all that it names alive."""
    await redis.set(keys.experiment("bad"), '{"tool": 1}')

    errors = [(await store.experiments.read("bad")).error for _ in range(2)]

    assert errors[0] is not None
    assert errors[0] is not errors[1]


async def test_an_experiment_that_is_not_there_is_told(store: Store) -> None:
    with pytest.raises(
        ExperimentNotFoundError, match=r"^experiments:a:b does not exist; publish the experiment"
    ):
        (await store.experiments.read("a:b")).readable()


@pytest.mark.parametrize(
    ("command", "redis_type"),
    [
        (("RPUSH", "x"), "list"),
        (("SADD", "x"), "set"),
        (("ZADD", "1", "x"), "zset"),
        (("XADD", "*", "a", "b"), "stream"),
    ],
)
async def test_a_key_of_another_type_is_told(
    command: tuple[str, ...], redis_type: str, store: Store, redis: Any
) -> None:
    name, *arguments = command
    for key in ("experiments:e", "schedules:e", "tools:e"):
        await redis.execute_command(name, key, *arguments)

    with pytest.raises(ContractError, match=f"^experiments:e is a Redis {redis_type}; expected"):
        (await store.experiments.read("e")).readable()
    with pytest.raises(ContractError, match=f"^schedules:e is a Redis {redis_type}; expected"):
        await store.experiments.schedule("e")
    assert [type(one) async for _, one in store.experiments.scan_tools()] == [ContractError]


async def test_one_key_that_can_not_be_read_does_not_stop_the_others(store: Store, redis: Any) -> None:
    for number, shape in enumerate(SHAPES):
        await publish(redis, shape, experiment_id=f"good{number}")
    await redis.rpush("experiments:good0:results", "x")
    await redis.set("experiments:bad", "not json")
    await redis.hset("experiments:worse", mapping={"spec": "[" * 100_000})
    await redis.execute_command("SET", b"experiments:caf\xe9", b'{"tool": "t"}')
    found = {name: stored async for name, stored in store.experiments.scan()}

    assert {name for name, stored in found.items() if stored.error is None} == {f"good{n}" for n in range(5)}
    assert set(found) - {f"good{n}" for n in range(5)} == {"good0:results", "bad", "worse", "caf\udce9"}


async def test_several_are_read_in_the_order_they_were_asked_for(store: Store, redis: Any) -> None:
    for name in ("a", "b", "c"):
        await publish(redis, "flat", experiment_id=name)
    names = ["c", "missing", "a", "b", "a"]
    stored = await store.experiments.read_many(names)

    assert [one.experiment.id if one.experiment else "" for one in stored] == ["c", "", "a", "b", "a"]


async def test_thousands_are_each_found_once(store: Store, redis: Any) -> None:
    async with redis.pipeline(transaction=False) as pipe:
        for number in range(5_000):
            pipe.hset(f"experiments:e{number}", mapping={"tool": "t"})
            pipe.set(f"schedules:e{number}", "0 9 * * *")
            pipe.set(f"other:{number}", "x")
        await pipe.execute()
    experiments = [name async for name, _ in store.experiments.scan()]
    schedules = [name async for name, _ in store.experiments.scan_schedules()]

    assert sorted(experiments) == sorted(schedules) == sorted(f"e{number}" for number in range(5_000))


async def test_what_grows_and_shrinks_while_it_is_read_is_found(store: Store, redis: Any) -> None:
    for number in range(1_500):
        await publish(redis, "flat", experiment_id=f"e{number}")
    found = []
    async for name, _ in store.experiments.scan():
        found.append(name)
        if len(found) % 50 == 0:
            await publish(redis, "flat", experiment_id=f"new{len(found)}")
            await redis.delete(f"experiments:gone{len(found)}")

    assert len(found) == len(set(found))
    assert {name for name in found if not name.startswith("new")} == {f"e{number}" for number in range(1_500)}


async def test_nothing_is_changed_by_reading(store: Store, redis: Any) -> None:
    for number, shape in enumerate(SHAPES):
        await publish(redis, shape, experiment_id=f"e{number}")
    before = await everything(redis)
    async for _ in store.experiments.scan():
        pass

    assert await everything(redis) == before


# -- schedules ------------------------------------------------------------------------


async def test_a_schedule_is_read_in_every_shape(store: Store, redis: Any) -> None:
    await redis.set("schedules:a", "0 9 * * MON")
    await redis.set(
        "schedules:b:c", '{"schedule": "0 9 * * MON", "timezone": "Asia/Kolkata", "enabled": false}'
    )
    await redis.hset("schedules:d", mapping={"cron": "0 9 * * MON", "state": "paused"})
    await redis.set("schedules:e", "{")
    found = {name: schedule async for name, schedule in store.experiments.scan_schedules()}

    assert found.pop("e").args == (await _refusal(store, "e")).args  # type: ignore[union-attr]
    assert found == {
        "a": Schedule(experiment_id="a", cron="0 9 * * MON"),
        "b:c": Schedule(experiment_id="b:c", cron="0 9 * * MON", timezone="Asia/Kolkata", enabled=False),
        "d": Schedule(experiment_id="d", cron="0 9 * * MON", enabled=False),
    }
    assert [await store.experiments.schedule(name) for name in found] == list(found.values())
    assert await store.experiments.schedule("nothing") is None


async def _refusal(store: Store, experiment_id: str) -> ContractError:
    with pytest.raises(ContractError) as refused:
        await store.experiments.schedule(experiment_id)
    return refused.value


async def test_a_schedule_that_was_only_announced_is_kept(store: Store, redis: Any) -> None:
    announced = Schedule(experiment_id="e", cron="0 9 * * *", timezone="UTC")
    await store.experiments.store_schedule(announced)
    await store.experiments.store_schedule(announced.model_copy(update={"cron": "0 10 * * *"}))

    assert await store.experiments.schedule("e") == announced


async def test_a_schedule_that_is_there_stays(store: Store, redis: Any) -> None:
    await redis.hset("schedules:e", mapping={"cron": "0 9 * * *"})
    await store.experiments.store_schedule(Schedule(experiment_id="e", cron="0 10 * * *"))

    assert await redis.hgetall("schedules:e") == {"cron": "0 9 * * *"}


# -- publishing -----------------------------------------------------------------------


FILE = "experiment: {id: 'exp:1', note: kept, execution: {tool: t}}"


@pytest.mark.parametrize("shape", [*SHAPES, "list", "nothing"])
async def test_a_file_is_published_over_whatever_was_there(shape: str, store: Store, redis: Any) -> None:
    if shape == "list":
        await redis.rpush("experiments:exp:1", "x")
    else:
        await publish(redis, shape, "failed")
    experiment = read_experiment_file("a.yaml", FILE)
    for now in ("2026-01-01", "2026-01-02"):
        published = await store.experiments.publish(experiment, FILE, None, now)

    fields = await redis.hgetall("experiments:exp:1")
    assert published == Published(State.READY)
    assert (await store.experiments.read("exp:1")).readable() == experiment
    assert (fields["spec"], fields["updated_at"]) == (FILE, "2026-01-02")
    assert fields.get("note") == ("kept" if shape in {"flat", "nested", "spec"} else None)
    assert {"tool", "params", "execution"}.isdisjoint(fields)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("state", ["paused", "archived"])
async def test_an_experiment_that_is_set_aside_stays_so_unless_told_otherwise(
    shape: str, state: str, store: Store, redis: Any
) -> None:
    await publish(redis, shape, state)
    experiment = read_experiment_file("a.yaml", FILE)
    kept = await store.experiments.publish(experiment, FILE, None, "2026-01-01")
    stored = await state_of_spec(redis)
    told = await store.experiments.publish(experiment, FILE, None, "2026-01-02", keeps_set_aside=False)

    assert (kept.state, stored) == (state, state)
    assert (told.state, await state_of_spec(redis)) == ("ready", "ready")


async def test_a_schedule_goes_with_the_file_that_it_came_with(store: Store, redis: Any) -> None:
    text = FILE.replace("tool: t", "tool: t, schedule: 0 9 * * *")
    schedule = Schedule(experiment_id="exp:1", cron="0 9 * * *")
    async with store.subscriptions.to((keys.SCHEDULES_CHANGED,)) as messages:
        first = await store.experiments.publish(read_experiment_file("a", text), text, schedule, "2026-01-01")
        heard = json.loads((await anext(messages)).data)
    stored = await store.experiments.schedule("exp:1")
    second = await store.experiments.publish(read_experiment_file("a", FILE), FILE, None, "2026-01-02")

    assert (heard["experiment_id"], stored) == ("exp:1", schedule)
    assert first == Published(State.READY)
    assert second == Published(State.READY, removed_schedule=True)
    assert await store.experiments.schedule("exp:1") is None


@pytest.mark.parametrize(
    "written", ['{"cron": "0 8 * * *", "enabled": false}', {"cron": "0 8 * * *", "state": "paused"}]
)
async def test_a_schedule_that_was_turned_off_stays_off_unless_told_otherwise(
    written: str | dict[str, str], store: Store, redis: Any
) -> None:
    if isinstance(written, str):
        await redis.set("schedules:exp:1", written)
    else:
        await redis.hset("schedules:exp:1", mapping=written)
    experiment = read_experiment_file("a", FILE)
    schedule = Schedule(experiment_id="exp:1", cron="0 9 * * *")
    kept = await store.experiments.publish(experiment, FILE, schedule, "2026-01-01")
    stored = await store.experiments.schedule("exp:1")
    told = await store.experiments.publish(experiment, FILE, schedule, "2026-01-02", keeps_set_aside=False)

    assert (kept, stored) == (
        Published(State.READY, stays_off=True),
        schedule.model_copy(update={"enabled": False}),
    )
    assert (told, await store.experiments.schedule("exp:1")) == (Published(State.READY), schedule)


async def test_a_schedule_that_its_file_turned_off_is_turned_on_by_it(store: Store) -> None:
    for now, is_on in (("2026-01-01", False), ("2026-01-02", True)):
        mapping = f"{{cron: 0 9 * * *, enabled: {str(is_on).lower()}}}"
        text = FILE.replace("tool: t", f"tool: t, schedule: {mapping}")
        schedule = Schedule(experiment_id="exp:1", cron="0 9 * * *", enabled=is_on)
        published = await store.experiments.publish(read_experiment_file("a", text), text, schedule, now)

        assert (published, await store.experiments.schedule("exp:1")) == (Published(State.READY), schedule)


async def test_a_schedule_of_somebody_else_is_told_and_stays(store: Store, redis: Any) -> None:
    await redis.set("schedules:exp:1", "0 9 * * *")
    for now in ("2026-01-01", "2026-01-02"):
        published = await store.experiments.publish(read_experiment_file("a", FILE), FILE, None, now)

        assert published == Published(State.READY, kept_schedule=True)


async def state_of_spec(redis: Any) -> str | None:
    return (await redis.hgetall("experiments:exp:1")).get("state")  # type: ignore[no-any-return]


# -- tools ----------------------------------------------------------------------------


async def test_a_tool_is_registered_beside_what_others_wrote(store: Store, redis: Any) -> None:
    await redis.hset(
        "tools:t", mapping={"owner": "x", "created_at": "before", "status": "invalid", "error": "y"}
    )
    await store.experiments.register_tool("t", {"status": "active", "updated_at": "now"})
    await store.experiments.register_tool("new", {"status": "invalid", "error": "z", "updated_at": "now"})

    assert {name: fields async for name, fields in store.experiments.scan_tools()} == {
        "t": {"owner": "x", "created_at": "before", "status": "active", "updated_at": "now"},
        "new": {"created_at": "now", "status": "invalid", "error": "z", "updated_at": "now"},
    }


@pytest.mark.parametrize(
    ("before", "shown"),
    [
        ({}, ("ours", "/ours")),
        ({"description": "builder's", "path": "/builder's"}, ("builder's", "/builder's")),
        ({"description": "", "path": "/builder's"}, ("ours", "/builder's")),
        (
            {"description": "x", "summary": "x", "path": "/x", "file": "/x", "described_by": "2"},
            ("ours", "/ours"),
        ),
        (
            {"description": "builder's", "summary": "x", "file": "/x", "described_by": "2"},
            ("builder's", "/ours"),
        ),
        ({"description": "x", "path": "/x", "described_by": "2"}, ("ours", "/ours")),  # by an older version
    ],
)
async def test_a_description_and_a_path_that_somebody_else_wrote_stay(
    store: Store, redis: Any, before: dict[str, str], shown: tuple[str, str]
) -> None:
    if before:
        await redis.hset("tools:t", mapping=before)
    fields = {
        "summary": "ours",
        "file": "/ours",
        "described_by": "3",
        "status": "active",
        "updated_at": "now",
    }
    for _ in range(2):
        await store.experiments.register_tool("t", fields)

    assert await redis.hmget("tools:t", "description", "path", "summary", "file") == [*shown, "ours", "/ours"]


async def test_only_a_tool_that_an_executor_has_registered_can_be_missing(store: Store, redis: Any) -> None:
    await redis.hset("tools:builders", mapping={"status": "active"})
    await store.experiments.register_tool("ours", {"described_by": "3", "updated_at": "now"})
    await store.experiments.note_registered(["builders", "removed"])

    missing = {
        name: await store.experiments.tool_is_missing(name, "later")
        for name in ("ours", "builders", "removed")
    }

    assert missing == {"ours": True, "builders": False, "removed": False}
    assert await redis.hget("tools:ours", "state") == "missing"
    assert await redis.hgetall("tools:builders") == {"status": "active"}
    assert not await redis.exists("tools:removed")
    assert await store.experiments.registered_tools() == {"ours"}


async def test_of_the_tools_that_are_asked_for_those_are_read_that_are_registered(
    store: Store, redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.store.experiments.READ_AT_ONCE", 2)
    for name in ("a", "c", "d", "other"):
        await redis.hset(keys.tool(name), mapping={"name": name})
    await redis.set(keys.tool("b"), "x")

    assert await store.experiments.read_tools([*"abcde"]) == {name: {"name": name} for name in "acd"}


async def test_a_tool_key_of_another_type_is_named(store: Store, redis: Any) -> None:
    await redis.set("tools:t", "x")

    with pytest.raises(StoreError, match=r"register_tool.*WRONGTYPE"):
        await store.experiments.register_tool("t", {"status": "active", "updated_at": "now"})
    assert await redis.get("tools:t") == "x"


async def test_the_state_of_another_experiment_is_not_touched(store: Store, redis: Any) -> None:
    await publish(redis, "flat", "ready", "exp:1")
    await publish(redis, "flat", "ready", "exp:1:2")
    experiment = read_experiment_file("a.yaml", FILE)
    await store.experiments.publish(experiment, FILE, None, "2026-01-01")

    assert await state_of(redis, "exp:1:2") == "ready"
