"""When a schedule is due.  Pure: the caller brings the clock.

croniter gives local times, without a zone; here they are mapped to moments, as croniter's own way with
zones fires a fixed time twice in a repeated hour.

Clock changes, as in Vixie cron.  A schedule with a `*` or an open step (`0/15`) for second, minute or
hour is an interval: it is due whenever the local time fits, in both passes of a repeated hour and never
in a skipped one.  Any other has fixed times, and each is due once: right after the gap when the clocks
skip it, in the first pass when they repeat it.
"""

import difflib
import math
import re
from bisect import bisect_left
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

from services.executor.scheduling.cron_expression import Expression, plain, zone_before
from shared.errors import ScheduleError

_ONE_SECOND = timedelta(seconds=1)
_END_MS = round(datetime(2200, 1, 1, tzinfo=UTC).timestamp() * 1_000)
"""Nothing is due later: the search for what never fits has to end."""


@dataclass(slots=True)
class Cron:
    """A schedule: an expression, and the IANA zone it is read in.  Made by `parse`, or by `cron_of`."""

    _expression: Expression
    timezone: str
    _zone: ZoneInfo = field(repr=False, compare=False)
    _asked_ms: float = field(default=math.inf, repr=False, compare=False)
    _found_ms: int | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(cls, expression: str, timezone: str | None = None, experiment_id: str | None = None) -> "Cron":
        """Read an expression in a time zone; none, or an empty one, is UTC.

        Args:
            expression: see `cron_expression.py`.
            timezone: an IANA name, in small or capital letters.
            experiment_id: what an `H` in the expression is hashed from.

        Raises:
            ScheduleError: it names the field, what was found there and what is allowed.
        """
        named, text = zone_before(plain(expression))
        given = plain(timezone or "")
        if named and given and _zone(named) != _zone(given):
            raise ScheduleError(
                f"Cron expression {expression[:100]!r} and the time zone {given!r} differ; leave one out"
            )
        zone = _zone(named or given or "UTC")
        try:
            return cls(Expression.parse(text, experiment_id), zone.key, zone)
        except ScheduleError as error:
            order = "; six fields end with the second, seven with the second and the year"
            hint = order if len(text.split()) in (6, 7) else ""
            raise ScheduleError(f"Cron expression {expression[:100]!r}: {error}{hint}") from None

    @property
    def expression(self) -> str:
        """The expression in its normal form."""
        return self._expression.text

    @property
    def warning(self) -> str | None:
        """What is probably not meant, if anything."""
        return self._expression.warning

    def next_after(self, moment_ms: int) -> int | None:
        """The first due time after a moment, both in UTC ms; None when there is none to come.

        The last answer is kept: schedules that share a Cron are mostly asked about the same time.
        """
        is_before = self._found_ms is None or moment_ms < self._found_ms
        if not (self._asked_ms <= moment_ms and is_before):
            self._asked_ms, self._found_ms = moment_ms, self._search(moment_ms)
        return self._found_ms

    def _search(self, moment_ms: int) -> int | None:
        if moment_ms >= _END_MS:
            return None
        moment = moment_ms // 1_000
        local = _local(self._zone, moment)
        first, again = _occurrences(self._zone, local)
        if first >= again:
            return self._first_from(local, moment)
        change = _change(self._zone, first, again)
        if not self._expression.is_interval:
            # What is shown again has been due: go on where the second pass ends.
            return self._first_from(local if moment < change else _local(self._zone, change - 1), moment)
        found = [self._first_from(local, moment)]
        if moment < change:
            found.append(self._first_from(_local(self._zone, change) - _ONE_SECOND, moment))
        return min((due_ms for due_ms in found if due_ms is not None), default=None)

    def previous_at_or_before(self, moment_ms: int) -> int | None:
        """The last due time up to a moment, both in UTC ms; None when there was none since 1970."""

        def has_none_after(second: int) -> bool:
            due_ms = self.next_after(second * 1_000)
            return due_ms is None or due_ms > moment_ms

        now, reach = moment_ms // 1_000, 64
        while has_none_after(start := max(now - reach, -1)):
            if start < 0:
                return None
            reach *= 64
        return (start + bisect_left(range(start, now), True, key=has_none_after)) * 1_000

    def due_times_between(self, after_ms: int, until_ms: int, limit: int) -> list[int]:
        """The due times after `after_ms` and up to `until_ms`, oldest first, `limit` of them at most."""
        found: list[int] = []
        due_ms = self.next_after(after_ms)
        while due_ms is not None and due_ms <= until_ms and len(found) < limit:
            found.append(due_ms)
            due_ms = self.next_after(due_ms)
        return found

    def describe(self) -> str:
        """The schedule in words, such as `At 09:00 AM, only on Monday (America/Los_Angeles)`."""
        return f"{self._expression.describe()} ({self.timezone})"

    def _first_from(self, local: datetime, moment: int) -> int | None:
        """The first due time in ms, later than `moment` in seconds, of the local times after `local`."""
        while (found := self._expression.next_local(local)) is not None:
            first, again = _occurrences(self._zone, found)
            if first <= again:
                due_ms = 1_000 * (first if first > moment else again)
                return due_ms if due_ms < _END_MS else None
            change = _change(self._zone, again, first)
            if not self._expression.is_interval:
                return 1_000 * change
            local = _local(self._zone, change) - _ONE_SECOND
        return None


