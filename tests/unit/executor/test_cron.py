"""Due times of cron, compared with a clock that is looked at in every minute, or second."""

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

from services.executor.scheduling.cron import Cron, cron_of, explain
from shared.errors import ScheduleError

HOUR = 3600
DAY = 24 * HOUR
# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(deadline=None, derandomize=True, max_examples=80)


def seconds(text: str) -> int:
    """`2026-03-08 07:00` in UTC as unix seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def local_due_times(expression: str, zone: str, after: str, count: int) -> list[str]:
    """The next due times as the zone's clocks show them, with the offset."""
    start = seconds(after) * 1000
    found = Cron.parse(expression, zone).due_times_between(start, start + 3000 * DAY * 1000, count)
    return [f"{datetime.fromtimestamp(due / 1000, ZoneInfo(zone)):%m-%d %H:%M%z}" for due in found]


def fired(cron: Cron, start: int, end: int) -> list[int]:
    """All due times in seconds from `start` up to, not with, `end`."""
    return [due // 1000 for due in cron.due_times_between(start * 1000 - 1, end * 1000 - 1, 10**6)]


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
        second, minute, hour = (part.text for part in self.times)
        return " ".join([minute, hour, day, self.month.text, weekday] + [second] * (second != "0"))

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

    def due_times(self, zone: str, start: int, end: int, tick: int) -> list[int]:
        """The due times in seconds from `start` up to `end`, found by looking at the clock once a tick."""

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


def nearest_weekday(month: date, number: int) -> int:
    """The day from Monday to Friday nearest to the day `number` in the same month."""
    length = (month.replace(day=28) + timedelta(days=4)).replace(day=1) - timedelta(days=1)
    wanted = min(number, length.day)
    working = (day for day in range(1, length.day + 1) if month.replace(day=day).isoweekday() < 6)
    return min(working, key=lambda day: (abs(day - wanted), day))


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
    st.integers(1, 31).map(lambda n: DayRule(f"{n}W", lambda d: d.day == nearest_weekday(d, n))),
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
def test_due_times_are_those_of_a_clock_looked_at_every_minute(
    reference: Reference, change: tuple[str, int], hours: int
) -> None:
    zone, start, end = change[0], change[1] + hours * HOUR, change[1] + (hours + 24) * HOUR

    found = fired(Cron.parse(reference.expression, zone), start, end)

    assert found == reference.due_times(zone, start, end, tick=60)


@steady
@given(to_the_second, changes, st.integers(-120, 60))
def test_due_times_are_those_of_a_clock_looked_at_every_second(
    reference: Reference, change: tuple[str, int], minutes: int
) -> None:
    zone, start, end = change[0], change[1] + minutes * 60, change[1] + (minutes + 60) * 60

    found = fired(Cron.parse(reference.expression, zone), start, end)

    assert found == reference.due_times(zone, start, end, tick=1)
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


@settings(steady, max_examples=40)
@given(on_the_minute, st.integers(1971, 2095))
def test_days_are_those_of_a_calendar_looked_at_every_day(reference: Reference, year: int) -> None:
    start, end = seconds(f"{year}-01-01"), seconds(f"{year + 1}-01-01")
    _, _, *days_of_it = reference.expression.split()
    cron = Cron.parse(" ".join(["0", "0", *days_of_it]))

    found = fired(cron, start, end)

    every = (datetime.fromtimestamp(moment, UTC) for moment in range(start, end, DAY))
    due = [day for day in every if day.month in reference.month.numbers and reference.fits_day(day.date())]
    assert found == [int(day.timestamp()) for day in due]


# -- what croniter reads, and what is put right ----------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "0 9 * * 1",
        "*/7 3-20/4 * * *",
        "5,50 0 1,15 2 *",
        "0 0 13 * 5",
        "0 12 l * *",
        "0 8 * * 2#3",
        "0 0 15W * *",
    ],
)
def test_due_times_are_croniters_where_it_is_right_and_no_clock_is_changed(expression: str) -> None:
    start = seconds("2026-01-31 09:00")
    theirs = croniter(expression, start)

    found = Cron.parse(expression).due_times_between(start * 1000, 2**62, 40)

    assert found == [int(theirs.get_next()) * 1000 for _ in range(40)]


