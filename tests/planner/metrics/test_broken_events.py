"""An invalid events file is an error that names the line and the member."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.artifacts import LocalArtifactLoader
from services.planner.metrics import MetricsComputer
from services.planner.metrics.events import read_events
from shared.errors import ArtifactError, ArtifactNotFoundError
from tests.planner.metrics.rings import DEBTS, ROUND, compute, compute_text, event, mint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON: '{'"),
        ("", "not JSON: ''"),
        ("[" * 100_000, "not JSON"),
        ("[1]", "an event is an object"),
        ("{}", "kind is missing"),
        ('{"kind": 5}', "kind is 5, it must be a text"),
        ('{"kind": "Barter", "day": 1, "phase": "x"}', "kind 'Barter' is unknown; known are PhaseStarted"),
        ('{"kind": "PhaseStarted", "phase": "x"}', "day is missing, it must be a whole number"),
        ('{"kind": "PhaseStarted", "day": true, "phase": "x"}', "day is true"),
        ('{"kind": "PhaseStarted", "day": -1, "phase": "x"}', "day is -1"),
        ('{"kind": "PhaseStarted", "day": 1}', "phase is missing"),
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ArtifactError) as error:
        compute_text(tmp_path, json.dumps(mint("A", 1)) + "\n" + line + "\n" + json.dumps(mint("B", 1)))

    assert str(error.value).startswith("events.jsonl, line 2: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"amount_cents": -1}, "amount_cents is -1, it must be a whole number of cents, 0 or more"),
        ({"amount_cents": 1.5}, "amount_cents is 1.5"),
        ({"amount_cents": float("nan")}, "amount_cents is NaN"),
        ({"amount_cents": "100"}, 'amount_cents is "100"'),
        ({"payable": "P9"}, "payable is 'P9', which was never created"),
        ({"creditor": "C"}, "creditor is 'C', but 'B' when it was created"),
        ({"amount_cents": 101}, "amount_cents makes 101 paid of 100 that were owed"),
        ({"amount_cents": 99}, "amount_cents makes 99 paid of 100: that is not settled"),
    ],
)
def test_an_impossible_settlement_is_refused(tmp_path: Path, broken: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError) as error:
        compute(tmp_path, [*DEBTS, event("PayableSettled", 1, "P1", 100) | broken])

    assert str(error.value).startswith(f"events.jsonl, line 4: {message}")


@pytest.mark.parametrize("member", ["payable", "debtor", "creditor", "amount_cents", "due_day"])
def test_a_missing_member_is_named(tmp_path: Path, member: str) -> None:
    broken = {name: value for name, value in DEBTS[0].items() if name != member}

    with pytest.raises(ArtifactError, match=f"line 1: {member} is missing"):
        compute(tmp_path, [broken])


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([*DEBTS, DEBTS[0]], "line 4: payable is 'P1', which was created before"),
        (
            [*ROUND, event("PayableSettled", 2, "P1", 0)],
            "line 6: payable is 'P1', which was settled",
        ),
        ([*ROUND, event("PhaseStarted", 0)], "line 6: day is 0, but day 1 had begun"),
    ],
)
def test_events_that_contradict_earlier_ones_are_refused(
    tmp_path: Path, events: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        compute(tmp_path, events)


def test_unknown_members_of_events_are_ignored(tmp_path: Path) -> None:
    assert compute(tmp_path, [one | {"note": "\u2028"} for one in ROUND]) == compute(tmp_path, ROUND)


def test_a_line_separator_within_a_text_ends_no_line(tmp_path: Path) -> None:
    text = "".join(json.dumps(one | {"note": "\u2028"}, ensure_ascii=False) + "\n" for one in ROUND)

    assert compute_text(tmp_path, text) == compute(tmp_path, ROUND)


def test_a_run_without_events_is_an_error_that_lists_what_there_is(tmp_path: Path) -> None:
    computer = MetricsComputer(LocalArtifactLoader(tmp_path))

    with pytest.raises(ArtifactNotFoundError, match=r"events\.jsonl, the run's artifacts are: run\.html"):
        computer.compute({"run.html": "run.html"})


def test_a_missing_file_is_the_loaders_error(tmp_path: Path) -> None:
    computer = MetricsComputer(LocalArtifactLoader(tmp_path))

    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        computer.compute({"events.jsonl": "events.jsonl"})


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(min_size=1) | st.binary(min_size=1).map(lambda raw: raw.decode("latin-1")))
def test_any_other_text_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ArtifactError, match=r"^events\.jsonl, line \d+: "):
        read_events(text)
