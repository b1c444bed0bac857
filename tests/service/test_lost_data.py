"""Redis loses its data during a run: the end of the run is reported all the same."""

from pathlib import Path
from typing import Any

import pytest

from services.executor.store import Store
from services.executor.store.runs import LOST
from shared import keys
from tests.conftest import Neighbour, Serve, Tools, eventually
from tests.service.conftest import assert_works

SLOW = """
    import time
    from pathlib import Path
    from shared import toolkit

    def slow(go: str, kind: str = ""):
        toolkit.progress(0)
        while not Path(go).exists():
            time.sleep(0.01)
        if kind:
            raise {"transient": ConnectionError, "final": ValueError}[kind]("no good")
        return {"done": True}
"""

pytestmark = pytest.mark.usefixtures("echo")


@pytest.mark.parametrize("kind", ["", "final", "transient"])
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
async def test_a_run_that_redis_has_forgotten_ends_with_a_message_that_says_so(
    kind: str, noticed: bool, serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("slow", SLOW)
    go = tmp_path / "go"
    await neighbour.publish("exp_1", "slow", params={"go": str(go), "kind": kind})
    async with serve():
        await neighbour.trigger({"experiment_id": "exp_1"})
        await neighbour.events("exp_1", "progress")
        await neighbour.redis.flushall()
        if noticed:  # by a heartbeat, which identifies the new data
            await eventually(lambda: neighbour.redis.exists(keys.dataset()), "a heartbeat")
        go.touch()
        result = await neighbour.result("exp_1")
        record = await neighbour.record(result["run_id"])
        await assert_works(neighbour)

    assert result["note"] == record["note"] == LOST
    assert result["type"] == ("experiment_failed" if kind else "experiment_completed")
    assert result.get("error") == ("no good" if kind else None)
    assert record["status"] == ("failed" if kind else "completed")
    assert len(neighbour.heard_of("exp_1", keys.RESULTS)) == 1
    assert not await neighbour.redis.exists("experiments:exp_1")


@pytest.mark.parametrize("loss", ["of the record", "of the lease"])
async def test_without_that_sign_a_stale_outcome_is_dropped(
    loss: str, serve: Serve, neighbour: Neighbour, tools: Tools, tmp_path: Path
) -> None:
    tools("slow", SLOW)
    go = tmp_path / "go"
    await neighbour.publish("exp_1", "slow", params={"go": str(go)})
    async with serve() as service:
        await neighbour.trigger({"experiment_id": "exp_1"})
        [event] = await neighbour.events("exp_1", "progress")
        record = f"experiment_runs:{event['run_id']}"
        if loss == "of the record":
            await neighbour.redis.delete(record)
        else:
            await neighbour.redis.hset(record, "lease", "another")
        go.touch()

        async def ended() -> bool:
            return service.running == 0

        await eventually(ended, "the end of the run")
        await assert_works(neighbour)

    assert neighbour.heard_of("exp_1", keys.RESULTS) == []


async def test_new_data_is_noticed_once(store: Store, redis: Any) -> None:
    assert await store.workers.identify_data()
    await redis.flushall()

    assert not await store.workers.identify_data()
    assert await store.workers.identify_data()


async def test_a_key_of_another_type_tells_nothing(store: Store, redis: Any) -> None:
    await redis.rpush(keys.dataset(), "x")

    assert await store.workers.identify_data()
    await redis.flushall()
    assert await store.workers.identify_data()
