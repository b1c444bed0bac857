"""Aggregation: a tool's function over many runs, wherever their artifacts are stored."""

from dataclasses import replace
from typing import Any

import pytest

from services.executor.outcome import Status
from services.planner.aggregation import AggregationTask
from services.planner.execution import ExecutionResult
from shared.errors import (
    AggregationError,
    ArtifactCorruptError,
    NonFiniteLossError,
    ReplicateFailedError,
    ToolNotFoundError,
)  # fmt: skip
from tests.planner.conftest import Laboratory, MakeLaboratory

TOOL = """
import json, math
from shared import toolkit

def tool(n, fail=False):
    toolkit.artifact("values.json", json.dumps(list(range(n))).encode())
    if fail: raise ValueError("this one fails")
    return {"n": n}

def aggregate(replicates, target_data):
    total = 0
    for one in replicates:
        with open(toolkit.artifact_path(one["artifacts"]["values.json"])) as file:
            assert json.load(file) == json.loads(toolkit.read_artifact(one["artifacts"]["values.json"]))
        total += sum(json.loads(toolkit.read_artifact(one["artifacts"]["values.json"])))
    toolkit.artifact("residuals.csv", b"r" * 200)
    return {
        "loss": abs(total - target_data["total"]),
        "diagnostics": {"total": total, "seeds": [one["seed"] for one in replicates]},
        "outputs": {"n": [one["result"]["n"] for one in replicates]},
    }

def greedy(replicates, target_data): return {"loss": len(bytearray(400_000_000))}
def huge(replicates, target_data): return {"loss": 10 ** 400}
def not_finite(replicates, target_data): return {"loss": float(target_data)}
def infinite(replicates, target_data): return {"loss": math.inf}
def text(replicates, target_data): return {"loss": "0"}
def truth(replicates, target_data): return {"loss": True}
def nothing(replicates, target_data): return {}
def number(replicates, target_data): return 3
def odd(replicates, target_data): return {"loss": 1, "diagnostics": [1]}
def broken(replicates, target_data): raise KeyError("gone")
def thief(replicates, target_data): return {"loss": len(toolkit.read_artifact(target_data))}
"""
TARGET = {"total": 10}


@pytest.fixture
async def lab(laboratory: MakeLaboratory) -> Laboratory:
    one = await laboratory()
    one.tool("tool", TOOL)
    return one


async def runs(lab: Laboratory, *sizes: int, **parameters: Any) -> list[ExecutionResult]:
    return [await lab.run("tool", seed=size, n=size, **parameters) for size in sizes]


async def test_an_aggregation_says_what_the_function_found(lab: Laboratory) -> None:
    task = AggregationTask("tool", "aggregate", await runs(lab, 3, 100), TARGET)

    found = await lab.aggregator.aggregate(task)

    assert found.loss == 4943.0
    assert found.diagnostics == {"total": 4953, "seeds": [3, 100]}
    assert found.outputs == {"n": [3, 100]}
    assert list(found.artifacts) == ["residuals.csv"]
    assert (found.n_replicates, found.skipped) == (2, ())
    assert len(found.tool_digests) == 1


async def test_inline_and_stored_artifacts_give_the_same_answer(laboratory: MakeLaboratory) -> None:
    answers = []
    for inline_max_bytes in (0, 100, 1_000):
        lab = await laboratory(inline_max_bytes=inline_max_bytes)
        lab.tool("tool", TOOL)
        replicates = await runs(lab, 3, 100)
        found = await lab.aggregator.aggregate(AggregationTask("tool", "aggregate", replicates, TARGET))
        kinds = [one.artifacts["values.json"][:4] for one in replicates]
        answers.append((found.aggregation_id, found.loss, found.diagnostics, found.outputs))
        assert (
            kinds == {0: ["cas:", "cas:"], 100: ["data", "cas:"], 1_000: ["data", "data"]}[inline_max_bytes]
        )

    assert answers[0] == answers[1] == answers[2]


