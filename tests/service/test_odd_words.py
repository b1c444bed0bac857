"""Words that mean something to the executor itself are anybody's words elsewhere."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from services.executor import recovery
from services.executor.store import Store
from tests.conftest import Neighbour, Serve, eventually

Write = Callable[[str, str], Path]
SAME = """
from shared import toolkit

def same(**params):
    if "fail" in params:
        toolkit.partial(params["fail"])
        raise ValueError(params["fail"])
    return {"given": params, "made": chr(0xdc80)}
"""
FLAKY = """
from shared import toolkit
def flaky():
    if toolkit.run.attempt == 1:
        raise ConnectionError("once")
    return {"ok": True}
"""


async def test_an_experiment_may_be_called_as_a_default_is(
    serve: Serve, neighbour: Neighbour, tools: Write
) -> None:
    tools("plain", "def plain(): return {'ok': True}\n")
    await neighbour.redis.hset("experiments:normal", mapping={"tool": "plain"})

    async with serve():
        await neighbour.trigger({"experiment_id": "normal", "request_id": "normal"})
        result = await neighbour.result("normal")

    assert (result["status"], result["request_id"]) == ("success", "normal")


async def test_half_a_surrogate_pair_in_a_trigger_holds_up_no_retry(
    serve: Serve, neighbour: Neighbour, tools: Write
) -> None:
    tools("flaky", FLAKY)
    for name in ("exp_odd", "exp_good"):
        await neighbour.redis.hset(f"experiments:{name}", mapping={"tool": "flaky", "priority": "high"})

    async with serve(retry_backoff_min=0.05):
        await neighbour.trigger('{"experiment_id": "exp_odd", "triggered_by": "\\ud800"}')
        await neighbour.trigger({"experiment_id": "exp_good"})
        results = [await neighbour.result("exp_odd"), await neighbour.result("exp_good")]

    assert [result["status"] for result in results] == ["success", "success"]


async def test_half_a_surrogate_pair_is_kept_in_parameters_results_and_reports(
    serve: Serve, neighbour: Neighbour, tools: Write
) -> None:
    tools("same", SAME)
    half = '{"text": "a\\ud83d", "\\udc80": ["\\udfff b"]}'
    await neighbour.redis.hset("experiments:exp_hash", mapping={"tool": "same", "params": half})
    spec = f"execution: {{tool: same, params: {half}}}"
    await neighbour.redis.hset("experiments:exp_spec", mapping={"spec": spec})
    document = f'{{"execution": {{"tool": "same", "params": {half}}}}}'
    await neighbour.redis.set("experiments:exp_text", document)
    await neighbour.publish("exp_bare", "same")

    async with serve():
        results = [await neighbour.run(name) for name in ("exp_hash", "exp_text")]
        results.append(await neighbour.run("exp_bare", params=json.loads(half)))
        records = [await neighbour.record(result["run_id"]) for result in results]
        failed = await neighbour.run("exp_bare", params={"fail": "\ud800"})
        refused = await neighbour.run("exp_spec")

    for record in records:
        assert json.loads(record["params"]) == json.loads(half)
        assert json.loads(record["result"]) == {"given": json.loads(half), "made": "\udc80"}
    assert (failed["error"], failed["partial_results"]) == ("\ud800", ["\ud800"])
    assert refused["error_type"] == "ContractError"  # YAML has no such escape


async def test_request_ids_of_experiments_whose_names_run_into_them_are_told_apart(
    serve: Serve, neighbour: Neighbour, tools: Write
) -> None:
    tools("plain", "def plain(): return {'ok': True}\n")
    for name in ("a", "a:b"):
        await neighbour.redis.hset(f"experiments:{name}", mapping={"tool": "plain"})

    async with serve():
        await neighbour.trigger({"experiment_id": "a", "request_id": "b:c"})
        await neighbour.trigger({"experiment_id": "a:b", "request_id": "c"})
        results = [await neighbour.result("a"), await neighbour.result("a:b")]

    assert [result["status"] for result in results] == ["success", "success"]


async def test_cancelling_the_wait_for_another_attempt_leaves_no_experiment_running(
    serve: Serve, neighbour: Neighbour, tools: Write, store: Store
) -> None:
    tools("flaky", FLAKY)
    document = {"id": "exp_text", "execution": {"tool": "flaky"}}
    await neighbour.redis.hset("experiments:exp_hash", mapping={"tool": "flaky"})
    await neighbour.redis.set("experiments:exp_text", json.dumps(document))

    async with serve(retry_backoff_min=30.0, retry_backoff_max=30.0):
        for name in ("exp_hash", "exp_text"):
            await neighbour.trigger({"experiment_id": name})
            [retrying] = await neighbour.events(name, "run_retrying")
            await recovery.cancel(store, retrying["run_id"])
            await neighbour.result(name)

    assert await neighbour.redis.hget("experiments:exp_hash", "state") == "failed"
    assert json.loads(await neighbour.redis.get("experiments:exp_text"))["state"] == "failed"


async def test_a_run_that_went_down_with_anothers_fork_server_is_tried_again(
    serve: Serve, neighbour: Neighbour, tools: Write, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    tools(
        "victim",
        "import os, time\nfrom shared import toolkit\n"
        "def victim(path: str):\n"
        "    if toolkit.run.attempt == 1:\n"
        "        open(path, 'w').write(str(os.getppid()))\n"
        "        time.sleep(60)\n"
        "    return {'ok': True}\n",
    )
    fields = {"tool": "victim", "params": json.dumps({"path": str(pids)})}
    await neighbour.redis.hset("experiments:exp_1", mapping=fields)

    async def written() -> str:
        return pids.read_text() if pids.exists() else ""

    async with serve(retry_backoff_min=0.05):
        await neighbour.trigger({"experiment_id": "exp_1"})
        os.kill(int(await eventually(written)), signal.SIGKILL)
        result = await neighbour.result("exp_1")

    assert result["status"] == "success"
    assert (await neighbour.record(result["run_id"]))["attempt"] == "2"
