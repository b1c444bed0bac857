"""What a tool is given by name is seen by the tool and by nobody else."""

import base64
import json
from typing import Any
from urllib.parse import quote

import pytest
from structlog.testing import capture_logs

from services.executor.isolation.sandbox import unprotected
from shared import keys
from tests.conftest import Neighbour, Serve, Tools

TELLTALE = """
    # /// script
    # [tool.fullsend]
    # environment = ["TELLTALE_KEY", "TELLTALE_PEM"]
    # ///
    import base64, json, os
    from shared import toolkit
    from urllib.parse import quote

    def telltale(fail: bool):
        key, pem = os.environ["TELLTALE_KEY"], os.environ["TELLTALE_PEM"]
        print("x" * 8150 + key)
        print(base64.b64encode(f"user:{key}".encode()).decode(), key.encode().hex(), quote(key))
        toolkit.artifact(f"report of {key}.txt", b"x")
        toolkit.once(f"login as {key}", lambda: 1)
        toolkit.progress(0, 2, "x" * 990 + key)
        print("the key is", key)
        print(pem)
        print([pem])
        toolkit.progress(1, 2, f"with {key}")
        toolkit.metric(f"calls of {key}", 1, account=key, pem=pem, **{key: "as a name"})
        toolkit.once("login", lambda: {"token": key, "pem": pem.splitlines()})
        toolkit.partial([key, pem])
        if fail:
            raise type(f"Error_{key}", (ValueError,), {})(f"no good: {key}, {pem}")
        seen = {name: os.environ.get(name) for name in ("REDIS_URL", "OTHER_KEY")}
        return {"key": key, "pem": pem, **seen}
"""
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\n-----END KEY-----\n"
KEY = "sk/very-secret"
ENCODED = [base64.b64encode(KEY.encode()).decode()[:16], KEY.encode().hex(), quote(KEY, safe=""), "sk/v"]
SECRETS = [KEY, "also-secret", "elsewhere", *PEM.splitlines(), *ENCODED]


@pytest.fixture(params=["true", "false"], ids=["fails", "succeeds"])
async def told(
    request: pytest.FixtureRequest,
    serve: Serve,
    neighbour: Neighbour,
    tools: Tools,
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Any]:
    """All that can be seen of a run that says what it must not, by where it is seen."""
    monkeypatch.setenv("TELLTALE_KEY", KEY)
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
        "steps": await redis.hgetall(keys.checkpoints(run_id)),
        "artifacts": await redis.hgetall(keys.artifacts(run_id)),
        "log": [fields["text"] for _, fields in await redis.xrange(keys.logs(run_id))],
    }


@pytest.mark.parametrize("where", ["result", "events", "metrics", "journal", "record", "log", "artifacts"])
async def test_a_value_that_is_passed_is_masked_wherever_it_can_be_seen(
    where: str, told: dict[str, Any]
) -> None:
    seen = str(told[where])

    assert seen.strip("[]{}")
    assert [one for one in SECRETS if one in seen] == []


async def test_what_is_masked_is_masked_and_the_rest_is_as_it_was(told: dict[str, Any]) -> None:
    progress = [one for one in told["events"] if one["event"] == "progress"][-1]
    [metric] = [one for one in told["events"] if one["event"] == "metric"]

    assert "the key is ***" in told["log"]
    assert progress["message"] == "with ***"
    assert (metric["name"], metric["value"], metric["account"], metric["***"]) == (
        "calls of ***",
        1,
        "***",
        "as a name",
    )
    assert "login as ${TELLTALE_KEY}" in told["steps"]
    assert list(told["artifacts"]) == ["report of ***.txt"]
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


@pytest.mark.skipif(bool(unprotected()), reason="this kernel lacks Landlock or filters")
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


@pytest.mark.parametrize(("sandbox", "lines"), [("process", 1), ("files", 0)])
async def test_the_start_says_what_the_kernel_does_not_protect(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, sandbox: str, lines: int
) -> None:
    monkeypatch.setattr("services.executor.service.unprotected", lambda: "this kernel has no Landlock")

    with capture_logs() as logs:
        async with serve(sandbox=sandbox):
            pass

    said = [one for one in logs if one["event"] == "sandbox.incomplete"]
    assert [one["missing"] for one in said] == ["this kernel has no Landlock"] * lines