def days_of(expression: str, start: str = "2026-01-01", count: int = 4) -> list[str]:
    """The next due days of an expression in UTC."""
    return [text.split()[0] for text in local_due_times(expression, "UTC", start, count)]


@pytest.mark.parametrize(
    ("expression", "plainly"),
    [
        ("5-5 * * * *", "5 * * * *"),  # croniter: every minute
        ("0 5-5/2 * * *", "0 5 * * *"),  # croniter: every second hour
        ("0 0 * * MON-MON", "0 0 * * MON"),  # croniter: every day
        ("0 0 * * 7-7", "0 0 * * SUN"),  # croniter: every day
        ("0 0 * * 7-SUN", "0 0 * * SUN"),  # croniter: every day
        ("0 22-6/3 * * *", "0 1,4,22 * * *"),  # croniter: 22, 2 and 5
        ("0 0 1 OCT-FEB/2 *", "0 0 1 2,10,12 *"),  # croniter: October and December
        ("0 0 * * 5L", "0 0 * * L5"),  # croniter refuses it
        ("0 0 */1 * MON", "0 0 * * MON"),  # croniter: every day
        ("0 0 1-11,13-31,L 1 *", "0 0 1-11,13-31 1 *"),  # croniter: every day
        ("0 0 *,5 * MON", "0 0 * * *"),  # croniter: every Monday
    ],
)
def test_what_croniter_reads_otherwise_is_put_right(expression: str, plainly: str) -> None:
    assert days_of(expression, count=40) == days_of(plainly, count=40)
    assert local_due_times(expression, "UTC", "2026-01-31", 40) == local_due_times(
        plainly, "UTC", "2026-01-31", 40
    )


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("0 0 15W * *", ["01-15", "02-16", "03-16", "04-15"]),
        ("0 0 15W * WED", ["01-07", "01-14", "01-15", "01-21"]),  # croniter ignores the weekday
        ("0 0 1 * 5#2", ["01-09", "02-01", "02-13", "03-01"]),  # croniter: never
        ("0 0 * * MON,5#2", ["01-05", "01-09", "01-12", "01-19"]),  # croniter refuses it
        ("0 0 1,L * *", ["01-31", "02-01", "02-28", "03-01"]),
    ],
)
def test_days_of_any_kinds_are_joined_by_or(expression: str, expected: list[str]) -> None:
    assert days_of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "year"), [("0 0 1 1 * 0 2099", 2099), ("0 0 29 2 5#5", 2028), ("0 0 * 2 2#5", 2028)]
)
def test_a_due_time_is_found_however_far_ahead(expression: str, year: int) -> None:
    due_ms = Cron.parse(expression).next_after(seconds("2026-01-01") * 1000)

    assert due_ms is not None
    assert datetime.fromtimestamp(due_ms / 1000, UTC).year == year


def test_an_alias_means_the_same_for_all_experiments() -> None:
    """croniter moves it, if it is given a `hash_id`."""
    assert Cron.parse("@daily", None, "exp_1") == Cron.parse("0 0 * * *")


# -- hashed by the experiment's id ---------------------------------------------------------------


def hashed(expression: str, experiment_id: str) -> list[str]:
    start = seconds("2026-01-01") * 1000
    found = Cron.parse(expression, None, experiment_id).due_times_between(start, 2**62, 24)
    return [f"{datetime.fromtimestamp(due / 1000, UTC):%m-%d %H:%M:%S}" for due in found]


def test_h_is_the_same_for_one_experiment_and_spreads_many() -> None:
    first = [hashed("H * * * *", f"exp_{number}")[0] for number in range(100)]

    assert first == [hashed("h * * * *", f"exp_{number}")[0] for number in range(100)]
    assert len(set(first)) > 30


def test_h_with_a_step_or_a_range_stays_in_it() -> None:
    minutes = {time[9:11] for time in hashed("H/15 * * * *", "exp_1")}
    hours = {time[6:8] for number in range(50) for time in hashed("0 H(1-5) * * *", f"exp_{number}")}

    assert len(minutes) == 4
    assert hours == {"01", "02", "03", "04", "05"}


