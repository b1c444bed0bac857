"""Removing environments that nobody uses any more."""

import asyncio
import os
from pathlib import Path

import pytest

from services.executor.isolation.calls import Returned
from services.executor.isolation.environment import environment_cache
from services.executor.isolation.environment.requirements import Requirements
from tests.isolation.bench import bench, inside
from tests.isolation.workshop import Workshop, eventually, version_of_pinned

ONE = Requirements(("pinned==1.0",))
TWO = Requirements(("pinned==2.0",))
DAY = 86_400.0


@pytest.fixture(name="workshop")
def _workshop(tmp_path: Path) -> Workshop:
    workshop = Workshop(tmp_path)
    workshop.wheel("pinned", "1.0")
    workshop.wheel("pinned", "2.0")
    return workshop


async def test_only_environments_that_nobody_has_used_for_long_are_removed(workshop: Workshop) -> None:
    environments = workshop.environments()
    old = await environments.ensure(ONE)
    workshop.age(2 * DAY)
    await environments.ensure(TWO)

    removed = await environments.prune(DAY)

    assert removed == [old.key]
    assert workshop.names() == [".", ".json", ".lock"]
    assert await version_of_pinned(await environments.ensure(ONE)) == "1.0"


async def test_each_use_keeps_an_environment(workshop: Workshop) -> None:
    environments = workshop.environments()
    await environments.ensure(ONE)
    workshop.age(2 * DAY)
    await environments.ensure(ONE)

    assert await environments.prune(DAY) == []


async def test_an_environment_that_is_used_while_it_is_being_removed_stays(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    environments = workshop.environments()
    environment = await environments.ensure(ONE)
    workshop.age(2 * DAY)

    rename = Path.rename

    def use_before(path: Path, target: Path) -> Path:
        os.utime(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", use_before)

    assert await environments.prune(DAY) == []
    assert await version_of_pinned(environment) == "1.0"


async def test_an_environment_in_which_a_process_runs_is_not_removed(workshop: Workshop) -> None:
    environments = workshop.environments()
    environment = await environments.ensure(ONE)
    process = await asyncio.create_subprocess_exec(
        *(environment.python, "-I", "-c", "input('begun\\n')"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()  # a process that has just begun has no command line yet
    workshop.age(2 * DAY)

    while_it_runs = await environments.prune(DAY)
    await process.communicate(b"\n")

    assert while_it_runs == []
    assert await environments.prune(DAY) == [environment.key]


async def test_an_unfinished_build_is_not_removed(workshop: Workshop) -> None:
    environments = workshop.environments()
    workshop.close_gate()
    build = asyncio.create_task(environments.ensure(ONE))
    await workshop.installing()

    removed = await workshop.environments().prune(0)
    workshop.open_gate()

    assert removed == []
    assert await version_of_pinned(await build) == "1.0"


async def test_left_overs_are_removed_and_other_files_stay(workshop: Workshop) -> None:
    digest = "a" * 64
    (workshop.folder / f"{digest}.01234567" / "lib").mkdir(parents=True)
    for name in (f"{digest}.lock", f"{digest}.new", f"{digest}.retired", "notes.json", "README"):
        (workshop.folder / name).touch()

    assert await workshop.environments().prune(DAY) == []
    assert workshop.names() == ["README", "notes.json"]


async def test_a_missing_folder_has_nothing_to_remove(workshop: Workshop) -> None:
    assert await workshop.environments().prune(0) == []


async def test_an_environment_whose_tool_is_idle_can_be_removed_while_the_pool_lives(
    workshop: Workshop, tmp_path: Path
) -> None:
    environments = workshop.environments()
    environment = await environments.ensure(ONE)
    async with bench(tmp_path, idle_seconds=0.2) as own:
        tool = own.tool("import pinned\ndef run(): return pinned.VERSION", environment=environment)
        assert await own.run(tool) == Returned("1.0")
        assert await environments.prune(0) == []

        await eventually(lambda: not environment_cache.in_use(workshop.folders()))

        assert await environments.prune(0) == [environment.key]
        again = inside(await environments.ensure(ONE), tool)
        assert await own.run(again) == Returned("1.0")
