"""The same calls have the same results on every backend: values, artifacts byte for byte, and digests."""

import asyncio
from pathlib import Path

from services.executor.outcome import Status
from services.planner.backends import Backend
from services.planner.backends.local import LocalBackend
from services.planner.execution import ExecutionResult
from tests.conftest import Tools
from tests.planner.backends.conftest import Executors, MakeFleet, execution

ROOT = Path(__file__).parents[3]
SEEDS = (3, 4)


async def simulated(backend: Backend) -> list[ExecutionResult]:
    """Runs of the ring, and one that fails."""
    calls = [
        execution("ring_simulation", {"n_agents": 20, "kappa": 0.4}, number, seed=seed)
        for number, seed in enumerate(SEEDS)
    ]
    calls.append(execution("broken", {"a": [1.0, None]}, 9))
    async with backend:
        return list(await asyncio.gather(*map(backend.run, calls)))


async def test_every_backend_has_the_same_results(
    local: LocalBackend, fleet: MakeFleet, executors: Executors, tools: Tools
) -> None:
    tools("ring_simulation", (ROOT / "tools" / "ring_simulation.py").read_text())
    tools(
        "broken",
        """
        from shared import toolkit
        def broken(a):
            toolkit.artifact("a", b"1")
            raise ValueError(a)
        """,
    )
    here = await simulated(local)
    async with executors():
        there = await simulated(fleet())

    assert [one.status for one in here] == [Status.COMPLETED, Status.COMPLETED, Status.FAILED]
    for one, other in zip(here, there, strict=True):
        measured = ("execution_time_ms", "cpu_seconds", "peak_rss_bytes")
        assert all(one.to_json()[name] is not None for name in measured)
        assert {**other.to_json(), **{name: one.to_json()[name] for name in measured}} == one.to_json()
        for reference in one.artifacts.values():
            assert one.loader.load_bytes(reference) == other.loader.load_bytes(reference)