async def test_the_id_covers_code_function_target_and_inputs(lab: Laboratory) -> None:
    replicates = await runs(lab, 2, 3)
    task = AggregationTask("tool", "aggregate", replicates, TARGET)
    others = [
        replace(task, target_data={"total": 11}),
        replace(task, replicates=replicates[:1]),
        replace(task, replicates=[replicates[0], replace(replicates[1], result='{"n": 4}')]),
        replace(task, entry_point="not_finite", target_data=1),
    ]
    ids = [(await lab.aggregator.aggregate(one)).aggregation_id for one in (task, task, *others)]
    lab.tool("tool", TOOL + "\n# changed\n")
    ids.append((await lab.aggregator.aggregate(task)).aggregation_id)

    assert ids[0] == ids[1]
    assert len(set(ids)) == len(ids) - 1


async def test_a_failed_replicate_is_an_error_that_names_it(lab: Laboratory) -> None:
    replicates = [*await runs(lab, 1), *await runs(lab, 2, fail=True), *await runs(lab, 3)]

    with pytest.raises(ReplicateFailedError, match=r"replicate run-2 is failed: ValueError: this one fails"):
        await lab.aggregator.aggregate(AggregationTask("tool", "aggregate", replicates, TARGET))


async def test_a_failed_replicate_may_be_left_out(lab: Laboratory) -> None:
    replicates = [*await runs(lab, 1), *await runs(lab, 2, fail=True), *await runs(lab, 3)]
    task = AggregationTask("tool", "aggregate", replicates, TARGET, on_failed="skip")

    found = await lab.aggregator.aggregate(task)

    assert (found.n_replicates, found.skipped) == (2, ("run-2",))
    assert found.outputs == {"n": [1, 3]}


@pytest.mark.parametrize("on_failed", ["fail", "skip"])
async def test_no_replicates_are_an_error(lab: Laboratory, on_failed: Any) -> None:
    task = AggregationTask("tool", "aggregate", [], TARGET, on_failed=on_failed)

    with pytest.raises(AggregationError, match="none of 0 replicates is completed"):
        await lab.aggregator.aggregate(task)


@pytest.mark.parametrize(
    ("entry_point", "target"),
    [
        ("not_finite", "nan"),
        ("not_finite", "-inf"),
        ("infinite", 0),
        ("text", 0),
        ("truth", 0),
        ("nothing", 0),
        ("huge", 0),
    ],
)
async def test_a_loss_that_is_no_finite_number_is_an_error_of_its_own(
    lab: Laboratory, entry_point: str, target: Any
) -> None:
    task = AggregationTask("tool", entry_point, await runs(lab, 1), target)

    with pytest.raises(NonFiniteLossError, match=rf"^tool\.{entry_point}"):
        await lab.aggregator.aggregate(task)


@pytest.mark.parametrize(
    ("entry_point", "complaint"),
    [
        ("number", "returned no object with a 'loss'"),
        ("odd", "a 'diagnostics' that is not an object"),
        ("broken", "KeyError: 'gone'"),
        ("missing", "ToolError: .* has no function missing"),
        ("_private", "ToolError: .* has no function _private"),
    ],
)
async def test_a_function_that_cant_be_used_says_why(
    lab: Laboratory, entry_point: str, complaint: str
) -> None:
    task = AggregationTask("tool", entry_point, await runs(lab, 1), 0)

    with pytest.raises(AggregationError, match=complaint):
        await lab.aggregator.aggregate(task)


async def test_a_corrupt_artifact_is_never_aggregated(lab: Laboratory) -> None:
    replicates = await runs(lab, 100)
    digest = replicates[0].artifacts["values.json"].removeprefix("cas://")
    blob = lab.folder / "store" / "sha256" / digest[:2] / digest
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1])

    with pytest.raises(ArtifactCorruptError, match="is corrupt"):
        await lab.aggregator.aggregate(AggregationTask("tool", "aggregate", replicates, TARGET))
    with pytest.raises(ArtifactCorruptError):
        replicates[0].loader.load_bytes(replicates[0].artifacts["values.json"])


