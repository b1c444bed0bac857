"""Cron slots, held against a clock that is looked at on every minute, or second, there is."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.cron import Cron, explain
from shared.errors import ScheduleError

HOUR = 3600
DAY = 24 * HOUR
# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(deadline=None, derandomize=True, max_examples=200)


def seconds(text: str) -> int:
    """`2026-03-08 07:00` in UTC as unix seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def local_slots(expression: str, zone: str, after: str, count: int) -> list[str]:
    """The next slots as the zone's clocks show them, with the offset."""
    start = seconds(after) * 1000
    slots = Cron.parse(expression, zone).slots_between(start, start + 3000 * DAY * 1000, count)
    return [f"{datetime.fromtimestamp(slot / 1000, ZoneInfo(zone)):%m-%d %H:%M%z}" for slot in slots]


def fired(cron: Cron, start: int, end: int) -> list[int]:
    """All slots in seconds from `start` up to, not with, `end`."""
    return [slot // 1000 for slot in cron.slots_between(start * 1000 - 1, end * 1000 - 1, 10**6)]


# -- the reference: expressions that know what they mean --------------------------------------


@dataclass(frozen=True)
class Part:
    """One field: its text, the numbers it means, and whether it repeats without an end."""

    text: str
    numbers: frozenset[int]
    is_open: bool = False


@dataclass(frozen=True)
class DayRule:
    """One item of the day fields: its text, and what it means."""

    text: str
    fits: Callable[[date], bool]


@dataclass(frozen=True)
class Reference:
    times: tuple[Part, Part, Part]
    days: tuple[DayRule, ...]
    month: Part
    weekdays: tuple[DayRule, ...]

    @property
    def expression(self) -> str:
        day, weekday = (",".join(rule.text for rule in rules) or "*" for rules in (self.days, self.weekdays))
        texts = [*(part.text for part in self.times), day, self.month.text, weekday]
        return " ".join(texts[1:] if texts[0] == "0" else texts)

    def fits(self, wall: datetime) -> bool:
        second, minute, hour = self.times
        return (
            wall.minute in minute.numbers
            and wall.hour in hour.numbers
            and wall.second in second.numbers
            and wall.month in self.month.numbers
            and self.fits_day(wall.date())
        )

    def fits_day(self, day: date) -> bool:
        rules = (*self.days, *self.weekdays)
        return not rules or any(rule.fits(day) for rule in rules)

    def slots(self, zone: str, start: int, end: int, tick: int) -> list[int]:
        """The slots in seconds from `start` up to `end`, found by looking at the clock once a tick."""

        def wall(moment: int) -> datetime:
            return datetime.fromtimestamp(moment, ZoneInfo(zone)).replace(tzinfo=None, fold=0)

        if any(part.is_open for part in self.times):
            return [moment for moment in range(start, end, tick) if self.fits(wall(moment))]
        found = []
        highest = max(map(wall, [start - tick, *range(start - 2 * DAY - 1, start, 60)]))
        for moment in range(start, end, tick):
            while highest < wall(moment):
                highest = min(highest + timedelta(seconds=tick), wall(moment))
                if self.fits(highest) and moment not in found[-1:]:
                    found.append(moment)
        return found


def rank(day: date) -> int:
    return (day.day - 1) // 7 + 1


def is_last(day: date) -> bool:
    return (day + timedelta(days=7)).month != day.month


def item(low: int, high: int) -> st.SearchStrategy[Part]:
    """One value, range or step out of a field's numbers."""
    number, step = st.integers(low, high), st.integers(1, high - low + 1)

    def around(first: int, last: int, by: int) -> frozenset[int]:
        size = high - low + 1
        return frozenset(low + (n - low) % size for n in range(first, last + 1 + size * (last < first), by))

    return st.one_of(
        number.map(lambda n: Part(str(n), frozenset({n}))),
        st.builds(lambda a, b: Part(f"{a}-{b}", around(a, b, 1)), number, number),
        st.builds(lambda a, b, by: Part(f"{a}-{b}/{by}", around(a, b, by)), number, number, step),
        st.builds(lambda a, by: Part(f"{a}/{by}", around(a, high, by), True), number, step),
        step.map(lambda by: Part(f"*/{by}", around(low, high, by), True)),
    )


def part(low: int, high: int) -> st.SearchStrategy[Part]:
    def joined(items: list[Part]) -> Part:
        numbers = frozenset[int]().union(*(each.numbers for each in items))
        return Part(",".join(each.text for each in items), numbers, any(each.is_open for each in items))

    everything = st.just(Part("*", frozenset(range(low, high + 1)), True))
    return everything | st.lists(item(low, high), min_size=1, max_size=3).map(joined)


ANY_MONTH = Part("*", frozenset(range(1, 13)))
days = st.one_of(
    item(1, 31)
    .filter(lambda p: p.text != "*/1")
    .map(lambda p: DayRule(p.text, lambda d: d.day in p.numbers)),
    st.just(DayRule("L", lambda d: (d + timedelta(days=1)).day == 1)),
)
weekdays = st.one_of(
    item(0, 6)
    .filter(lambda p: p.text != "*/1")
    .map(lambda p: DayRule(p.text, lambda d: d.isoweekday() % 7 in p.numbers)),
    st.integers(1, 7).map(lambda n: DayRule(f"{n}L", lambda d: d.isoweekday() == n and is_last(d))),
    st.builds(
        lambda n, k: DayRule(f"{n}#{k}", lambda d: d.isoweekday() == n and rank(d) == k),
        st.integers(1, 7),
        st.integers(1, 5),
    ),
)


def few(rules: st.SearchStrategy[DayRule]) -> st.SearchStrategy[tuple[DayRule, ...]]:
    return st.just(()) | st.lists(rules, min_size=1, max_size=2).map(tuple)


def references(second: st.SearchStrategy[Part]) -> st.SearchStrategy[Reference]:
    # Mostly any month, or most expressions would be silent in the hours that are looked at.
    month = st.integers(0, 3).flatmap(lambda n: item(1, 12) if n == 0 else st.just(ANY_MONTH))
    return st.builds(Reference, st.tuples(second, part(0, 59), part(0, 23)), few(days), month, few(weekdays))


on_the_minute = references(st.just(Part("0", frozenset({0}))))
to_the_second = references(part(0, 59))

CHANGES = [
    ("UTC", "2026-06-01 12:00"),
    ("Asia/Kathmandu", "2026-06-01 12:00"),
    ("America/New_York", "2026-03-08 07:00"),
    ("America/New_York", "2026-11-01 06:00"),
    ("Europe/Dublin", "2026-10-25 01:00"),
    ("Australia/Lord_Howe", "2026-04-04 15:00"),
    ("Australia/Lord_Howe", "2026-10-03 15:30"),
    ("America/Santiago", "2026-04-05 03:00"),
    ("America/Santiago", "2026-09-06 04:00"),
    ("Africa/Cairo", "2026-04-23 22:00"),
    ("Africa/Cairo", "2026-10-29 21:00"),
    ("Antarctica/Troll", "2026-03-29 01:00"),
    ("Antarctica/Troll", "2026-10-25 01:00"),
    ("Asia/Pyongyang", "2015-08-14 15:00"),
    ("America/Caracas", "2016-05-01 07:00"),
    ("Pacific/Apia", "2011-12-30 10:00"),
    ("Pacific/Kwajalein", "1993-08-21 12:00"),
]
changes = st.sampled_from([(zone, seconds(moment)) for zone, moment in CHANGES])


@pytest.mark.parametrize(("zone", "moment"), CHANGES[2:])
def test_the_clocks_of_the_reference_are_changed_when_it_says(zone: str, moment: str) -> None:
    before, after = (datetime.fromtimestamp(seconds(moment) - past, ZoneInfo(zone)) for past in (1, 0))

    assert before.utcoffset() != after.utcoffset()


@steady
@given(on_the_minute, changes, st.integers(-36, 6))
def test_slots_are_those_of_a_clock_looked_at_every_minute(
    reference: Reference, change: tuple[str, int], hours: int
) -> None:
    zone, start, end = change[0], change[1] + hours * HOUR, change[1] + (hours + 30) * HOUR

    slots = fired(Cron.parse(reference.expression, zone), start, end)

    assert slots == reference.slots(zone, start, end, tick=60)


@steady
@given(to_the_second, changes, st.integers(-150, 60))
def test_slots_are_those_of_a_clock_looked_at_every_second(
    reference: Reference, change: tuple[str, int], minutes: int
) -> None:
    zone, start, end = change[0], change[1] + minutes * 60, change[1] + (minutes + 90) * 60

    slots = fired(Cron.parse(reference.expression, zone), start, end)

    assert slots == reference.slots(zone, start, end, tick=1)


@steady
@given(on_the_minute, changes, st.integers(-DAY * 1000, DAY * 1000))
def test_next_and_previous_are_neighbours_of_any_moment(
    reference: Reference, change: tuple[str, int], offset_ms: int
) -> None:
    cron, moment = Cron.parse(reference.expression, change[0]), change[1] * 1000 + offset_ms
    following, last = cron.next_after(moment), cron.previous_at_or_before(moment)

    assert following is None or following > moment
    assert last is None or last <= moment
    assert last is None or cron.next_after(last) == following
    assert last is None or cron.next_after(last - 1) == last
    assert following is None or cron.previous_at_or_before(following - 1) == last


@steady
@given(on_the_minute, st.integers(1971, 2095))
def test_days_are_those_of_a_calendar_looked_at_every_day(reference: Reference, year: int) -> None:
    start, end = seconds(f"{year}-01-01"), seconds(f"{year + 4}-01-01")
    texts = reference.expression.split()
    cron = Cron.parse(" ".join(["0", "0", *texts[2:]]))

    slots = fired(cron, start, end)

    every = (datetime.fromtimestamp(moment, UTC) for moment in range(start, end, DAY))
    due = [day for day in every if day.month in reference.month.numbers and reference.fits_day(day.date())]
    assert slots == [int(day.timestamp()) for day in due]


@steady
@given(to_the_second)
def test_every_expression_has_words(reference: Reference) -> None:
    words = Cron.parse(reference.expression).describe()

    assert words.endswith(" (UTC)")
    assert "  " not in words


@pytest.mark.parametrize(
    "expression",
    [
        "0 9 * * 1",
        "*/7 3-20/4 * * *",
        "5,50 0 1,15 2 *",
        "0 0 13 * 5",
        "0 12 l * *",
        "0 8 * * 2#3",
        "0 0 29 2 *",
    ],
)
def test_slots_agree_with_croniter_where_no_clock_is_changed(expression: str) -> None:
    start = seconds("2026-01-31 09:00")
    theirs = croniter(expression, start)

    slots = Cron.parse(expression).slots_between(start * 1000, 2**62, 40)

    assert slots == [int(theirs.get_next()) * 1000 for _ in range(40)]
