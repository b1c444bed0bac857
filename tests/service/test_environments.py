"""A tool that needs packages gets an environment of its own, warm like any other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Neighbour, Serve, eventually
from tests.isolation.workshop import Workshop


async def test_a_tool_whose_packages_can_not_be_had_fails_with_uvs_own_words(
    serve: Serve, neighbour: Neighbour, tools: Callable[[str, str], Path], tmp_path: Path
) -> None:
    wheel = "none @ file:///nowhere/none-1.0-py3-none-any.whl"
    block = f"# /// script\n# dependencies = ['{wheel}']\n# ///\n"
    tools("needy", block + "def needy(): return {}\n")
    await neighbour.redis.hset("experiments:exp_1", mapping={"tool": "needy"})

    async with serve(environments_path=tmp_path / "environments"):
        await neighbour.trigger({"experiment_id": "exp_1"})
        result = await neighbour.result("exp_1")

    assert result["error_type"] == "ToolEnvironmentError"
    assert "Distribution not found" in result["error"]


async def test_a_tool_that_needs_a_package_has_it_in_every_run(
    serve: Serve,
    neighbour: Neighbour,
    tools: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    shop.wheel("parcel", "1.5")
    for name, value in shop.environ.items():
        monkeypatch.setenv(name, value)
    block = "# /// script\n# dependencies = ['parcel>=1']\n# ///\n"
    tools("needy", f"{block}import sys\nimport parcel\ndef needy(): return [parcel.VERSION, sys.prefix]\n")
    await neighbour.publish("exp_1", "needy")

    async with serve(environments_path=tmp_path / "environments"):
        results = [await neighbour.run("exp_1") for _ in range(2)]

    records = [await neighbour.record(one["run_id"]) for one in results]
    [[version, prefix], again] = [json.loads(one["result"]) for one in records]
    assert [one["status"] for one in records] == ["completed"] * 2
    assert (version, again) == ("1.5", ["1.5", prefix])
    assert Path(prefix).is_relative_to(tmp_path / "environments")
    assert records[0]["environment_digest"] == records[1]["environment_digest"] != ""


async def test_a_tool_that_needs_nothing_runs_in_the_services_own_python(
    serve: Serve, neighbour: Neighbour, tools: Callable[[str, str], Path], tmp_path: Path
) -> None:
    tools("plain", "# /// script\n# requires-python = '>=3.9'\n# ///\ndef plain(): return {'ok': True}\n")
    await neighbour.redis.hset("experiments:exp_1", mapping={"tool": "plain"})

    async with serve(environments_path=tmp_path / "environments"):
        await neighbour.trigger({"experiment_id": "exp_1"})
        result = await neighbour.result("exp_1")

    assert json.loads((await neighbour.record(result["run_id"]))["result"]) == {"ok": True}
    assert not (tmp_path / "environments").exists() or not any((tmp_path / "environments").iterdir())


SHIPPED = """
    # /// script
    # dependencies = ["parcel"]
    # ///
    import parcel

    def needy(weight: int = 1, *, to: "list[str] | None" = None, when: object = parcel.VERSION):
        \"\"\"Send a parcel.

        Args:
            weight: in kilograms.
        \"\"\"
        return parcel.VERSION
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """Where the package `parcel` comes from."""
    (tmp_path / "shop").mkdir()
    shop = Workshop(tmp_path / "shop")
    shop.wheel("parcel", "1.5")
    for name, value in shop.environ.items():
        monkeypatch.setenv(name, value)
    return shop


@pytest.mark.usefixtures("shop")
async def test_registering_a_tool_builds_nothing_and_a_run_that_waits_does(
    serve: Serve, neighbour: Neighbour, tools: Callable[[str, str], Path], tmp_path: Path
) -> None:
    tools("needy", SHIPPED)
    environments = tmp_path / "environments"

    async def registered(provisional: str | None) -> dict[str, str] | None:
        fields = await neighbour.redis.hgetall("tools:needy")
        return fields if fields and fields.get("provisional") == provisional else None

    async with serve(environments_path=environments):
        before = await eventually(lambda: registered("true"), "the registration")
        folders = list(environments.glob("*")) if environments.exists() else []
        await neighbour.publish("exp_1", "needy")
        result = await neighbour.run("exp_1")
        after = await eventually(lambda: registered(None), "the description of what was built")

    assert folders == []
    assert (before["status"], before["description"]) == ("active", "Send a parcel.")
    assert json.loads(before["parameters"])["properties"] == {
        "weight": {"type": "integer", "default": 1, "description": "in kilograms."},
        "to": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}], "default": None},
        "when": {},
    }
    assert result["result_summary"] == {"value": "1.5"}
    assert json.loads(after["parameters"])["properties"]["when"] == {"default": "1.5"}


@pytest.mark.usefixtures("shop")
async def test_a_tool_that_is_no_python_is_invalid_although_nothing_is_built(
    serve: Serve, neighbour: Neighbour, tools: Callable[[str, str], Path], tmp_path: Path
) -> None:
    tools("needy", "# /// script\n# dependencies = ['parcel']\n# ///\ndef needy(:\n")
    async with serve(environments_path=tmp_path / "environments"):
        await eventually(lambda: neighbour.redis.hget("tools:needy", "error"), "the registration")

    fields = await neighbour.redis.hgetall("tools:needy")
    assert fields["status"] == "invalid"
    assert "can't be imported: SyntaxError" in fields["error"]