def test_a_hashed_day_is_in_every_month() -> None:
    for number in range(50):
        months = [time[:2] for time in hashed("0 0 H * *", f"exp_{number}")]
        assert len(set(months)) == 12


def test_a_hashed_hour_is_a_fixed_time_and_a_hashed_minute_an_interval() -> None:
    zone, start = "America/New_York", seconds("2026-11-01 04:00") * 1000
    hourly = Cron.parse("H * * * *", zone, "exp_1").due_times_between(start, start + 4 * HOUR * 1000, 9)
    daily = Cron.parse("H 1 * * *", zone, "exp_1")

    assert len(hourly) == 4
    assert len(daily.due_times_between(start, start + 4 * HOUR * 1000, 9)) == 1


def test_without_an_id_h_is_refused() -> None:
    with pytest.raises(ScheduleError, match="H is hashed from an experiment's id, and none is given"):
        Cron.parse("H * * * *")


WORDS = {
    "*/15 * * * *": "Every 15 minutes",
    "@hourly": "Every hour",
    "* * * * * *": "Every second",
    "* * * * * */10": "Every 10 seconds",
    "0 9 * * MON 30": "At 09:00:30 AM, only on Monday",
    "0 9 ? * MON 0": "At 09:00 AM, only on Monday",
    "0 9 * * 1-5": "At 09:00 AM, Monday through Friday",
    "0 9 1 1 ? 0 2030": "At 09:00 AM, on day 1 of the month, only in January, only in 2030",
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
    "0 */3 * * * 0": "Every 3 hours",
    "0 0 15W * *": "At 12:00 AM, on the weekday nearest day 15 of the month",
    "0 0 15W * MON": "At 12:00 AM, on the weekday nearest day 15 of the month, or on Monday",
    "*/10 * * * * *": "Every second, every 10 minutes",
    "H H * * *": "At 09:06 AM",
}


@pytest.mark.parametrize("expression", WORDS)
def test_words_say_what_fires(expression: str) -> None:
    words = Cron.parse(expression, "Asia/Tokyo", "exp_1").describe()

    assert words == f"{WORDS[expression]} (Asia/Tokyo)"


@pytest.mark.parametrize("expression", ["*/10 * * * * *", "0 0 9 * * *", "0 9 * * MON *"])
def test_every_second_of_some_minutes_is_warned_of(expression: str) -> None:
    warning = Cron.parse(expression).warning

    assert warning == "it fires every second of some minutes; in six fields the second is the last one"


@pytest.mark.parametrize("expression", ["* * * * *", "* * * * * *", "*/10 * * * * 0", "0 9 * * MON */10"])
def test_what_is_probably_meant_is_not_warned_of(expression: str) -> None:
    assert Cron.parse(expression).warning is None


# -- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "expected"),
    [
        (" 0\t9  * * mon\n", "america/los_angeles", Cron.parse("0 9 * * MON", "America/Los_Angeles")),
        ("@Daily", None, Cron.parse("0 0 * * *", "UTC")),
        ("0 0 * * *", " ", Cron.parse("0 0 * * *", "UTC")),
        ("0 9 * * 5#2 # every second Friday\nof the month", None, Cron.parse("0 9 * * 5#2", "UTC")),
        ("@daily\t# at midnight", None, Cron.parse("0 0 * * *", "UTC")),
        ('"0 9 * * MON"  # Every Monday', '"UTC"  # as ever', Cron.parse("0 9 * * MON", "UTC")),
        ("'0 9 * * MON'", "'Asia/Kolkata'", Cron.parse("0 9 * * MON", "Asia/Kolkata")),
        ("\ufeff0\u00a09 * * MON\r\n", None, Cron.parse("0 9 * * MON", "UTC")),
        ("0 9 * january Monday,thurs", None, Cron.parse("0 9 * JAN MON,THU", "UTC")),
        ("CRON_TZ=Asia/Kolkata 0 9 * * MON", None, Cron.parse("0 9 * * MON", "Asia/Kolkata")),
        ("TZ='Asia/Kolkata' 0 9 * * MON", "Asia/Kolkata", Cron.parse("0 9 * * MON", "Asia/Kolkata")),
    ],
)
def test_case_white_space_and_comments_make_no_difference(
    expression: str, zone: str | None, expected: Cron
) -> None:
    assert Cron.parse(expression, zone) == expected


