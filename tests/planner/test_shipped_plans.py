"""The shipped plans and those in the documentation load and run to their end with the shipped tools."""

import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from pydantic import BaseModel

from services.planner.aggregation import Aggregator
from services.planner.backends.local import LocalBackend
from services.planner.cancellation import CancellationToken
from services.planner.cases import all_cases
from services.planner.documents import read_manifest
from services.planner.evaluation import Evaluation, Evaluations
from services.planner.models import (
    Budget,
    Comparison,
    Evaluator,
    ExecutionPolicy,
    Range,
    RateLimit,
    RetryPolicy,
    RunManifest,
    SeedRule,
    StopConditions,
    Sweep,
    TestCase,
)
from services.planner.runtime import RuntimeConfig, ToolRuntime
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import RunExecutionResult, TaskStatus
from shared.errors import PlanError

ROOT = Path(__file__).parents[2]
SHIPPED = {"batches_pairwise": 12, "ring_cases": 5, "ring_points": 16, "ring_sweep": 60}
DOCUMENTED = {"first_plan": 10, "chosen_points": 8, "listed_cases": 3, "what_expelling_does": 20}
PAGE = (ROOT / "docs" / "plans.md").read_text()
BLOCKS = re.findall(r"^```(yaml|json)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
Run = Callable[[RunManifest, int], Awaitable[Sequence[Evaluation]]]


@pytest.fixture
async def run(tmp_path: Path) -> AsyncIterator[Run]:
    """Runs a plan of so many cases; every case succeeds, with its seed.  Returns what was found over them."""
    places = RuntimeConfig(
        tools_path=ROOT / "tools",
        artifacts=str(tmp_path / "store"),
        bundles_path=tmp_path / "bundles",
        environments_path=tmp_path / "environments",
    )
    runtime = ToolRuntime(places, 2, os.environ)
    async with LocalBackend(runtime, 2) as backend:

        async def run_and_check(manifest: RunManifest, expected: int) -> Sequence[Evaluation]:
            token = CancellationToken()
            async with Evaluations(manifest, Aggregator(runtime), on_stop=token.cancel) as evaluations:
                scheduler = TaskScheduler(backend, criteria=evaluations.stopper)
                done = await scheduler.run_manifest_async(manifest, token)
                made = await evaluations.finish(done.task_results)
            check(manifest, done, expected)
            assert (evaluations.reason, evaluations.notes) == (None, ())
            return made

        yield run_and_check


def check(manifest: RunManifest, done: RunExecutionResult, expected: int) -> None:
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
async def test_a_plan_that_ships_runs_to_its_end(run: Run, path: Path) -> None:
    manifest = read_manifest(path)

    assert manifest.workflow_id == path.stem
    made = await run(manifest, SHIPPED[path.stem])
    assert [one.error for one in made if one.loss is None] == []


async def test_the_ring_cases_have_the_results_their_scenarios_promise(run: Run) -> None:
    equal, one_coin, stress = await run(read_manifest(ROOT / "config" / "plans" / "ring_cases.json"), 5)

    assert [(one.scenario, one.outputs["statuses"]) for one in (equal, one_coin, stress)] == [
        ("every agent has what it owes", {"settled": 1}),
        ("one agent has all the money", {"settled": 1}),
        ("a tenth of the money", {"quiet": 3}),
    ]
    assert (equal.loss, one_coin.loss) == (0, 0)
    assert stress.loss == stress.diagnostics["shortfall"] > 0.5
    assert 0 < stress.diagnostics["shortfall_margin"] < 0.1


@pytest.mark.parametrize(("kind", "text"), BLOCKS, ids=list(DOCUMENTED))
async def test_a_plan_in_the_documentation_runs_to_its_end(
    run: Run, tmp_path: Path, kind: str, text: str
) -> None:
    path = tmp_path / f"plan.{kind}"
    path.write_text(text)
    manifest = read_manifest(path)

    await run(manifest, DOCUMENTED[manifest.workflow_id])


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
        ("sweep.seeds.", SeedRule),
        ("execution_policy.", ExecutionPolicy),
        ("execution_policy.rate_control.", RateLimit),
        ("execution_policy.retry_policy.", RetryPolicy),
        ("execution_policy.stop_conditions.", StopConditions),
        ("budget.", Budget),
        ("evaluator.", Evaluator),
        ("comparison.", Comparison),
    ],
)
def test_every_member_is_in_the_documentation(place: str, model: type[BaseModel]) -> None:
    for name in model.model_fields:
        row = re.compile(
            rf"^\| (`{re.escape(place)}{name}[`.]|`{re.escape(place)}\w+`.*, `\.{name}`)", re.MULTILINE
        )

        assert row.search(PAGE), f"{place}{name}"
