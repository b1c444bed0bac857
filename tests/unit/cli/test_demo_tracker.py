"""The demo's tracker and live view, and the words for entries of the journal."""

import io
from typing import Any

import pytest
from rich.console import Console

from services.cli.demo import display
from services.cli.demo.tracker import Phase, RunTracker
from services.cli.watch import describe
from services.executor.store import JournalEntry

PLACES = "server: redis://127.0.0.1:1/0, tools: tools, log: .fullsend/demo.log"


def metric(event: str, run: str = "exp_1:1-0", **members: Any) -> JournalEntry:
    """Return an event of a run, at second 100."""
    base = {"experiment_id": run.rpartition(":")[0], "run_id": run, "event": event, "timestamp": 100.0}
    return JournalEntry("1-0", "metric", base | members)


def ended(run: str = "exp_1:1-0", **members: Any) -> JournalEntry:
    """Return the result of a run."""
    base = {"experiment_id": run.rpartition(":")[0], "run_id": run, "duration": 2.0}
    return JournalEntry("2-0", "result", base | members)


def succeeded(run: str = "exp_1:1-0", **members: Any) -> JournalEntry:
    """Return the result of a run that succeeded."""
    return ended(run, type="experiment_completed", result_summary={"count": 2}, **members)


def failed(run: str = "exp_1:1-0", status: str = "failed", **members: Any) -> JournalEntry:
    """Return the result of a run that failed."""
    return ended(run, type="experiment_failed", status=status, error="no", error_type="SomeError", **members)


def tracker_after(*entries: JournalEntry) -> RunTracker:
    """Return a tracker of two experiments that has read the entries."""
    tracker = RunTracker({"exp_1": "some_tool", "exp_2": "other_tool"})
    for entry in entries:
        tracker.read(entry)
    return tracker


def shown(tracker: RunTracker, width: int = 100, height: int = 30) -> str:
    """Return the live view ten seconds later."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(display.frame(tracker, PLACES, 110.0, 12.0, width, height))
    return out.getvalue()


def test_a_started_run_is_running() -> None:
    tracker = tracker_after(metric("run_started", attempt=1, tool="some_tool"))

    [run] = tracker.running.values()
    assert (run.phase, run.tool, run.attempt, run.started) == (Phase.RUNNING, "some_tool", 1, 100.0)


def test_progress_is_kept_until_the_next_attempt() -> None:
    tracker = tracker_after(
        metric("run_started", attempt=1, tool="t"), metric("progress", done=3, total=4, message="third")
    )
    [run] = tracker.running.values()

    assert (run.done, run.total, run.note) == (3, 4, "third")
    tracker.read(metric("run_started", attempt=2, tool="t"))
    assert (run.done, run.total, run.note) == (0, None, "")


def test_a_run_between_attempts_shows_when_the_next_one_starts() -> None:
    tracker = tracker_after(
        metric("run_started", attempt=1, tool="t"),
        metric("run_retrying", attempt=1, delay_seconds=15.0, error="refused", error_type="ConnectionError"),
    )

    [run] = tracker.running.values()
    assert (run.phase, run.due, run.note) == (Phase.RETRYING, 115.0, "ConnectionError: refused")
    assert tracker.tallies["exp_1"].retries == 1
    assert "again in 5.0 s" in shown(tracker)


@pytest.mark.parametrize(
    ("entry", "phase", "counts"),
    [
        (succeeded(), Phase.FINISHED, (1, 0, 0)),
        (failed(), Phase.FAILED, (0, 1, 0)),
        (failed(status="timeout"), Phase.KILLED, (0, 0, 1)),
        (failed(status="cancelled"), Phase.KILLED, (0, 0, 1)),
        (failed(status="lost"), Phase.FAILED, (0, 1, 0)),
    ],
)
def test_the_end_of_a_run_is_counted(entry: JournalEntry, phase: Phase, counts: tuple[int, int, int]) -> None:
    tracker = tracker_after(metric("run_started", attempt=1, tool="t"), entry)

    tally = tracker.tallies["exp_1"]
    assert tracker.running == {}
    assert tracker.ended[-1].phase is phase
    assert (tally.finished, tally.failed, tally.killed) == counts
    assert tally.median_seconds == 2.0


def test_an_entry_about_no_run_is_skipped() -> None:
    tracker = tracker_after()
    entry = JournalEntry("1-0", "result", {"experiment_id": None, "run_id": None, "error": "no"})

    assert tracker.read(entry) is None
    assert tracker.running == {}


def test_every_expected_experiment_must_have_ended() -> None:
    tracker = tracker_after(succeeded(), succeeded("exp_1:2-0"), failed("exp_2:3-0"), succeeded("exp_3:4-0"))

    assert tracker.each_has_ended(1)
    assert not tracker.each_has_ended(2)


def test_the_view_shows_running_runs_ended_runs_and_counts() -> None:
    tracker = tracker_after(
        metric("run_started", "exp_2:9-0", attempt=2, tool="t"),
        metric("progress", "exp_2:9-0", done=3, total=4, message="third"),
        succeeded(),
        failed("exp_1:2-0", status="timeout"),
    )

    text = shown(tracker)

    assert "3/4  attempt 2  third" in " ".join(text.split("  ")) or "3/4 attempt 2 third" in text
    assert "10.0 s" in text
    assert "count=2" in text
    assert "killed" in text
    assert "2 ended: 1 finished, 0 failed, 1 killed; 0 retried  1 running  12 s" in text


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (200, 60)])
def test_the_view_fits_the_terminal(width: int, height: int) -> None:
    endings = [failed(f"exp_1:{number}-0") for number in range(40)]
    tracker = tracker_after(*endings, metric("run_started", attempt=1, tool="t"))

    lines = shown(tracker, width, height).splitlines()

    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 24)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (metric("run_started", attempt=2, tool="t"), ("started", "t, attempt 2")),
        (metric("run_started", attempt=1), ("started", "no tool, attempt 1")),
        (metric("progress", done=1.5, total=3, message="half"), ("progress", "1.5/3 half")),
        (metric("progress", done=7), ("progress", "7")),
        (metric("metric", name="p50", value=3, p50=3, url="x"), ("metric", "p50=3 url=x")),
        (metric("items_processed", count=5), ("items", "5")),
        (metric("partial_completion", items_processed=2), ("partial", "2 items kept")),
        (metric("error", message="no", error_type="SomeError"), ("error", "SomeError: no")),
        (metric("run_completed", duration=0.5), ("completed", "in 0.500 s")),
        (metric("new_event", detail=1), ("new_event", "detail=1")),
        (succeeded(), ("result", "success in 2.0 s count=2")),
        (failed(status="timeout"), ("result", "timeout after 2.0 s, SomeError: no")),
        (
            JournalEntry("1-0", "result", {"error": "bad\nkey", "error_type": "ContractError"}),
            ("result", "failed, ContractError: bad key"),
        ),
    ],
)  # fmt: skip
def test_every_entry_is_described_in_words(entry: JournalEntry, words: tuple[str, str]) -> None:
    assert describe(entry) == words