def test_the_last_of_six_fields_is_the_second() -> None:
    cron = Cron.parse("0 9 * * MON 30")

    assert cron.next_after(seconds("2026-03-02 00:00") * 1000) == seconds("2026-03-02 09:00:30") * 1000


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("0 25 * * *", "the hour is '25'; allowed are 0-23"),
        ("0 9 * * MONDEY", "the day-of-week is 'MONDEY'; allowed are 0-7, SUN-SAT"),
        ("0 9 * 0 *", "the month is '0'; allowed are 1-12, JAN-DEC"),
        ("0 9 1,,2 * *", "the day-of-month is ''"),
        ("0 9 15W,16 * 0#9", "the day-of-week is '0#9'"),
        ("0 9 32W * *", "the day-of-month is '32W'"),
        ("0 9 L-3 * *", "the day-of-month is 'L-3'"),
        ("0 9 * * MON-MON#1", "the day-of-week is 'MON-MON#1'"),
        ("0 9 * * 5#6", "the day-of-week is '5#6'"),
        ("*/90 * * * *", "the minute is '*/90'; allowed are .* steps of 1-60"),
        ("? 9 * * *", "the minute is '?'"),
        ("5/90 * * * *", "the minute is '5/90'"),
        ("H/90 * * * *", "the minute is 'H/90'"),
        ("H(0-99) * * * *", "the minute is 'H(0-99)'"),
        ("R 9 * * *", "the minute is 'R'.* would leave the time to chance, H does not"),
        ("R(1-5) 9 * * *", "the minute is 'R(1-5)'.* would leave the time to chance"),
        ("0 0 1 1 * 0 H", "the year is 'H'; allowed are 1970-2099"),
        ("0 0 1 1 * 0 2030-2028", "the year is '2030-2028'"),
        ("30 0 9 * * MON", "the second is 'MON'.*; six fields end with the second"),
        ("0 9 * * ? 2027", "the second is '2027'.*seven with the second and the year"),
        ("٣ * * * *", "'٣' has the character '٣' (ARABIC-INDIC DIGIT THREE); write plain"),
        ("0 9 * * 1\u20135", "'1\u20135' has the character '\u2013' (EN DASH); write plain"),
        ("0 0 9 ? * MON", "the month is '?'.*; six fields end with the second"),
        ("cron(0 9 ? * MON *)", "the minute is 'CRON(0'"),
        ("every 5 minutes", "3 fields; write five.*; every five minutes is */5 * * * *"),
        ("daily", "1 fields; write five.*; the alias is @daily"),
        ("0 9 * *", "4 fields; write five"),
        ("", "it is empty"),
        ('""', "it is empty"),
        ("@every 5m", "no such alias; there are @hourly, @daily"),
        ("# 0 9 * * *", "it is empty"),
        ("0 9 * * *\n0 17 * * *", "10 fields; write five"),
        ("0," * 5000, "it has 10000 characters, more than the 1000 allowed"),
    ],
)
def test_nonsense_is_refused_by_field_finding_and_choice(expression: str, complaint: str) -> None:
    pattern = "^Cron expression .*: " + ".*".join(map(re.escape, complaint.split(".*")))

    with pytest.raises(ScheduleError, match=pattern):
        Cron.parse(expression, None, "exp_1")


@pytest.mark.parametrize(
    ("zone", "complaint"),
    [
        ("America/New York", "did you mean America/New_York"),
        ("Berlin", "did you mean Europe/Berlin?"),
        ("../../etc/passwd", "no such IANA name"),
        ("localtime", "no such IANA name"),
        *(
            (offset, "an offset or an abbreviation is no zone")
            for offset in ("PST", "UTC+2", "+02:00", "GMT-3")
        ),
        ("x" * 100_000, "no such IANA name"),
    ],
)
def test_an_unknown_zone_is_refused_with_names_like_it(zone: str, complaint: str) -> None:
    with pytest.raises(ScheduleError, match=re.escape(complaint)):
        Cron.parse("0 9 * * *", zone)


