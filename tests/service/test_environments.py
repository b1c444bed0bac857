"""A tool that needs packages gets an environment of its own, warm like any other."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Neighbour, Serve
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
