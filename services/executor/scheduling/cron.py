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

import difflib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

from services.executor.scheduling import cron_words
from services.executor.scheduling.cron_fields import (
    HOUR,
    MINUTE,
    MONTH,
    OPEN,
    SECOND,
    YEAR,
    Days,
    read_days,
    read_values,
    split,
)
from shared.errors import ScheduleError

_ONE_SECOND = timedelta(seconds=1)


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
    _days: Days = field(repr=False, compare=False)
    _months: tuple[int, ...] = field(repr=False, compare=False)
    _years: tuple[int, ...] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, expression: str, timezone: str | None = None) -> "Cron":
        """Read an expression in a time zone; none, or an empty one, is UTC.

        Raises ScheduleError, which names the field, what was found there and what is allowed.
        """
        zone = _zone((timezone or "").strip() or "UTC")
        try:
            texts = split(expression)
            padded = ["0"] * (len(texts) == 5) + texts + ["*"] * (len(texts) < 7)
            second, minute, hour, day, month, weekday, year = padded
            by_interval = OPEN.search(" ".join(padded[:3])) is not None
            times = read_values(SECOND, second), read_values(MINUTE, minute), read_values(HOUR, hour)
            days, months, years = read_days(day, weekday), read_values(MONTH, month), read_values(YEAR, year)
        except ScheduleError as error:
            order = "; six fields start with the second, seven end with the year"
            hint = order if len(expression.split()) in (6, 7) else ""
            raise ScheduleError(f"Cron expression {expression[:100]!r}: {error}{hint}") from None
        return cls(" ".join(texts), zone.key, zone, by_interval, *times, days, months, years)

    def next_after(self, moment_ms: int) -> int | None:
        """The first slot after a moment, both in UTC ms; None when there is none to come."""
        moment = moment_ms // 1000
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

    def previous_at_or_before(self, moment_ms: int) -> int | None:
        """The last slot up to a moment, both in UTC ms; None when there was none."""

        def none_until_then(second: int) -> bool:
            slot = self.next_after(second * 1000)
            return slot is None or slot > moment_ms

        now, reach = moment_ms // 1000, 64
        while none_until_then(start := max(now - reach, -1)):
            if start < 0:
                return None
            reach *= 64
        return (start + bisect_left(range(start, now), True, key=none_until_then)) * 1000

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
        words = cron_words.describe(
            self._seconds, self._minutes, self._hours, self._days, self._months, self._years
        )
        return f"{words} ({self.timezone})"

    def _first_from(self, wall: datetime, moment: int) -> int | None:
        """The first slot in ms, later than `moment` in seconds, of the local times after `wall`."""
        while (found := self._wall_after(wall)) is not None:
            first, again = _occurrences(self._zone, found)
            if first <= again:
                return 1000 * (first if first > moment else again)
            change = _change(self._zone, again, first)
            if not self._by_interval:
                return 1000 * change
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
    hint = f"did you mean {' or '.join(names[each] for each in close)}?" if close else "no such IANA name."
    raise ScheduleError(f"Time zone {name[:64]!r}: {hint} It takes names like Europe/Berlin, or none for UTC")


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