def test_two_zones_of_one_schedule_are_refused() -> None:
    with pytest.raises(ScheduleError, match="the time zone 'UTC' differ; leave one out"):
        Cron.parse("CRON_TZ=Asia/Kolkata 0 9 * * *", "UTC")


@steady
@given(st.text(max_size=40) | st.from_regex(r"([0-9*/,#LW?-]{1,4} ){4,6}[0-9A-Z#]{1,3}", fullmatch=True))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        cron = Cron.parse(text)
    except ScheduleError:
        return

    assert Cron.parse(cron.expression) == cron
    assert cron.describe()
    cron.next_after(0)


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
    assert local_due_times(expression, zone, after, len(expected)) == expected


# -- the ends of time --------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 9 * * * 0 2025"])
def test_what_never_comes_is_none(expression: str) -> None:
    cron, now = Cron.parse(expression), seconds("2026-01-01") * 1000

    assert cron.next_after(now) is None
    assert cron.due_times_between(now, 2**62, 5) == []
    assert (cron.previous_at_or_before(now) is None) == (not expression.endswith("2025"))


def test_leap_days_skip_the_century() -> None:
    due_ms = Cron.parse("0 0 29 2 *").next_after(seconds("2096-02-29") * 1000)

    assert due_ms == seconds("2104-02-29") * 1000


def test_the_latest_due_time_is_found_however_long_ago() -> None:
    now = seconds("2026-01-01") * 1000

    assert Cron.parse("* * * * * *", "Europe/Berlin").previous_at_or_before(now + 999) == now
    assert Cron.parse("0 0 1 1 * 0 1970").previous_at_or_before(now) == 0


def test_due_times_between_stops_at_the_limit_and_includes_the_end() -> None:
    cron, start = Cron.parse("0 * * * *"), seconds("2026-01-01") * 1000

    assert cron.due_times_between(start, start + 2 * HOUR * 1000, 9) == [
        start + HOUR * 1000,
        start + 2 * HOUR * 1000,
    ]
    assert cron.due_times_between(start, start + 9 * HOUR * 1000, 1) == [start + HOUR * 1000]


@pytest.mark.parametrize(
    "expression", ["0 9 * * MON", "* * * * * */10", "*/15 9-17 * * MON-FRI", "0 0 1,L * *"]
)
def test_a_due_time_is_found_in_less_than_a_millisecond(expression: str) -> None:
    cron, now = Cron.parse(expression, "America/New_York"), seconds("2026-01-01") * 1000
    before = time.process_time()

    for at in range(500):
        cron.next_after(now + at * 60_000)

    assert time.process_time() - before < 0.5


# -- schedules that share a Cron ---------------------------------------------------------------------


@settings(deadline=None, derandomize=True)
@given(
    moments=st.lists(st.integers(-5 * 60_000, 5 * 60_000), min_size=1, max_size=20),
    expression=st.sampled_from(["* * * * *", "0 9 * * *", "1 9 2 2 * 0 2026"]),
)
def test_the_next_due_time_is_the_same_in_whatever_order_it_is_asked_for(
    moments: list[int], expression: str
) -> None:
    nine = seconds("2026-02-02 09:00") * 1000
    shared = Cron.parse(expression)

    found = [shared.next_after(nine + moment) for moment in moments]

    assert found == [Cron.parse(expression).next_after(nine + moment) for moment in moments]


def test_equal_schedules_share_a_cron_and_others_do_not() -> None:
    assert cron_of("0 9 * * *", "Europe/Berlin", "exp_1") is cron_of("0 9 * * *", "Europe/Berlin", "exp_2")
    assert cron_of("0 9 * * *", None, "exp_1") is not cron_of("0 9 * * *", "Asia/Tokyo", "exp_1")
    assert cron_of("h 9 * * *", None, "exp_1") is not cron_of("h 9 * * *", None, "exp_2")


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
    assert explain("0 0 30 2 *", None, 0).endswith("Next runs   none: it is never due again")
