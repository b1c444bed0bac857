"""The demo's board, and the words for what was said."""

import io
from typing import Any

import pytest
from rich.console import Console

from services.cli.demo import display
from services.cli.demo.tracker import Board, Phase
from services.cli.watch import describe
from services.executor.store import Entry

FACTS = display.Facts(experiments=2, server="redis://127.0.0.1:1/0", tools="tools", log=".fullsend/demo.log")


def metric(event: str, run: str = "exp_1:1-0", **members: Any) -> Entry:
    """An entry about a run's progress, at second 100."""
    base = {"experiment_id": run.rpartition(":")[0], "run_id": run, "event": event, "timestamp": 100.0}
    return Entry("1-0", "metric", base | members)


def ended(run: str = "exp_1:1-0", **members: Any) -> Entry:
    """An entry about a run's end."""
    base = {"experiment_id": run.rpartition(":")[0], "run_id": run, "duration": 2.0}
    return Entry("2-0", "result", base | members)


def succeeded(run: str = "exp_1:1-0", **members: Any) -> Entry:
    """An entry about a run's good end."""
    return ended(run, type="experiment_completed", result_summary={"count": 2}, **members)


def failed(run: str = "exp_1:1-0", status: str = "failed", **members: Any) -> Entry:
    """An entry about a run's bad end."""
    return ended(run, type="experiment_failed", status=status, error="no", error_type="SomeError", **members)


def board_after(*entries: Entry) -> Board:
    """A board that took in the entries."""
    board = Board({"exp_1": "some_tool", "exp_2": "other_tool"})
    for entry in entries:
        board.take(entry)
    return board


def shown(board: Board, width: int = 100, height: int = 30) -> str:
    """The live view ten seconds later."""
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, force_terminal=True, color_system=None)
    console.print(display.frame(board, FACTS, 110.0, 12.0, width, height))
    return out.getvalue()


def test_a_run_that_starts_is_under_way() -> None:
    board = board_after(metric("run_started", attempt=1, tool="some_tool"))

    [run] = board.under_way.values()
    assert (run.phase, run.tool, run.attempt, run.started) == (Phase.RUNNING, "some_tool", 1, 100.0)


def test_progress_is_kept_until_the_next_attempt() -> None:
    board = board_after(
        metric("run_started", attempt=1, tool="t"), metric("progress", done=3, total=4, message="third")
    )
    [run] = board.under_way.values()

    assert (run.done, run.total, run.note) == (3, 4, "third")
    board.take(metric("run_started", attempt=2, tool="t"))
    assert (run.done, run.total, run.note) == (0, None, "")


def test_a_run_between_attempts_says_when_it_goes_on() -> None:
    board = board_after(
        metric("run_started", attempt=1, tool="t"),
        metric("run_retrying", attempt=1, delay_seconds=15.0, error="refused", error_type="ConnectionError"),
    )

    [run] = board.under_way.values()
    assert (run.phase, run.due, run.note) == (Phase.RETRYING, 115.0, "ConnectionError: refused")
    assert board.tallies["exp_1"].retries == 1
    assert "again in 5.0 s" in shown(board)


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
def test_the_end_of_a_run_is_counted(entry: Entry, phase: Phase, counts: tuple[int, int, int]) -> None:
    board = board_after(metric("run_started", attempt=1, tool="t"), entry)

    tally = board.tallies["exp_1"]
    assert board.under_way == {}
    assert board.ended[-1].phase is phase
    assert (tally.finished, tally.failed, tally.killed) == counts
    assert tally.median_seconds == 2.0


def test_what_is_about_no_run_is_passed_over() -> None:
    board = board_after()

    assert board.take(Entry("1-0", "result", {"experiment_id": None, "run_id": None, "error": "no"})) is None
    assert board.under_way == {}


def test_every_experiment_has_ended_only_when_each_has() -> None:
    board = board_after(succeeded(), succeeded("exp_1:2-0"), failed("exp_2:3-0"), succeeded("exp_3:4-0"))

    assert board.has_ended_each(1)
    assert not board.has_ended_each(2)


def test_the_view_shows_what_runs_what_ended_and_how_many() -> None:
    board = board_after(
        metric("run_started", "exp_2:9-0", attempt=2, tool="t"),
        metric("progress", "exp_2:9-0", done=3, total=4, message="third"),
        succeeded(),
        failed("exp_1:2-0", status="timeout"),
    )

    text = shown(board)

    assert "3/4  attempt 2  third" in " ".join(text.split("  ")) or "3/4 attempt 2 third" in text
    assert "10.0 s" in text
    assert "count=2" in text
    assert "killed" in text
    assert "2 ended: 1 finished, 0 failed, 1 killed; 0 tried again  1 under way  12 s" in text


@pytest.mark.parametrize(("width", "height"), [(40, 10), (80, 24), (200, 60)])
def test_the_view_fits_the_terminal(width: int, height: int) -> None:
    endings = [failed(f"exp_1:{number}-0") for number in range(40)]
    board = board_after(*endings, metric("run_started", attempt=1, tool="t"))

    lines = shown(board, width, height).splitlines()

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
        (metric("partial_completion", items_processed=2), ("partial", "2 items are kept")),
        (metric("error", message="no", error_type="SomeError"), ("error", "SomeError: no")),
        (metric("run_completed", duration=0.5), ("completed", "in 0.500 s")),
        (metric("new_event", detail=1), ("new_event", "detail=1")),
        (succeeded(), ("result", "success in 2.0 s count=2")),
        (failed(status="timeout"), ("result", "timeout after 2.0 s, SomeError: no")),
        (
            Entry("1-0", "result", {"error": "bad\nkey", "error_type": "ContractError"}),
            ("result", "failed, ContractError: bad key"),
        ),
    ],
)  # fmt: skip
def test_everything_that_is_said_has_words(entry: Entry, words: tuple[str, str]) -> None:
    assert describe(entry) == words
