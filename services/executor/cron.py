"""When a schedule fires.  Pure: the caller brings the clock.

An expression has five fields; six with the SECONDS FIRST; seven with a year last:

    [second] minute hour day-of-month month day-of-week [year]

Seconds come first as in Quartz, Spring, robfig/cron and node-cron.  croniter by default reads them
last: its `* * * * * */10` is written `*/10 * * * * *` here.  Five fields fire at second 0.

A field is `*` or a list of values, ranges (`1-5`; `22-2` goes round) and steps (`*/5`, `9-17/2`,
`5/20` for "from 5 on").  Months and days of the week have names (JAN, MON); Sunday is 0 or 7.
Day-of-month takes `L` (the last day), day-of-week `5#2` (second Friday) and `5L` or `L5` (last
Friday), both take `?` for `*`.  When both are given, a day fires that fits either; only a plain
`*` counts as not given, so `*/2` with MON is "every second day, or Monday".

Clock changes, as in Vixie cron.  A schedule with a `*` or an open step (`0/15`) for second, minute
or hour is by interval: it fires whenever the local time fits, so in both passes of a repeated hour
and never in a skipped one.  Any other has fixed times, and each fires once: right after the gap
when the clocks skip it, in the first pass when they repeat it.
"""

import calendar
import difflib
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

from cron_descriptor import DescriptionTypeEnum, ExpressionDescriptor, Options  # type: ignore[import-untyped]

from shared.errors import ScheduleError

_MAX_LENGTH = 1000
_ANY = ("*", "?", "*/1")
_LAST = 0
"""Stands for the last day, or the last such weekday, of a month."""
_ONE_SECOND = timedelta(seconds=1)
_ALIASES = {
    "@HOURLY": "0 * * * *",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@WEEKLY": "0 0 * * 0",
    "@MONTHLY": "0 0 1 * *",
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
}


@dataclass(frozen=True, eq=False)
class _Column:
    """One field of an expression: its numbers, and names for the first of them."""

    name: str
    numbers: range
    allowed: str
    names: tuple[str, ...] = ()


_SECOND = _Column("second", range(60), "0-59")
_MINUTE = _Column("minute", range(60), "0-59")
_HOUR = _Column("hour", range(24), "0-23")
_DAY = _Column("day-of-month", range(1, 32), "1-31, L for the last day")
_MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_MONTH = _Column("month", range(1, 13), "1-12, JAN-DEC", _MONTH_NAMES)
_DAY_NAMES = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "7")
_WEEKDAY = _Column("day-of-week", range(7), "0-7, SUN-SAT, 5#2 (second Friday), 5L (last Friday)", _DAY_NAMES)
_YEAR = _Column("year", range(1970, 2200), "1970-2199")

_ITEM = re.compile(r"(?:\*|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>\d+))?", re.ASCII)
_NTH = re.compile(r"(?P<day>\w+)#(?P<rank>[1-5])|(?P<before>\w+)L|L(?P<after>\w+)", re.ASCII)
_OPEN = re.compile(r"\*|\b(?<!-)\w+/", re.ASCII)
_BY_CHANCE = re.compile(r"[HR](?:[(/].*)?|.*~.*")


@dataclass(frozen=True, slots=True)
class _Days:
    """Which days of a month fire: those in `numbers`, on `weekdays`, or the n-th weekdays of `nth`."""

    numbers: tuple[int, ...]
    weekdays: tuple[int, ...]
    nth: tuple[tuple[int, int], ...]

    def of(self, year: int, month: int) -> list[int]:
        """The days of this month that fire, ascending."""
        before, length = calendar.monthrange(year, month)
        due = {number or length for number in self.numbers if number <= length}
        if self.weekdays or self.nth:
            for day in range(1, length + 1):
                weekday, rank = (before + day) % 7, (day + 6) // 7
                ends = day + 7 > length and (weekday, _LAST) in self.nth
                if ends or weekday in self.weekdays or (weekday, rank) in self.nth:
                    due.add(day)
        return sorted(due)


