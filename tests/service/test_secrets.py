"""What a tool is given by name is seen by the tool and by nobody else."""

import json
from typing import Any

import pytest

from services.executor.isolation.sandbox import unprotected
from shared import keys
from tests.conftest import Neighbour, Serve, Tools

TELLTALE = """
    # /// script
    # [tool.fullsend]
    # environment = ["TELLTALE_KEY", "TELLTALE_PEM"]
    # ///
    import os
    from shared import toolkit

    def telltale(fail: bool):
        key, pem = os.environ["TELLTALE_KEY"], os.environ["TELLTALE_PEM"]
        print("the key is", key)
        print(pem)
        print([pem])
        toolkit.progress(1, 2, f"with {key}")
        toolkit.metric(f"calls of {key}", 1, account=key, pem=pem, **{key: "as a name"})
        toolkit.once("login", lambda: {"token": key, "pem": pem.splitlines()})
        toolkit.partial([key, pem])
        if fail:
            raise ValueError(f"no good: {key}, {pem}")
        seen = {name: os.environ.get(name) for name in ("REDIS_URL", "OTHER_KEY")}
        return {"key": key, "pem": pem, **seen}
"""
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----\n"
SECRETS = ["sk-very-secret", "also-secret", "elsewhere", *PEM.splitlines()]


@pytest.fixture(params=["true", "false"], ids=["fails", "succeeds"])
async def told(
    request: pytest.FixtureRequest,
    serve: Serve,
    neighbour: Neighbour,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """All that can be seen of a run that says what it must not, by where it is seen."""
    monkeypatch.setenv("TELLTALE_KEY", "sk-very-secret")
    monkeypatch.setenv("TELLTALE_PEM", PEM)
    monkeypatch.setenv("OTHER_KEY", "also-secret")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    tools("telltale", TELLTALE)
    await neighbour.publish("exp_1", "telltale", params=f'{{"fail": {request.param}}}')
    async with serve(tool_environment_allowed="TELLTALE_*"):
        result = await neighbour.run("exp_1")
    redis, run_id = neighbour.redis, result["run_id"]
    return {
        "failed": request.param == "true",
        "result": result,
        "events": neighbour.heard_of("exp_1", keys.METRICS),
        "metrics": await redis.lrange(keys.metrics("exp_1"), 0, -1),
        "journal": await redis.xrange(keys.journal()),
        "record": await neighbour.record(run_id),
        "log": [fields["text"] for _, fields in await redis.xrange(keys.logs(run_id))],
    }


@pytest.mark.parametrize("where", ["result", "events", "metrics", "journal", "record", "log"])
async def test_a_value_that_is_passed_is_masked_wherever_it_can_be_seen(
    where: str, told: dict[str, Any]
) -> None:
    seen = str(told[where])

    assert seen.strip("[]{}")
    assert [one for one in SECRETS if one in seen] == []


async def test_what_is_masked_is_masked_and_the_rest_is_as_it_was(told: dict[str, Any]) -> None:
    [progress] = [one for one in told["events"] if one["event"] == "progress"]
    [metric] = [one for one in told["events"] if one["event"] == "metric"]

    assert "the key is ***" in told["log"]
    assert progress["message"] == "with ***"
    assert (metric["name"], metric["value"], metric["account"], metric["***"]) == (
        "calls of ***",
        1,
        "***",
        "as a name",
    )
    assert "***" in (told["record"]["error"] if told["failed"] else told["record"]["result"])


PRYING = """
    import os

    def above(pid):
        while pid > 1:
            yield pid
            pid = int(open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[1])

    def prying():
        came = []
        for pid in above(os.getppid()):
            for name in ("environ", "maps", "mem"):
                try:
                    open(f"/proc/{pid}/{name}", "rb").close()
                except PermissionError:
                    came.append("refused")
                else:
                    came.append(f"{pid}/{name}")
            try:
                os.kill(pid, 0)
            except PermissionError:
                came.append("refused")
            else:
                came.append(f"{pid} by a signal")
        return came
"""


@pytest.mark.skipif(bool(unprotected()), reason="this kernel has no Landlock, or an old one")
@pytest.mark.parametrize("isolation", ["warm", "fork", "spawn"])
async def test_with_default_settings_a_tool_reaches_nothing_above_it(
    serve: Serve, neighbour: Neighbour, tools: Tools, isolation: str
) -> None:
    tools("prying", PRYING)
    await neighbour.publish("exp_1", "prying", isolation=isolation)
    async with serve():
        result = await neighbour.run("exp_1")

    came = json.loads((await neighbour.record(result["run_id"]))["result"])
    assert len(came) >= 12
    assert set(came) == {"refused"}
