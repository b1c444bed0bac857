"""What Redis' answers tell of its clock."""

import time

import pytest

from services.executor.firing import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic clock, to be set."""
    moment = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def test_half_of_what_an_answer_took_had_passed_when_it_was_given(now: list[float]) -> None:
    clock = Clock()
    now[0] += 0.5
    clock.heard(5_000_000, asked_at=1_000.0)

    assert clock.seconds_until(6_000) == pytest.approx(0.75)
    now[0] += 1
    assert clock.seconds_until(6_000) == pytest.approx(-0.25)


@pytest.mark.parametrize(("took_seconds", "expected"), [(0.1, 0.95), (0.5, 0.55)])
def test_of_two_answers_the_one_that_took_the_shorter_time_counts(
    took_seconds: float, expected: float, now: list[float]
) -> None:
    clock = Clock()
    now[0] += 0.4
    clock.heard(5_000_000 + 150_000, asked_at=1_000.0)
    now[0] += took_seconds - 0.4
    clock.heard_again(5_000_000, asked_at=1_000.0)

    assert clock.seconds_until(6_000) == pytest.approx(expected)


def test_the_later_answer_counts_where_the_first_was_wrong(now: list[float]) -> None:
    clock = Clock()
    clock.heard(9_000_000, asked_at=1_000.0)
    now[0] += 0.5
    clock.heard(5_000_000, asked_at=1_000.0)

    assert clock.seconds_until(6_000) == pytest.approx(0.75)
