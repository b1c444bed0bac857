"""The plans that ship, and those in the documentation, load and run to their end with the tools that ship."""

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from services.planner.backends.local import LocalBackend
from services.planner.cases import all_cases
from services.planner.documents import read_manifest
from services.planner.models import (
    Budget,
    Evaluator,
    ExecutionPolicy,
    Range,
    RateLimit,
    RetryPolicy,
    RunManifest,
    StopConditions,
    Sweep,
    TestCase,
)
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import TaskStatus
from services.planner.workbench import Places, Workbench
from shared.errors import PlanError

ROOT = Path(__file__).parents[2]
SHIPPED = {"batches_pairwise": 12, "ring_cases": 5, "ring_points": 16, "ring_sweep": 60}
DOCUMENTED = {"first_plan": 10, "chosen_points": 8, "listed_cases": 3}
PAGE = (ROOT / "docs" / "plans.md").read_text()
BLOCKS = re.findall(r"^```(yaml|json)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    places = Places(
        tools_path=ROOT / "tools",
        artifacts=str(tmp_path / "store"),
        bundles_path=tmp_path / "bundles",
        environments_path=tmp_path / "environments",
    )
    async with LocalBackend(Workbench(places, 2, os.environ), 2) as opened:
        yield opened


async def check(backend: LocalBackend, manifest: RunManifest, expected: int) -> None:
    """Run the plan; every case succeeds, with its seed."""
    done = await TaskScheduler(backend).run_manifest_async(manifest)

    assert done.stopped is None
    assert [(one.task_status, one.error_message) for one in done.task_results] == [
        (TaskStatus.SUCCEEDED, None)
    ] * expected
    cases = all_cases(manifest)
    assert [one.case for one in done.task_results] == list(cases)
    assert [one.execution and one.execution.seed for one in done.task_results] == [one.seed for one in cases]


def test_all_plans_that_ship_are_run_here() -> None:
    assert {path.stem for path in (ROOT / "config" / "plans").iterdir()} == set(SHIPPED)
    assert len(BLOCKS) == len(DOCUMENTED)


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "plans").iterdir()), ids=lambda path: path.name)
async def test_a_plan_that_ships_runs_to_its_end(backend: LocalBackend, path: Path) -> None:
    manifest = read_manifest(path)

    assert manifest.workflow_id == path.stem
    await check(backend, manifest, SHIPPED[path.stem])


@pytest.mark.parametrize(("kind", "text"), BLOCKS, ids=list(DOCUMENTED))
async def test_a_plan_in_the_documentation_runs_to_its_end(
    backend: LocalBackend, tmp_path: Path, kind: str, text: str
) -> None:
    path = tmp_path / f"plan.{kind}"
    path.write_text(text)
    manifest = read_manifest(path)

    await check(backend, manifest, DOCUMENTED[manifest.workflow_id])


def test_mistakes_are_told_as_the_documentation_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plan.yaml").write_text(
        "workflow_id: w\ncases: [{}, {seed: -1, paramters: {}}]\nconcurrency: 4\n",
    )

    with pytest.raises(PlanError) as caught:
        read_manifest(Path("plan.yaml"))

    assert f"```text\n{caught.value}\n```" in PAGE


@pytest.mark.parametrize(
    ("place", "model"),
    [
        ("", RunManifest),
        ("cases[].", TestCase),
        ("sweep.", Sweep),
        ("sweep.dimensions.NAME.", Range),
        ("execution_policy.", ExecutionPolicy),
        ("execution_policy.rate_control.", RateLimit),
        ("execution_policy.retry_policy.", RetryPolicy),
        ("execution_policy.stop_conditions.", StopConditions),
        ("budget.", Budget),
        ("evaluator.", Evaluator),
    ],
)
def test_every_member_is_in_the_documentation(place: str, model: type[BaseModel]) -> None:
    for name in model.model_fields:
        row = re.compile(
            rf"^\| (`{re.escape(place)}{name}[`.]|`{re.escape(place)}\w+`.*, `\.{name}`)", re.MULTILINE
        )

        assert row.search(PAGE), f"{place}{name}"