@dataclass(frozen=True, slots=True)
class Cron:
    """A schedule: an expression in its normal form, and the IANA zone it is read in.

    Made by `parse`.  Slots exist from 1970 to 2199.
    """

    expression: str
    timezone: str
    _zone: ZoneInfo = field(repr=False, compare=False)
    _by_interval: bool = field(repr=False, compare=False)
    _seconds: tuple[int, ...] = field(repr=False, compare=False)
    _minutes: tuple[int, ...] = field(repr=False, compare=False)
    _hours: tuple[int, ...] = field(repr=False, compare=False)
    _days: _Days = field(repr=False, compare=False)
    _months: tuple[int, ...] = field(repr=False, compare=False)
    _years: tuple[int, ...] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, expression: str, timezone: str | None = None) -> "Cron":
        """Read an expression in a time zone; none, or an empty one, is UTC.

        Raises ScheduleError, which names the field, what was found there and what is allowed.
        """
        zone = _zone((timezone or "").strip() or "UTC")
        texts = _split(expression)
        padded = ["0"] * (len(texts) == 5) + texts + ["*"] * (len(texts) < 7)
        second, minute, hour, day, month, weekday, year = padded
        by_interval = _OPEN.search(" ".join(padded[:3])) is not None
        times = _values(_SECOND, second), _values(_MINUTE, minute), _values(_HOUR, hour)
        days, months, years = _days(day, weekday), _values(_MONTH, month), _values(_YEAR, year)
        return cls(" ".join(texts), zone.key, zone, by_interval, *times, days, months, years)

    def next_after(self, moment_ms: int) -> int | None:
        """The first slot after a moment, both in UTC ms; None when there is none to come."""
        slot = self._next_after(moment_ms // 1000)
        return None if slot is None else slot * 1000

    def previous_at_or_before(self, moment_ms: int) -> int | None:
        """The last slot up to a moment, both in UTC ms; None when there was none."""
        now = moment_ms // 1000

        def none_until_now(second: int) -> bool:
            slot = self._next_after(second)
            return slot is None or slot > now

        reach = 64
        while none_until_now(start := max(now - reach, -1)):
            if start < 0:
                return None
            reach *= 64
        return (start + bisect_left(range(start, now), True, key=none_until_now)) * 1000

    def slots_between(self, after_ms: int, until_ms: int, limit: int) -> list[int]:
        """The slots after `after_ms` and up to `until_ms`, oldest first, `limit` of them at most."""
        slots: list[int] = []
        slot = self.next_after(after_ms)
        while slot is not None and slot <= until_ms and len(slots) < limit:
            slots.append(slot)
            slot = self.next_after(slot)
        return slots

    def describe(self) -> str:
        """The schedule in words, such as `At 09:00 AM, only on Monday (America/Los_Angeles)`."""
        second, minute = _written(_SECOND, self._seconds), _written(_MINUTE, self._minutes)
        hour, month = _written(_HOUR, self._hours), _written(_MONTH, self._months)
        whole = _descriptor(f"{second} {minute} {hour} * {month} * {_written(_YEAR, self._years)}")
        words = whole.get_description(DescriptionTypeEnum.TIMEOFDAY) + _day_words(self._days)
        words += whole.get_description(DescriptionTypeEnum.MONTH)
        words += whole.get_description(DescriptionTypeEnum.YEAR)
        words = whole.transform_verbosity(words, use_verbose_format=False)
        return f"{words[:1].upper()}{words[1:]} ({self.timezone})"

    # -- slots, in whole seconds of UTC -------------------------------------------------

    def _next_after(self, moment: int) -> int | None:
        wall = _wall(self._zone, moment)
        first, again = _occurrences(self._zone, wall)
        if first >= again:
            return self._first_from(wall, moment)
        change = _change(self._zone, first, again)
        if not self._by_interval:
            # What is shown again has fired: go on where the second pass ends.
            return self._first_from(wall if moment < change else _wall(self._zone, change - 1), moment)
        slots = [self._first_from(wall, moment)]
        if moment < change:
            slots.append(self._first_from(_wall(self._zone, change) - _ONE_SECOND, moment))
        return min((slot for slot in slots if slot is not None), default=None)

    def _first_from(self, wall: datetime, moment: int) -> int | None:
        """The first slot after `moment` among the local times after `wall`."""
        while (found := self._wall_after(wall)) is not None:
            first, again = _occurrences(self._zone, found)
            if first <= again:
                return first if first > moment else again
            change = _change(self._zone, again, first)
            if not self._by_interval:
                return change
            wall = _wall(self._zone, change) - _ONE_SECOND
        return None

    def _wall_after(self, wall: datetime) -> datetime | None:
        """The first local time after `wall` that fits, whether the clocks will show it or not."""
        today = (wall.year, wall.month, wall.day)
        earliest = (self._hours[0], self._minutes[0], self._seconds[0])
        for date in self._dates_from(*today):
            time = self._time_after(wall) if date == today else earliest
            if time is not None:
                return datetime(*date, *time)
        return None

    def _dates_from(self, year: int, month: int, day: int) -> Iterator[tuple[int, int, int]]:
        for y in self._years[bisect_left(self._years, year) :]:
            for m in self._months:
                if (y, m) >= (year, month):
                    yield from ((y, m, d) for d in self._days.of(y, m) if (y, m, d) >= (year, month, day))

    def _time_after(self, wall: datetime) -> tuple[int, int, int] | None:
        """The first time of the same day that fits and comes after `wall`."""
        if wall.hour in self._hours:
            if wall.minute in self._minutes and (second := _above(self._seconds, wall.second)) is not None:
                return wall.hour, wall.minute, second
            if (minute := _above(self._minutes, wall.minute)) is not None:
                return wall.hour, minute, self._seconds[0]
        hour = _above(self._hours, wall.hour)
        return None if hour is None else (hour, self._minutes[0], self._seconds[0])


def explain(expression: str, timezone: str | None, now_ms: int, count: int = 5) -> str:
    """What a schedule means, and its next `count` runs in local time and in UTC, as lines to print.

    Raises ScheduleError as `Cron.parse` does.
    """
    cron = Cron.parse(expression, timezone)
    runs: list[str] = []
    slot = cron.next_after(now_ms)
    while slot is not None and len(runs) < count:
        local = datetime.fromtimestamp(slot // 1000, ZoneInfo(cron.timezone))
        runs.append(f"{local:%a} {local.isoformat(' ')}   {local.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC")
        slot = cron.next_after(slot)
    if slot is None:
        runs.append("none: it never fires again" if not runs else "no more after that")
    lines = [f"Expression  {cron.expression}", f"Meaning     {cron.describe()}"]
    return "\n".join([*lines, *(("" if at else "Next runs").ljust(12) + run for at, run in enumerate(runs))])


# -- reading an expression ----------------------------------------------------------------


def _split(expression: str) -> list[str]:
    """The five to seven fields of an expression, in capitals, an alias replaced."""
    if len(expression) > _MAX_LENGTH:
        raise ScheduleError(f"A cron expression of {len(expression)} characters; {_MAX_LENGTH} are allowed")
    texts = expression.upper().split()
    if texts and texts[0].startswith("@"):
        texts = _ALIASES.get(" ".join(texts), "").split()
        if not texts:
            raise ScheduleError(f"No alias is called {expression!r}; there are {', '.join(_ALIASES).lower()}")
    if not 5 <= len(texts) <= 7:
        raise ScheduleError(
            f"Cron expression {expression!r} has {len(texts)} fields; it takes five (minute hour day-of-month"
            " month day-of-week), six (the second first) or seven (and the year last)"
        )
    return texts


# Schedules share these: a hundred thousand of them would otherwise hold as many copies.
@lru_cache(maxsize=4096)
def _values(column: _Column, text: str) -> tuple[int, ...]:
    return tuple(sorted({number for item in text.split(",") for number in _item(column, item)}))


@lru_cache(maxsize=4096)
def _days(day: str, weekday: str) -> _Days:
    numbers, weekdays, nth = set[int](), set[int](), set[tuple[int, int]]()
    if day in _ANY:
        day = "*" if weekday in _ANY else ""
    for item in day.split(",") if day else []:
        numbers.update([_LAST] if item == "L" else _item(_DAY, item))
    for item in [] if weekday in _ANY else weekday.split(","):
        if match := _NTH.fullmatch(item):
            name = match["day"] or match["before"] or match["after"]
            nth.add((_number(_WEEKDAY, name, item) % 7, int(match["rank"] or _LAST)))
        else:
            weekdays.update(_item(_WEEKDAY, item))
    return _Days(tuple(sorted(numbers)), tuple(sorted(weekdays)), tuple(sorted(nth)))


def _item(column: _Column, item: str) -> list[int]:
    """The numbers that one item of a list stands for."""
    match = _ITEM.fullmatch(item)
    size = len(column.numbers)
    if match is None or not 1 <= int(match["step"] or 1) <= size:
        raise _refusal(column, item)
    low, high = column.numbers[0], column.numbers[-1]
    if match["low"]:
        low = _number(column, match["low"], item)
        if match["high"] or not match["step"]:
            high = _number(column, match["high"] or match["low"], item)
    if low > high and column is _YEAR:
        raise _refusal(column, item)
    around = range(low, high + 1 + (size if low > high else 0), int(match["step"] or 1))
    return [column.numbers[(number - column.numbers[0]) % size] for number in around]


def _number(column: _Column, text: str, item: str) -> int:
    if text in column.names:
        return column.numbers[0] + column.names.index(text)
    if not text.isdecimal() or int(text) not in column.numbers:
        raise _refusal(column, item)
    return int(text)


def _refusal(column: _Column, item: str) -> ScheduleError:
    why = "; H, R and ~ would leave the time to chance" if _BY_CHANCE.fullmatch(item) else ""
    return ScheduleError(
        f"Cron field {column.name} is {item!r}; allowed are {column.allowed}, lists (1,5), ranges (1-5) and"
        f" steps (*/5) of up to {len(column.numbers)}{why}. Six fields start with the second, seven end with the year"
    )


# -- zones and their clocks --------------------------------------------------------------------


@cache
def _zone_names() -> dict[str, str]:
    """Every IANA name by its small letters; asking here first keeps odd names off the file system."""
    names = (resources.files("tzdata") / "zones").read_text(encoding="utf-8").split()
    return {name.lower(): name for name in names}


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    names = _zone_names()
    if name.lower() in names:
        return ZoneInfo(names[name.lower()])
    close = difflib.get_close_matches(name.lower().replace(" ", "_")[:64], names)
    hint = f"did you mean {' or '.join(names[each] for each in close)}? " if close else ""
    raise ScheduleError(f"Unknown time zone {name[:64]!r}: {hint}Names are like Europe/Berlin, none is UTC")


def _wall(zone: ZoneInfo, moment: int) -> datetime:
    """What the zone's clocks show at a moment, without the zone."""
    return datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0)


def _occurrences(zone: ZoneInfo, wall: datetime) -> tuple[int, int]:
    """When the clocks show `wall`: once (equal), twice (rising) or, for a skipped time, never (falling)."""
    local = wall.replace(tzinfo=zone)
    return int(local.timestamp()), int(local.replace(fold=1).timestamp())


def _change(zone: ZoneInfo, before: int, after: int) -> int:
    """The second at which the clocks were changed, after `before` and up to `after`."""

    def offset(second: int) -> timedelta | None:
        return datetime.fromtimestamp(second, zone).utcoffset()

    changed = offset(after)
    return before + bisect_left(range(before, after), True, key=lambda second: offset(second) == changed)


def _above(values: tuple[int, ...], value: int) -> int | None:
    at = bisect_right(values, value)
    return values[at] if at < len(values) else None


# -- words ---------------------------------------------------------------------------------------


def _descriptor(expression: str) -> ExpressionDescriptor:
    return ExpressionDescriptor(expression, Options(locale_code="en_US", use_24hour_time_format=False))


def _written(column: _Column, values: tuple[int, ...]) -> str:
    """`values` in the plainest notation: cron-descriptor words the odder ones wrongly."""
    size = len(column.numbers)
    if len(values) == size:
        return "*"
    step = values[1] - values[0] if len(values) > 1 else size
    if size == 60 and values == tuple(range(0, 60, step)) and 60 % step == 0:
        return f"*/{step}" if step < size else "0"
    if len(values) > 3 and values == tuple(range(values[0], values[-1] + 1, step)):
        return f"{values[0]}-{values[-1]}" + (f"/{step}" if step > 1 else "")
    return ",".join(map(str, values))


def _day_words(days: _Days) -> str:
    """The days in words, each kind described by itself, as cron-descriptor mixes them up."""
    numbers = tuple(number for number in days.numbers if number != _LAST)
    kinds = [f"{_written(_DAY, numbers)} * *"] if numbers else []
    kinds += ["L * *"] if _LAST in days.numbers else []
    kinds += [f"* * {_written(_WEEKDAY, days.weekdays)}"] if days.weekdays else []
    kinds += [f"* * {weekday}#{rank}" if rank else f"* * {weekday}L" for weekday, rank in days.nth]
    parts = []
    for described in (_descriptor(f"0 0 0 {kind} *") for kind in kinds):
        part = described.get_description(DescriptionTypeEnum.DAYOFMONTH)
        parts.append(part + described.get_description(DescriptionTypeEnum.DAYOFWEEK))
    return str(parts[0]) + "".join(
        f", or {part.removeprefix(', ').removeprefix('only ')}" for part in parts[1:]
    )
