"""A tool's file asks for variables; what it is given is the operator's to say."""

from pathlib import Path

import pytest

from tests.conftest import Neighbour, Serve, Tools

ASKING = """
    # /// script
    # [tool.fullsend]
    # environment = ["{name}"]
    # ///
    import os, pathlib

    def asking():
        pathlib.Path("{mark}").touch()
        return {{"seen": len(os.environ.get("{name}", ""))}}
"""


async def result(serve: Serve, neighbour: Neighbour, allowed: str = "", for_all: str = "") -> object:
    """The length of what the tool `asking` sees, or the error of its run."""
    await neighbour.publish("exp_1", "asking")
    async with serve(tool_environment_allowed=allowed, tool_environment=for_all):
        told = await neighbour.run("exp_1")
    return told.get("error") or told["result_summary"].get("seen")


async def test_a_variable_that_the_operator_has_not_allowed_fails_the_run_before_it_starts(
    serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_KEY", "hunter2hunter2")
    mark = tmp_path / "called"
    tools("asking", ASKING.format(name="LAB_KEY", mark=mark))

    error = str(await result(serve, neighbour, allowed="LAB_TOKEN,OTHER_*"))

    assert "asks for the variable LAB_KEY" in error
    assert "add LAB_KEY to TOOL_ENVIRONMENT_ALLOWED" in error
    assert "hunter2" not in error
    assert not mark.exists()


@pytest.mark.parametrize("chosen", [{"allowed": "OTHER,LAB_*"}, {"for_all": "LAB_KEY"}], ids=str)
async def test_a_variable_that_the_operator_allows_is_given(
    chosen: dict[str, str],
    serve: Serve,
    neighbour: Neighbour,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LAB_KEY", "two")
    tools("asking", ASKING.format(name="LAB_KEY", mark="mark"))

    assert await result(serve, neighbour, **chosen) == len("two")


async def test_the_connection_is_never_given(
    serve: Serve, neighbour: Neighbour, tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    tools("asking", ASKING.format(name="REDIS_URL", mark="mark"))

    error = str(await result(serve, neighbour, allowed="*"))

    assert "asks for the variable REDIS_URL" in error
    assert "connection to Redis" in error
    assert "elsewhere" not in error


@pytest.mark.parametrize("setting", ["allowed", "for_all"])
async def test_a_variable_in_the_env_file_is_given_unless_the_environment_has_another(
    setting: str,
    serve: Serve,
    neighbour: Neighbour,
    tools: Tools,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("LAB_KEY='from ${FILE}'\n")
    tools("asking", ASKING.format(name="LAB_KEY", mark="mark"))

    assert await result(serve, neighbour, **{setting: "LAB_KEY"}) == len("from ${FILE}")

    monkeypatch.setenv("LAB_KEY", "1")
    async with serve(**{{"allowed": "tool_environment_allowed"}.get(setting, "tool_environment"): "LAB_KEY"}):
        await neighbour.trigger({"experiment_id": "exp_1"})
        second = await neighbour.result("exp_1", 2)
    assert second["result_summary"] == {"seen": len("1")}
