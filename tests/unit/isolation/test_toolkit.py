"""The toolkit in a tool that is run by hand."""

from pathlib import Path

import pytest

from shared import toolkit


def test_by_hand_reports_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    toolkit.progress(1, 2, "half")
    toolkit.metric("sent", 3, to="x")
    toolkit.partial({"a": 1})
    toolkit.artifact("a.bin", b"123")

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "progress 1/2 half",
        "metric sent=3 to=x",
        "partial {'a': 1}",
        "artifact a.bin (3 bytes, not kept)",
    ]


def test_by_hand_once_simply_calls() -> None:
    calls: list[int] = []

    for _ in range(2):
        toolkit.once("key", lambda: calls.append(1))

    assert calls == [1, 1]


def test_by_hand_there_is_a_run_that_nobody_recorded() -> None:
    run = toolkit.run

    assert (run.id, run.experiment_id, run.attempt, run.seed) == ("by-hand", "by-hand", 1, None)
    assert run.remaining_seconds == float("inf")
    assert Path(run.temp_directory).is_dir()
    assert run.temp_directory == run.temp_directory
