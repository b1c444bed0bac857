"""What becomes of a result that is too large for its run's record."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.executor.artifacts import Keeper
from services.executor.artifacts.local_blobs import LocalBlobs
from services.executor.outcome import Outcome, Status
from services.executor.results import AttemptResults
from shared.backoff import Backoff
from shared.threads import Threads

LARGE = Outcome(Status.COMPLETED, result="x" * 100)


class NoMemory:
    """The memory of a run that has kept nothing."""

    async def recall(self, key: str) -> Any | None:
        """Never done."""

    async def record(self, key: str, value: Any) -> None:
        """Not kept."""

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """Not kept."""

    async def artifacts(self) -> Mapping[str, Any]:
        """None."""
        return {}

    async def keep_partials(self, entries: Sequence[str]) -> None:
        """Not kept."""

    async def partials(self) -> Sequence[str]:
        """None."""
        return ()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where the store's directory is to be; a file is in the way."""
    (tmp_path / "blobs").write_text("in the way")
    return tmp_path / "blobs"


def results(directory: Path, backoff: Backoff) -> AttemptResults:
    keeper = Keeper(LocalBlobs(directory), inline_max_bytes=10)
    return AttemptResults(keeper, NoMemory(), Threads(1), backoff=backoff)


async def test_a_result_that_cannot_be_stored_is_a_failure_that_is_not_retried(directory: Path) -> None:
    with capture_logs() as lines:
        outcome = await results(directory, Backoff(0.001, max_attempts=3)).complete(LARGE, is_first=True)

    assert (outcome.status, outcome.error_type, outcome.retryable) == (Status.FAILED, "ArtifactError", False)
    assert [line["again_in_seconds"] for line in lines] == [0.001, 0.002]


async def test_a_result_is_stored_once_the_store_takes_it(directory: Path) -> None:
    threading.Timer(0.05, directory.unlink).start()

    outcome = await results(directory, Backoff(0.01, 0.01)).complete(LARGE, is_first=True)

    assert outcome.shown["result"].startswith("cas://")
