"""Counts the money that one execution of a plan uses, and keeps it within a budget."""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from services.planner.cost.rates import Tariff, money_text
from services.planner.cost.usage import Usage

GRACE_SECONDS: Final = 1.0
"""How long a cancelled attempt goes on, about: so much of the budget is kept back for each that runs."""

LONGER: Final = 2.0
"""An attempt begins only if it could take so many times as long as the longest so far."""


class Ledger:
    """Knows what ended attempts have cost, and what those that run may still cost.

    An attempt that runs is counted by the time since its start, with what it holds, or with what ended
    ones have cost in a second, if that is more.

    Args:
        limit: the budget; None for no limit.
        tariff: of the runs.
        spent: what earlier executions have cost.
        places: how many attempts may run at once; the overhead of each is counted from the start.
        now: the clock.
    """

    def __init__(
        self, limit: float | None, tariff: Tariff, spent: float, places: int, now: Callable[[], datetime]
    ) -> None:
        self._limit = limit
        self._currency = tariff.rates.currency if tariff.rates else ""
        self._per_second = tariff.per_second or 0.0
        self._spent = spent + (tariff.overhead(places) or 0.0)
        self._now = now
        self._longest_seconds = 0.0
        self._ended_seconds = self._ended_money = 0.0
        self._running: dict[int, datetime] = {}

    def began(self, index: int) -> None:
        """Count the start of an attempt of a case."""
        self._running[index] = self._now()

    def ended(self, index: int, usage: Usage) -> None:
        """Count the end of an attempt of a case."""
        del self._running[index]
        self._longest_seconds = max(self._longest_seconds, usage.seconds)
        self._ended_seconds += usage.seconds
        self._ended_money += usage.money or 0.0
        self._spent += usage.money or 0.0

    @property
    def exhausted(self) -> str | None:
        """Why no further attempt may begin now; None if one may."""
        if self._limit is None:
            return None
        likely_seconds = LONGER * self._longest_seconds or GRACE_SECONDS
        next_money = (likely_seconds + GRACE_SECONDS) * self._rate
        held_seconds = sum(max(one, likely_seconds) + GRACE_SECONDS for one in self._running_seconds)
        if self._spent + held_seconds * self._rate + next_money <= self._limit:
            return None
        limit, spent, needed = map(self._text, (self._limit, self._used, next_money))
        room = f"the budget of {limit} has no room for another attempt"
        return f"{room}: {spent} are used, and it may cost {needed}"

    def seconds_left(self) -> float | None:
        """Return after how many seconds what runs has to be cancelled; None if nothing limits it."""
        if self._limit is None or not self._running or not self._rate:
            return None
        running = [one + GRACE_SECONDS for one in self._running_seconds]
        left = self._limit - self._spent - sum(running) * self._rate
        return max(0.0, left / (len(running) * self._rate))

    @property
    def used_up(self) -> str:
        """Say that the budget is used up, and how much is used."""
        return f"the budget of {self._text(self._limit or 0.0)} is used up: {self._text(self._used)} are used"

    @property
    def _used(self) -> float:
        return self._spent + sum(self._running_seconds) * self._rate

    def _text(self, money: float) -> str:
        return money_text(money, self._currency)

    @property
    def _rate(self) -> float:
        """What a second of an attempt costs."""
        seen = self._ended_money / self._ended_seconds if self._ended_seconds else 0.0
        return max(self._per_second, seen)

    @property
    def _running_seconds(self) -> list[float]:
        now = self._now()
        return [max(0.0, (now - began).total_seconds()) for began in self._running.values()]
