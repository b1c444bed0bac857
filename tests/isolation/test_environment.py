"""A tool's own environment: built once, shared, and built again when it is damaged."""

import asyncio
import json
import platform
import sys
from pathlib import Path

import pytest

from services.executor.isolation.calls import Returned
from services.executor.isolation.environment.environments import Environment
from services.executor.isolation.environment.requirements import Requirements, requirements_of
from shared.errors import ToolEnvironmentError
from tests.isolation.bench import Bench
from tests.isolation.workshop import Workshop, another_service, output_of, version_of_pinned

ONE = Requirements(("pinned==1.0",))
TWO = Requirements(("pinned==2.0",))


@pytest.fixture(name="workshop")
def _workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "workshop").mkdir()
    workshop = Workshop(tmp_path / "workshop")
    workshop.wheel("pinned", "1.0")
    workshop.wheel("pinned", "2.0")
    return workshop


# -- what it is for -------------------------------------------------------------------


async def test_tools_with_contradicting_pins_run_side_by_side(workshop: Workshop, bench: Bench) -> None:
    environments = workshop.environments()
    source = (
        "# /// script\n# dependencies = ['pinned=={}']\n# ///\n"
        "import os, pinned\ndef run(): return [pinned.VERSION, os.getpid()]\n"
    )

    async def answers(version: str) -> list[object]:
        text = source.format(version)
        environment = await environments.ensure(requirements_of("a tool", text))
        tool = bench.tool(text, environment=environment)
        return [await bench.run(tool) for _ in range(2)]

    for version, (first, second) in zip(
        ("1.0", "2.0"), await asyncio.gather(answers("1.0"), answers("2.0")), strict=True
    ):
        assert isinstance(first, Returned)
        assert first.value[0] == version
        assert first == second


async def test_an_environment_has_what_its_dependencies_need_and_nothing_of_the_service(
    workshop: Workshop,
) -> None:
    workshop.wheel("above", "1.0", requires="pinned<2")

    environment = await workshop.environments().ensure(Requirements(("above",)))

    installed = "from importlib.metadata import distributions as d; print(sorted(x.name for x in d()))"
    assert await output_of(environment.python, "-c", installed) == "['above', 'pinned']"
    assert await version_of_pinned(environment) == "1.0"


async def test_programs_of_an_environment_run(workshop: Workshop) -> None:
    environment = await workshop.environments().ensure(TWO)

    assert await output_of(environment.python.with_name("say-pinned")) == "2.0"


@pytest.mark.parametrize("requirements", [Requirements(), Requirements(requires_python=">=3.9")])
async def test_without_dependencies_the_services_own_environment_is_used(
    workshop: Workshop, requirements: Requirements
) -> None:
    environments = workshop.environments()

    made = [await environments.ensure(requirements) for _ in range(2)]

    assert made == [Environment(Path(sys.executable), Path(sys.executable), "")] * 2
    assert (workshop.calls(), workshop.folder.exists()) == ([], False)


async def test_the_services_own_interpreter_is_used_if_it_fits(workshop: Workshop) -> None:
    requirements = Requirements(("pinned",), requires_python=f"=={platform.python_version()}")

    environment = await workshop.environments().ensure(requirements)

    assert await output_of(environment.python, "-c", "import sys; print(sys.base_prefix)") == sys.base_prefix
    assert workshop.calls("python") == []


async def test_another_interpreter_is_used_if_the_services_own_does_not_fit(
    workshop: Workshop,
) -> None:
    listed = await output_of(workshop.uv, "python", "list", "--only-installed", "--output-format", "json")
    usable = {
        entry["version"]
        for entry in json.loads(listed)
        if entry["implementation"] == "cpython" and entry["version_parts"]["minor"] >= 9
    } - {platform.python_version()}
    if not usable:
        pytest.skip("uv finds no second interpreter on this machine")
    version = min(usable)

    environment = await workshop.environments().ensure(Requirements(("pinned",), f"=={version}"))

    assert (
        await output_of(environment.python, "-c", "import platform as p; print(p.python_version())")
        == version
    )


