"""What a page is told while a run is under way, and what it does about runs."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from tests.conftest import Neighbour, Serve, Tools
from tests.web.client import Client, Stream

CURVE = """
    from pathlib import Path
    from time import sleep
    from shared.toolkit import metric, progress

    def curve(steps: int = 3, gate: str = ""):
        for step in range(steps):
            progress(step + 1, steps, "climbs")
            metric("loss", 1 / (step + 1), split="test")
            print(f"step {step}", flush=True)
            while gate and step == 0 and not Path(gate).exists():
                sleep(0.01)
        return {"steps": steps}
"""


async def _listen(client: Client, query: Mapping[str, str], until: str, **headers: str) -> dict[str, Any]:
    """Everything a stream says until it has said this line of the log, of the last one also the end."""

    def listen() -> dict[str, Any]:
        with client.stream(query, **headers) as stream:
            return _gathered(stream, until)

    return await asyncio.to_thread(listen)


def _gathered(stream: Stream, until: str) -> dict[str, Any]:
    told: dict[str, Any] = {"points": [], "log": [], "run": {}}
    for message in stream.messages():
        told["id"] = stream.last_id
        told["points"] += message.get("series", {}).get("loss\tsplit=test", [])
        told["log"] += [text for _, text in message.get("log", [])]
        for change in message.get("runs", {}).values():
            told["run"] |= change
        if until in told["log"] and (until == "step 0" or told["run"].get("over")):
            return told
    raise AssertionError(told)


async def test_a_page_is_told_everything_once_also_after_a_break(
    client: Client, serve: Serve, tools: Tools, neighbour: Neighbour, tmp_path: Any
) -> None:
    tools("curve", CURVE)
    gate = tmp_path / "gate"
    async with serve():
        await neighbour.publish("exp", "curve", params={"steps": 5, "gate": str(gate)})
        await neighbour.trigger({"experiment_id": "exp"})
        [started] = await neighbour.events("exp", "run_started")
        query = {"run": started["run_id"], "since": "0-1"}
        first = await _listen(client, query, "step 0")
        gate.touch()
        await neighbour.result("exp")

        second = await _listen(client, query, "step 4", last_event_id=first["id"])
        history = await client.get("/run/history", {"id": started["run_id"]})

    values = [value for _, value in first["points"] + second["points"]]
    assert values == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    assert first["log"] + second["log"] == [f"step {step}" for step in range(5)]
    assert second["run"] == {
        "done": 5, "total": 5, "message": "climbs", "status": "completed", "over": True
    }  # fmt: skip
    assert [value for _, value in json.loads(history.text)["series"]["loss\tsplit=test"]] == values


async def test_a_run_is_cancelled_and_run_again_from_its_page(
    client: Client, serve: Serve, tools: Tools, neighbour: Neighbour
) -> None:
    tools("curve", CURVE)
    async with serve():
        await neighbour.publish("a b", "curve", params={"gate": "/nowhere", "steps": 2})
        await neighbour.trigger({"experiment_id": "a b", "params": {"steps": 7}})
        [started] = await neighbour.events("a b", "run_started")
        page = await client.get("/run", {"id": started["run_id"]})
        form = {"id": started["run_id"], "csrf": page.csrf}

        await client.post("/run/cancel", form)
        ended = await neighbour.result("a b")
        again = await client.post("/run/again", form)
        second = (await neighbour.events("a b", "run_started", 2))[1]
        await client.post("/run/cancel", {**form, "id": second["run_id"]})
        await neighbour.result("a b", 2)
        record = await neighbour.record(second["run_id"])

    assert ended["error_type"] == "RunCancelledError"
    assert again.headers["location"] == f"/run?id={second['run_id'].replace(' ', '+').replace(':', '%3A')}"
    assert record["triggered_by"] == "web"
    assert json.loads(record["params"])["steps"] == 7


async def test_lists_are_filtered_and_paged(client: Client, neighbour: Neighbour) -> None:
    pipe = neighbour.redis.pipeline()
    for number in range(120):
        status = "failed" if number % 2 else "completed"
        fields = {
            "status": status,
            "tool": f"t{number % 3}",
            **({"error": f"no {number}"} if number % 2 else {}),
        }
        pipe.hset(f"experiment_runs:exp:{1_700_000_000_000 + number}-0", mapping=fields)
    await pipe.execute()

    everything = await client.get("/runs")
    failed = await client.get("/runs", {"status": "failed", "tool": "t1", "text": "NO 1"})
    older = await client.get("/runs", {"first": "100"})

    assert "1 to 50<" in everything.text
    assert everything.text.index("no 119") < everything.text.index("no 71")
    assert "1 to 6 of 6" in failed.text
    assert "101 to 120 of 120" in older.text
    assert (await client.get("/")).text.count('<td class="cause">') == 8
