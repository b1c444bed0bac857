"""One execution: its references to raw artifacts stay valid when the store is moved."""

import json
import shutil
from pathlib import Path

import pytest

from services.executor.outcome import Status
from services.planner.execution import result_of_record
from services.planner.metrics import MetricsComputer
from shared.errors import ArtifactNotFoundError, ContractError
from tests.planner.conftest import MakeLaboratory

ROOT = Path(__file__).parents[2]


async def test_an_execution_returns_references(laboratory: MakeLaboratory) -> None:
    lab = await laboratory()
    lab.tool(
        "tool",
        """
        from shared import toolkit
        def tool(n):
            toolkit.artifact("small.txt", b"a" * 100)
            toolkit.artifact("large.txt", b"b" * 101)
            return n + toolkit.run.seed
        """,
    )

    result = await lab.run("tool", seed=3, n=4)

    assert (result.status, result.error, result.result) == (Status.COMPLETED, None, "7")
    assert (result.storage_type, result.storage_base) == ("local", str(lab.folder / "store"))
    assert result.artifacts["small.txt"].startswith("data:text/plain;base64,")
    assert result.artifacts["large.txt"].startswith("cas://")
    assert [result.loader.load_text(one)[0] for one in result.artifacts.values()] == ["b", "a"]
    assert result.execution_time_ms is not None
    assert len(result.run_digest) == 64
    assert json.loads(json.dumps(result.to_json()))["status"] == "completed"


@pytest.mark.parametrize(
    ("line", "status", "error_type", "retryable"),
    [
        ("raise ValueError('no')", Status.FAILED, "ValueError", False),
        ("raise ConnectionError('no')", Status.FAILED, "ConnectionError", True),
        ("os._exit(1)", Status.FAILED, "ToolCrashedError", False),
        ("time.sleep(600)", Status.TIMEOUT, "ToolTimeoutError", False),
    ],
)
async def test_a_failed_execution_lists_the_artifacts_that_exist(
    laboratory: MakeLaboratory, line: str, status: Status, error_type: str, retryable: bool
) -> None:
    lab = await laboratory()
    lab.tool(
        "tool",
        f"""
        import os, time
        from shared import toolkit
        def tool():
            toolkit.artifact("error", b"not an error")
            {line}
        """,
    )

    result = await lab.run("tool")

    assert result.status is status
    assert result.error is not None
    assert (result.error.type, result.error.retryable) == (error_type, retryable)
    assert list(result.artifacts) == ["error"]


async def test_a_tool_that_is_not_there_is_a_result_too(laboratory: MakeLaboratory) -> None:
    result = await (await laboratory()).run("nothing")

    assert result.status is Status.FAILED
    assert "Tool 'nothing' not found" in str(result.error)
    assert result.tool_digest == ""


async def test_metrics_are_the_same_after_everything_was_moved(
    laboratory: MakeLaboratory, tmp_path: Path
) -> None:
    lab = await laboratory()
    shutil.copy(ROOT / "tools" / "ring_simulation.py", lab.tools)
    result = await lab.run("ring_simulation", seed=7, n_agents=20, kappa=0.4, default_handling="expel-agent")
    before = _written(result.loader, result.artifacts, tmp_path / "before")

    shutil.move(lab.folder / "store", tmp_path / "elsewhere")
    with pytest.raises(ArtifactNotFoundError, match=str(lab.folder)):
        result.loader.load_bytes(result.artifacts["events.jsonl"])
    moved = result.moved_to(str(tmp_path / "elsewhere"))

    assert _written(moved.loader, moved.artifacts, tmp_path / "after") == before
    assert set(before) == {"metrics.csv", "metrics.json", "debtor_shares.csv", "intraday.csv", "metrics.html"}


def _written(loader: object, artifacts: object, directory: Path) -> dict[str, bytes]:
    computer = MetricsComputer(loader)  # type: ignore[arg-type]
    directory.mkdir()
    paths = computer.write_outputs(computer.compute(artifacts), directory)  # type: ignore[arg-type]
    return {path.name: path.read_bytes() for path in paths.values()}


async def test_the_same_run_has_the_same_digest_in_another_laboratory(laboratory: MakeLaboratory) -> None:
    lab = await laboratory()
    lab.tool("tool", "def tool(n): return n\n")
    first, second = await lab.run("tool", n=1), await (await laboratory(inline_max_bytes=0)).run("tool", n=1)
    other = await lab.run("tool", n=1.0)

    assert first.run_digest == second.run_digest != other.run_digest


# -- records --------------------------------------------------------------------------


def test_a_record_is_a_result() -> None:
    record = {
        "run_id": "e:1-0",
        "status": "failed",
        "params": '{"n": 1}',
        "seed": "4",
        "artifacts": '{"a": {"reference": "data:;base64,", "size_bytes": 0}}',
        "error_type": "ValueError",
        "error": "no",
        "retryable": "true",
        "retry_after_seconds": "2.5",
        "duration_seconds": "1.5",
        "tool_digest": "d",
    }

    result = result_of_record(record, "local", "/somewhere")

    assert (result.status, str(result.error)) == (Status.FAILED, "ValueError: no")
    assert result.error is not None
    assert (result.error.retryable, result.error.retry_after_seconds) == (True, 2.5)
    assert (result.artifacts, result.execution_time_ms) == ({"a": "data:;base64,"}, 1_500)
    assert (result.parameters, result.seed, result.tool_digest) == ({"n": 1}, 4, "d")


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"status": "odd"}, "status 'odd'"),
        ({}, "status None"),
        ({"status": "completed", "artifacts": "[]"}, "field 'artifacts' is a list"),
        ({"status": "completed", "artifacts": '{"a": 1}'}, "artifact 'a' is a number without a reference"),
        ({"error_type": "E", "retry_after_seconds": "soon"}, "field 'retry_after_seconds' is 'soon'"),
        ({"status": "completed", "params": "x"}, "field 'params' is not JSON"),
    ],
)
def test_a_record_that_cant_be_read_says_where(record: dict[str, str], complaint: str) -> None:
    with pytest.raises(ContractError, match=rf"^experiment_runs:e:1-0 .*{complaint}"):
        result_of_record({"run_id": "e:1-0", **record}, "local", "/somewhere")
