"""A session is visible to other processes from its start to its end, and they can stop it."""

import asyncio
from pathlib import Path

import pytest

from services.planner.cancellation import CancellationToken, PlanCancelledError, unless_cancelled
from services.planner.models import RunManifest
from services.planner.plan import Plan
from services.planner.plan.status import PlanState
from shared.errors import PlanError


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    manifest = {"workflow_id": "plan", "tool": "noop", "cases": [{"replicates": 3}]}
    return Plan.create(RunManifest.model_validate(manifest), tmp_path / "p")


async def test_a_plan_is_running_as_soon_as_a_session_is_open(plan: Plan) -> None:
    with plan.lock() as locked:
        async with locked.session("local"):
            meanwhile = plan.status()

    assert (meanwhile.state, meanwhile.session and meanwhile.session.cases) == (PlanState.RUNNING, 3)
    assert plan.status().state is PlanState.STOPPED


async def test_a_request_to_stop_arrives_before_the_first_case(plan: Plan) -> None:
    async def wait() -> None:
        with plan.lock() as locked:
            async with locked.session("local") as taken:
                plan.cancel("enough")
                await unless_cancelled(taken.token, asyncio.sleep(600))

    with pytest.raises(PlanCancelledError, match="enough"):
        await wait()

    sitting = plan.status().session
    assert sitting is not None
    assert sitting.stopped == "enough"


async def test_an_error_is_the_reason_of_the_sessions_end(plan: Plan) -> None:
    with plan.lock() as locked, pytest.raises(PlanError):
        async with locked.session("local"):
            raise PlanError("no such tool")

    sitting = plan.status().session
    assert sitting is not None
    assert sitting.stopped == "no such tool"


async def test_finished_work_is_not_cancelled() -> None:
    assert await unless_cancelled(CancellationToken(), asyncio.sleep(0, "done")) == "done"


async def test_work_ends_before_the_cancellation_is_raised() -> None:
    token, ended = CancellationToken(), asyncio.Event()

    async def work() -> None:
        try:
            token.cancel("why not")
            await asyncio.sleep(600)
        finally:
            ended.set()

    with pytest.raises(PlanCancelledError, match="why not"):
        await unless_cancelled(token, work())

    assert ended.is_set()


async def test_no_attempt_begins_after_a_cancellation() -> None:
    token, begun = CancellationToken(), asyncio.Event()
    token.cancel()

    async def work() -> None:
        begun.set()

    with pytest.raises(PlanCancelledError):
        await unless_cancelled(token, work())

    assert not begun.is_set()