def cron_of(expression: str, timezone: str | None, experiment_id: str) -> Cron:
    """As `Cron.parse`, but equal schedules share what is returned, if no H makes them differ."""
    return _shared(expression, timezone, experiment_id if "H" in expression.upper() else None)


@lru_cache(maxsize=4_096)
def _shared(expression: str, timezone: str | None, experiment_id: str | None) -> Cron:
    return Cron.parse(expression, timezone, experiment_id)


def explain(
    expression: str, timezone: str | None, now_ms: int, count: int = 5, experiment_id: str | None = None
) -> str:
    """What a schedule means, and its next `count` due times in local time and in UTC, as lines to print.

    Raises ScheduleError as `Cron.parse` does.
    """
    cron = Cron.parse(expression, timezone, experiment_id)
    runs: list[str] = []
    due_ms = cron.next_after(now_ms)
    while due_ms is not None and len(runs) < count:
        local = datetime.fromtimestamp(due_ms // 1_000, ZoneInfo(cron.timezone))
        runs.append(f"{local:%a} {local.isoformat(' ')}   {local.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC")
        due_ms = cron.next_after(due_ms)
    if due_ms is None:
        runs.append("none: it is never due again" if not runs else "no more after that")
    lines = [f"Expression  {cron.expression}", f"Meaning     {cron.describe()}"]
    if cron.warning is not None:
        lines.append(f"Warning     {cron.warning}")
    return "\n".join([*lines, *(("" if at else "Next runs").ljust(12) + run for at, run in enumerate(runs))])


# -- zones and their clocks --------------------------------------------------------------------


@cache
def _zone_names() -> dict[str, str]:
    """Every IANA name by its small letters.  Asked first, so that no other name reaches the file system."""
    names = (resources.files("tzdata") / "zones").read_text(encoding="utf-8").split()
    return {name.lower(): name for name in names}


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo:
    names = _zone_names()
    if name.lower() in names:
        return ZoneInfo(names[name.lower()])
    close = difflib.get_close_matches(name.lower().replace(" ", "_")[:64], names)
    if _OFFSET.fullmatch(name):
        hint = "an offset or an abbreviation is no zone, which has summer time."
    elif close:
        hint = f"did you mean {' or '.join(names[each] for each in close)}?"
    else:
        hint = "no such IANA name."
    raise ScheduleError(f"Time zone {name[:64]!r}: {hint} It takes names like Europe/Berlin, or none for UTC")


_OFFSET = re.compile(r"[A-Z]{2,4}|(?:UTC|GMT|Z)?\s*[+-]?\d.*")


def _local(zone: ZoneInfo, moment: int) -> datetime:
    """The local time at a moment (unix seconds), without the zone."""
    return datetime.fromtimestamp(moment, zone).replace(tzinfo=None, fold=0)


def _occurrences(zone: ZoneInfo, local: datetime) -> tuple[int, int]:
    """When the clocks show `local`: once (equal), twice (rising) or, for a skipped time, never (falling)."""
    aware = local.replace(tzinfo=zone)
    return int(aware.timestamp()), int(aware.replace(fold=1).timestamp())


def _change(zone: ZoneInfo, before: int, after: int) -> int:
    """The second at which the clocks were changed, after `before` and up to `after`."""

    def offset(second: int) -> timedelta | None:
        return datetime.fromtimestamp(second, zone).utcoffset()

    changed = offset(after)
    return before + bisect_left(range(before, after), True, key=lambda second: offset(second) == changed)
