"""Cron slots, held against a clock that is looked at on every minute, or second, there is."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.scheduling.cron import Cron, explain
from shared.errors import ScheduleError

HOUR = 3600
DAY = 24 * HOUR
# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(deadline=None, derandomize=True, max_examples=150)


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
        found: list[int] = []
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
    zone, start, end = change[0], change[1] + hours * HOUR, change[1] + (hours + 24) * HOUR

    slots = fired(Cron.parse(reference.expression, zone), start, end)

    assert slots == reference.slots(zone, start, end, tick=60)


@steady
@given(to_the_second, changes, st.integers(-120, 60))
def test_slots_are_those_of_a_clock_looked_at_every_second(
    reference: Reference, change: tuple[str, int], minutes: int
) -> None:
    zone, start, end = change[0], change[1] + minutes * 60, change[1] + (minutes + 60) * 60

    slots = fired(Cron.parse(reference.expression, zone), start, end)

    assert slots == reference.slots(zone, start, end, tick=1)
    assert "  " not in Cron.parse(reference.expression, zone).describe()


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
    start, end = seconds(f"{year}-01-01"), seconds(f"{year + 2}-01-01")
    texts = reference.expression.split()
    cron = Cron.parse(" ".join(["0", "0", *texts[2:]]))

    slots = fired(cron, start, end)

    every = (datetime.fromtimestamp(moment, UTC) for moment in range(start, end, DAY))
    due = [day for day in every if day.month in reference.month.numbers and reference.fits_day(day.date())]
    assert slots == [int(day.timestamp()) for day in due]


# -- against other readers of cron ------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "0 9 * * 1",
        "*/7 3-20/4 * * *",
        "5,50 0 1,15 2 *",
        "0 0 13 * 5",
        "0 12 l * *",
        "0 8 * * 2#3",
        "0 0 * * L5",
    ],
)
def test_slots_agree_with_croniter_where_no_clock_is_changed(expression: str) -> None:
    start = seconds("2026-01-31 09:00")
    theirs = croniter(expression, start)

    slots = Cron.parse(expression).slots_between(start * 1000, 2**62, 40)

    assert slots == [int(theirs.get_next()) * 1000 for _ in range(40)]


WORDS = {
    "*/15 * * * *": "Every 15 minutes",
    "@hourly": "Every hour",
    "* * * * * *": "Every second",
    "*/10 * * * * *": "Every 10 seconds",
    "30 0 9 * * MON": "At 09:00:30 AM, only on Monday",
    "0 0 9 ? * MON": "At 09:00 AM, only on Monday",
    "0 9 * * 1-5": "At 09:00 AM, Monday through Friday",
    "0 0 9 1 1 ? 2030": "At 09:00 AM, on day 1 of the month, only in January, only in 2030",
    "0 0 1-7 * MON": "At 12:00 AM, between day 1 and 7 of the month, or on Monday",
    "0 0 1,L * MON-FRI": (
        "At 12:00 AM, on day 1 of the month, or on the last day of the month, or Monday through Friday"
    ),
    "0 0 * * 2#3,FRI#1": (
        "At 12:00 AM, on the third Tuesday of the month, or on the first Friday of the month"
    ),
    "0 0 * * FRI/2": "At 12:00 AM, only on Friday",
    "0 0 1-31 * MON": "At 12:00 AM",
    "5/20 * * * *": "At 5, 25, and 45 minutes past the hour",
    "*/7 * * * *": "Every 7 minutes, minutes 0 through 56 past the hour",
    "0 22-6/3 * * *": "At 01:00 AM, 04:00 AM and 10:00 PM",
    "0 0 */3 * * *": "Every 3 hours",
}


@pytest.mark.parametrize("expression", WORDS)
def test_words_say_what_fires(expression: str) -> None:
    words = Cron.parse(expression, "Asia/Tokyo").describe()

    assert words == f"{WORDS[expression]} (Asia/Tokyo)"


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "expected"),
    [
        (" 0\t9  * * mon\n", "america/los_angeles", Cron.parse("0 9 * * MON", "America/Los_Angeles")),
        ("@Daily", None, Cron.parse("0 0 * * *", "UTC")),
        ("0 0 * * *", " ", Cron.parse("0 0 * * *", "UTC")),
    ],
)
def test_case_and_white_space_make_no_difference(expression: str, zone: str | None, expected: Cron) -> None:
    assert Cron.parse(expression, zone) == expected


def test_the_first_of_six_fields_is_the_second() -> None:
    cron = Cron.parse("30 0 9 * * MON")

    assert cron.next_after(seconds("2026-03-02 00:00") * 1000) == seconds("2026-03-02 09:00:30") * 1000


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("0 25 * * *", "the hour is '25'; allowed are 0-23"),
        ("0 9 * * MONDAY", "the day-of-week is 'MONDAY'; allowed are 0-7, SUN-SAT"),
        ("0 9 * 0 *", "the month is '0'; allowed are 1-12, JAN-DEC"),
        ("0 9 1,,2 * *", "the day-of-month is ''"),
        ("0 9 15W * *", "the day-of-month is '15W'"),
        ("0 9 * * 5#6", "the day-of-week is '5#6'"),
        ("*/90 * * * *", "the minute is '*/90'; allowed are .* steps of 1-60"),
        ("? 9 * * *", "the minute is '?'"),
        ("H 9 * * *", "the minute is 'H'.* would leave the time to chance"),
        ("* * * * MON */10", "the day-of-week is '*/10'.*; six fields start with the second"),
        ("0 9 * * ? 2027", "the day-of-week is '2027'.*seven end with the year"),
        ("٣ * * * *", "the minute is '٣'"),
        ("0 9 * *", "4 fields; write five"),
        ("", "0 fields; write five"),
        ("@every 5m", "no such alias; there are @hourly, @daily"),
        ("0," * 5000, "it has 10000 characters, more than the 1000 allowed"),
    ],
)
def test_nonsense_is_refused_by_field_finding_and_choice(expression: str, complaint: str) -> None:
    pattern = "^Cron expression .*: " + ".*".join(map(re.escape, complaint.split(".*")))

    with pytest.raises(ScheduleError, match=pattern):
        Cron.parse(expression)


@pytest.mark.parametrize(
    ("zone", "complaint"),
    [
        ("America/New York", "did you mean America/New_York"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("../../etc/passwd", "no such IANA name"),
        ("localtime", "no such IANA name"),
        ("x" * 100_000, "no such IANA name"),
    ],
)
def test_an_unknown_zone_is_refused_with_names_like_it(zone: str, complaint: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(complaint)):
        Cron.parse("0 9 * * *", zone)


@steady
@given(st.text(max_size=40) | st.from_regex(r"([0-9*/,#LW?-]{1,4} ){4,6}[0-9A-Z#]{1,3}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        cron = Cron.parse(text)
    except ScheduleError:
        return

    assert Cron.parse(cron.expression) == cron
    assert cron.describe()


# -- changed clocks --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        ("30 2 * * *", "America/New_York", "2026-03-07 12:00", ["03-08 03:00-0400", "03-09 02:30-0400"]),
        ("0-45/15 2 * * *", "America/New_York", "2026-03-08 00:00", ["03-08 03:00-0400", "03-09 02:00-0400"]),
        ("0/15 2 * * *", "America/New_York", "2026-03-08 00:00", ["03-09 02:00-0400", "03-09 02:15-0400"]),
        ("*/30 * * * *", "America/New_York", "2026-03-08 06:30", ["03-08 03:00-0400", "03-08 03:30-0400"]),
        ("30 1 * * *", "America/New_York", "2026-11-01 00:00", ["11-01 01:30-0400", "11-02 01:30-0500"]),
        ("0 * * * *", "America/New_York", "2026-11-01 04:30", ["11-01 01:00-0400", "11-01 01:00-0500"]),
        ("30 1 1 11 *", "America/New_York", "2026-11-01 05:45", ["11-01 01:30-0400", "11-01 01:30-0400"]),
        ("15 2 * * *", "Australia/Lord_Howe", "2026-10-03 12:00", ["10-04 02:30+1100", "10-05 02:15+1100"]),
        ("45 1 * * *", "Australia/Lord_Howe", "2026-04-04 12:00", ["04-05 01:45+1100", "04-06 01:45+1030"]),
        ("0 0 * * *", "America/Santiago", "2026-09-05 12:00", ["09-06 01:00-0300", "09-07 00:00-0300"]),
        ("0 0 24 4 *", "Africa/Cairo", "2026-04-01 00:00", ["04-24 01:00+0300", "04-24 00:00+0200"]),
        ("0 12 * * *", "Pacific/Apia", "2011-12-29 00:00", ["12-29 12:00-1000", "12-31 00:00+1400"]),
    ],
)
def test_a_fixed_time_fires_once_and_an_interval_goes_on(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    assert local_slots(expression, zone, after, len(expected)) == expected


# -- the ends of time --------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 9 * * * 2025"])
def test_what_never_comes_is_none(expression: str) -> None:
    cron, now = Cron.parse(expression), seconds("2026-01-01") * 1000

    assert cron.next_after(now) is None
    assert cron.slots_between(now, 2**62, 5) == []
    assert (cron.previous_at_or_before(now) is None) == (not expression.endswith("2025"))


def test_leap_days_skip_the_century() -> None:
    slot = Cron.parse("0 0 29 2 *").next_after(seconds("2096-02-29") * 1000)

    assert slot == seconds("2104-02-29") * 1000


def test_a_latest_slot_is_found_however_long_ago() -> None:
    now = seconds("2026-01-01") * 1000

    assert Cron.parse("* * * * * *", "Europe/Berlin").previous_at_or_before(now + 999) == now
    assert Cron.parse("0 0 0 1 1 * 1970").previous_at_or_before(now) == 0


def test_slots_between_stops_at_the_limit_and_includes_the_end() -> None:
    cron, start = Cron.parse("0 * * * *"), seconds("2026-01-01") * 1000

    assert cron.slots_between(start, start + 2 * HOUR * 1000, 9) == [
        start + HOUR * 1000,
        start + 2 * HOUR * 1000,
    ]
    assert cron.slots_between(start, start + 9 * HOUR * 1000, 1) == [start + HOUR * 1000]


@pytest.mark.parametrize(
    "expression", ["0 9 * * MON", "*/10 * * * * *", "0 0 29 2 *", "0 0 30 2 *", "0 0 * 2 5#5"]
)
def test_a_slot_takes_far_less_than_a_millisecond(expression: str) -> None:
    cron, now = Cron.parse(expression, "America/New_York"), seconds("2026-01-01") * 1000
    before = time.process_time()

    for at in range(500):
        cron.next_after(now + at * 60_000)

    assert time.process_time() - before < 0.5


# -- explain ---------------------------------------------------------------------------------------


def test_explain_tells_the_meaning_and_the_next_runs_in_both_clocks() -> None:
    text = explain("0 9 * * mon", "America/Los_Angeles", seconds("2026-03-05") * 1000, 2)

    assert text.splitlines() == [
        "Expression  0 9 * * MON",
        "Meaning     At 09:00 AM, only on Monday (America/Los_Angeles)",
        "Next runs   Mon 2026-03-09 09:00:00-07:00   2026-03-09 16:00:00 UTC",
        "            Mon 2026-03-16 09:00:00-07:00   2026-03-16 16:00:00 UTC",
    ]


def test_explain_says_that_nothing_will_run() -> None:
    assert explain("0 0 30 2 *", None, 0).endswith("Next runs   none: it never fires again")