async def test_without_a_fitting_interpreter_the_message_names_those_that_exist(workshop: Workshop) -> None:
    with pytest.raises(ToolEnvironmentError, match=r"needs Python >=9\.1") as caught:
        await workshop.environments().ensure(Requirements(requires_python=">=9.1"))

    assert platform.python_version() in str(caught.value)


# -- built once -----------------------------------------------------------------------


async def test_an_environment_is_built_once(workshop: Workshop) -> None:
    environments = workshop.environments()

    first = await environments.ensure(ONE)
    second = await environments.ensure(ONE)
    after_a_restart = await workshop.environments().ensure(ONE)

    assert first == second == after_a_restart
    assert len(workshop.calls()) == 2


async def test_concurrent_callers_wait_for_one_build(workshop: Workshop) -> None:
    environments = workshop.environments()

    made = await asyncio.gather(*(environments.ensure(ONE) for _ in range(20)))

    assert len(set(made)) == 1
    assert len(workshop.calls("pip")) == 1


async def test_concurrent_processes_wait_for_one_build(workshop: Workshop) -> None:
    workshop.close_gate()
    others = [asyncio.create_task(output_of(*another_service(workshop, ONE))) for _ in range(2)]
    here = asyncio.create_task(workshop.environments().ensure(ONE))
    await workshop.installing()
    workshop.open_gate()

    environment = await here

    assert await asyncio.gather(*others) == [str(environment.python)] * 2
    assert len(workshop.calls("pip")) == 1


async def test_different_environments_are_built_side_by_side_but_no_more_than_two(workshop: Workshop) -> None:
    environments = workshop.environments()
    workshop.close_gate()
    wanted = (ONE, TWO, Requirements(("pinned",)))
    builds = [asyncio.create_task(environments.ensure(requirements)) for requirements in wanted]
    await workshop.installing(2)
    workshop.note("released")
    workshop.open_gate()

    made = await asyncio.gather(*builds)

    before = workshop.calls()[: workshop.calls().index("released")]
    assert [line.split()[0] for line in before].count("venv") == 2
    assert len({environment.digest for environment in made}) == 3


# -- damaged --------------------------------------------------------------------------


def _no_marker(environment: Environment, marker: Path) -> None:
    marker.unlink()


def _empty_marker(environment: Environment, marker: Path) -> None:
    marker.write_text("")


def _misleading_marker(environment: Environment, marker: Path) -> None:
    marker.write_text('{"folder": "../elsewhere"}')


def _no_interpreter(environment: Environment, marker: Path) -> None:
    environment.python.unlink()


def _interpreter_that_leads_nowhere(environment: Environment, marker: Path) -> None:
    environment.python.unlink()
    environment.python.symlink_to("/nonexistent/python")


@pytest.mark.parametrize(
    "damage",
    [_no_marker, _empty_marker, _misleading_marker, _no_interpreter, _interpreter_that_leads_nowhere],
)
async def test_a_damaged_environment_is_built_again(workshop: Workshop, damage: object) -> None:
    assert callable(damage)
    damage(await workshop.environments().ensure(ONE), workshop.markers()[0])

    environment = await workshop.environments().ensure(ONE)

    assert await version_of_pinned(environment) == "1.0"
    assert workshop.folders() == [environment.python.parents[1]]


async def test_damage_is_noticed_after_the_environment_was_used(workshop: Workshop) -> None:
    environments = workshop.environments()
    before = await environments.ensure(ONE)
    before.python.unlink()

    after = await environments.ensure(ONE)

    assert after.python != before.python
    assert await version_of_pinned(after) == "1.0"


async def test_the_marker_of_an_environment_names_its_dependencies(workshop: Workshop) -> None:
    await workshop.environments().ensure(ONE)

    about = json.loads(workshop.markers()[0].read_text())

    assert (about["dependencies"], about["python"]) == (["pinned==1.0"], platform.python_version())
