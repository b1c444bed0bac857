"""Recorded durations of earlier runs: in plans, and in Redis."""

from pathlib import Path
from typing import Any

import pytest

from services.executor.store import Store
from services.planner.models import RunManifest
from services.planner.plan import Plan
from services.planner.plan.recorded_runs import recorded_in_plans, recorded_in_redis
from shared import keys


def record(**members: str) -> dict[str, str]:
    return {"status": "completed", "tool": "noop", "duration_seconds": "1.5", **members}


@pytest.fixture
async def records(store: Store, redis: Any) -> Store:
    """Redis with a run that counts, two of plans, and some that don't count."""
    found = {
        "one:1-0": record(),
        "plan:known:2-0": record(duration_seconds="2.5"),
        "plan:other:3-0": record(duration_seconds="3.5"),
        "one:4-0": record(status="failed"),
        "one:5-0": record(tool="another"),
        "one:6-0": record(cached="true"),
        "one:7-0": {"status": "running", "tool": "noop"},
    }
    for run_id, fields in found.items():
        await redis.hset(keys.run(run_id), mapping=fields)
    return store


async def test_completed_runs_of_the_tool_count_wherever_they_came_from(records: Store) -> None:
    found = await recorded_in_redis(records, "noop")

    assert (found.place, sorted(found.seconds)) == ("Redis", [1.5, 2.5, 3.5])


async def test_runs_that_a_plans_registry_has_count_once(records: Store) -> None:
    found = await recorded_in_redis(records, "noop", {"plan:known"})

    assert sorted(found.seconds) == [1.5, 3.5]


def test_durations_are_kept_apart_by_tool(tmp_path: Path) -> None:
    for tool in ("noop", "another"):
        manifest: dict[str, Any] = {"workflow_id": tool, "tool": tool, "cases": [{}]}
        plan = Plan.create(RunManifest.model_validate(manifest), tmp_path / tool)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")

    found = recorded_in_plans("another", tmp_path)

    assert found.seconds == ()
    assert found.experiments == {f"plan:{plan.name}"}