async def test_a_function_gets_no_other_artifacts_than_its_own(lab: Laboratory) -> None:
    replicates = await runs(lab, 100)
    secret = lab.blobs.put(b"secret").sha256
    for reference in (f"cas://{secret}", "run-1/other", "/etc/passwd"):
        task = AggregationTask("tool", "thief", replicates, reference)

        with pytest.raises(AggregationError, match="is not an artifact that this call was given"):
            await lab.aggregator.aggregate(task)


async def test_a_pinned_bundle_aggregates_as_it_did(lab: Laboratory) -> None:
    replicates = await runs(lab, 3)
    first = await lab.aggregator.aggregate(AggregationTask("tool", "aggregate", replicates, TARGET))
    lab.tool("tool", "def tool(): pass\n")
    pinned = AggregationTask(f"tool@sha256:{first.tool_digests[0]}", "aggregate", replicates, TARGET)

    assert await lab.aggregator.aggregate(pinned) == first
    with pytest.raises(ToolNotFoundError):
        await lab.aggregator.aggregate(replace(pinned, tool=f"tool@sha256:{'0' * 64}"))


async def test_runs_of_several_versions_of_the_code_are_reported(lab: Laboratory) -> None:
    replicates = await runs(lab, 1)
    lab.tool("tool", TOOL + "\n# changed\n")
    replicates += await runs(lab, 2)

    found = await lab.aggregator.aggregate(AggregationTask("tool", "aggregate", replicates, TARGET))

    assert found.tool_digests == tuple(one.tool_digest for one in replicates)
    assert len(set(found.tool_digests)) == 2


async def test_a_cancelled_replicate_is_not_completed(lab: Laboratory) -> None:
    [replicate] = await runs(lab, 1)
    task = AggregationTask("tool", "aggregate", [replace(replicate, status=Status.CANCELLED)], TARGET)

    with pytest.raises(ReplicateFailedError, match="run-1 is cancelled"):
        await lab.aggregator.aggregate(task)


async def test_an_aggregation_has_the_limits_of_its_tool(
    laboratory: MakeLaboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_KEY", "hunter2hunter2")
    lab = await laboratory(allowed=("LAB_KEY",))
    table = '# /// script\n# [tool.fullsend]\n# memory_mb = 100\n# environment = ["LAB_KEY"]\n# ///\n'
    leaky = "def leaky(replicates, target_data):\n    import os; raise ValueError(os.environ['LAB_KEY'])\n"
    lab.tool("tool", table + TOOL + leaky)
    replicates = await runs(lab, 1)

    with pytest.raises(AggregationError, match="memory limit"):
        await lab.aggregator.aggregate(AggregationTask("tool", "greedy", replicates, 0))
    with pytest.raises(AggregationError) as refused:
        await lab.aggregator.aggregate(AggregationTask("tool", "leaky", replicates, 0))
    assert "hunter2" not in str(refused.value)


async def test_runs_with_equal_ids_give_each_its_own_artifacts(lab: Laboratory) -> None:
    named = [replace(one, run_id="same") for one in await runs(lab, 3, 5)]

    found = await lab.aggregator.aggregate(AggregationTask("tool", "aggregate", named, TARGET))

    assert (found.diagnostics["total"], found.outputs) == (13, {"n": [3, 5]})


async def test_a_run_that_is_given_twice_is_refused(lab: Laboratory) -> None:
    one, other = await runs(lab, 2, 3)

    with pytest.raises(AggregationError, match=f"the run {one.run_id} is given twice, as replicates 0 and 2"):
        await lab.aggregator.aggregate(AggregationTask("tool", "aggregate", [one, other, one], TARGET))
