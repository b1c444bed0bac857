"""`fullsend aggregate`."""

import json
from pathlib import Path

import pytest

from tests.acceptance.commands import Shell
from tests.conftest import Neighbour, Serve, Tools

TOOL = """
import json
from shared import toolkit

def sample(n, fail=False):
    toolkit.artifact("values.json", json.dumps([0] * n).encode())
    if fail: raise ValueError("it slipped")
    return n

def aggregate(replicates, target_data):
    counts = [len(json.loads(toolkit.read_artifact(one["artifacts"]["values.json"]))) for one in replicates]
    return {"loss": abs(sum(counts) - target_data), "diagnostics": {"counts": counts}}
"""


@pytest.fixture
async def run_ids(neighbour: Neighbour, serve: Serve, tools: Tools, tmp_path: Path) -> list[str]:
    """Three runs, the last of which failed; one artifact is inline, two are stored."""
    tools("sample", TOOL)
    await neighbour.publish("exp", "sample")
    params = ({"n": 3}, {"n": 40_000}, {"n": 40_000, "fail": True})
    async with serve(artifacts=str(tmp_path / ".fullsend" / "artifacts")):
        return [(await neighbour.run("exp", params=one))["run_id"] for one in params]


async def test_a_tools_function_aggregates_runs(shell: Shell, run_ids: list[str]) -> None:
    done = await shell.fullsend("aggregate", "sample", *run_ids[:2], "--target", "40000", "--json")

    found = json.loads(done.out)
    assert (found["loss"], found["n_replicates"]) == (3.0, 2)
    assert found["diagnostics"] == {"counts": [3, 40_000]}


async def test_a_failed_run_is_an_error_unless_it_is_skipped(
    shell: Shell, run_ids: list[str], tmp_path: Path
) -> None:
    (tmp_path / "target.json").write_text("40003")

    refused = await shell.fullsend("aggregate", "sample", *run_ids, "--target", "@target.json")
    skipped = await shell.fullsend(
        "aggregate", "sample", *run_ids, "--target", "@target.json", "--on-failed", "skip"
    )

    assert refused.error.startswith(f"error: replicate {run_ids[2]} is failed: ValueError: it slipped")
    assert skipped.lines[:3] == ["loss        0", "replicates  2", f"skipped     {run_ids[2]}"]


async def test_impossible_aggregations_are_refused_with_the_reason(shell: Shell, run_ids: list[str]) -> None:
    unknown = await shell.fullsend("aggregate", "sample", "exp:1-0")
    rubbish = await shell.fullsend("aggregate", "sample", run_ids[0], "--target", "{")
    nothing = await shell.fullsend("aggregate", "sample", run_ids[0], "--function", "nothing")

    assert "there is no run 'exp:1-0'" in unknown.error
    assert "--target: { is not JSON" in rubbish.error
    assert "has no function nothing()" in nothing.error
