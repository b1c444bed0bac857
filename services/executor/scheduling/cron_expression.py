"""Reads a cron expression with croniter, and says it in words with cron-descriptor.

An expression has five fields; six with the second last; seven with the year after that:

    minute hour day-of-month month day-of-week [second [year]]

Five fields fire at second 0.  A field is `*`, or a list (`1,5`) of values, ranges (`1-5`; `22-2` goes
around) and steps (`*/5`, `9-17/2`, `5/20` for "from 5 on").  Months and days of the week have names
(JAN, MON); Sunday is 0 or 7.  Day-of-month takes `L` (the last day) and `15W` (the weekday nearest the
15th), day-of-week `5#2` (the second Friday) and `5L` or `L5` (the last Friday), and both take `?` for
`*`.  When both are given, a day fires that fits either; only `*` counts as not given, so `*/2` with MON
is "every second day, or Monday".

`H` is a number hashed from the experiment's id, so that a hundred hourly experiments don't start in the
same second: `H * * * *`, `H/15 * * * *`, `H H(1-5) * * *`.

A blank, `#` and the rest are a comment.  Quotes around an expression are no part of it, and `CRON_TZ=ZONE`
before it is its time zone.
"""

import calendar
import re
import unicodedata
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cron_descriptor import DescriptionTypeEnum, ExpressionDescriptor, Options  # type: ignore[import-untyped]
from croniter import CroniterError, croniter
from croniter.croniter import DOW_ALPHAS, M_ALPHAS

from shared.errors import ScheduleError

_MAX_LENGTH = 1_000
_MINUTE, _HOUR, _DAY, _MONTH, _WEEKDAY, _SECOND, _YEAR = range(7)
_ORDER = "minute hour day-of-month month day-of-week"
_NAMES = (*_ORDER.split(), "second", "year")
_ALLOWED = (
    "0-59",
    "0-23",
    "1-31, L for the last day, 15W for the weekday nearest the 15th",
    "1-12, JAN-DEC",
    "0-7, SUN-SAT, 5#2 (second Friday), 5L (last Friday)",
    "0-59",
    "1970-2099",
)
_NUMBERS = tuple(range(low, high + 1) for low, high in croniter.RANGES)
_NAMED = {_MONTH: M_ALPHAS, _WEEKDAY: DOW_ALPHAS}
_ALIASES = {
    "@HOURLY": "0 * * * *",
    "@DAILY": "0 0 * * *",
    "@MIDNIGHT": "0 0 * * *",
    "@WEEKLY": "0 0 * * 0",
    "@MONTHLY": "0 0 1 * *",
    "@YEARLY": "0 0 1 1 *",
    "@ANNUALLY": "0 0 1 1 *",
}
_LONG_NAMES = {
    _MONTH: [name.upper() for name in calendar.month_name[1:]],
    _WEEKDAY: [name.upper() for name in calendar.day_name],
}
_INTERVAL = "every five minutes is */5 * * * *"
_SUNDAY = 7
_ANY = ("*", "?", "*/1")
_ANY_MONTHLY_GAP_YEARS = 50
"""Without a year, nothing is longer apart than the fifth Fridays of February: 40 years around 2100."""
_ANY_YEARLY_GAP_YEARS = len(_NUMBERS[_YEAR])

_COMMENT = re.compile(r"(?:\A|\s)#.*", re.DOTALL)
_QUOTED = re.compile(r"(?P<quote>[\"'])(?P<text>.*)(?P=quote)", re.DOTALL)
_ZONE = re.compile(r"(?:CRON_)?TZ=(?P<zone>\S+)\s+(?P<rest>.*)", re.DOTALL)
_LONG_NAME = re.compile(r"[A-Z]{4,}")
_ITEM = re.compile(r"(?P<low>\*|\w+)(?:-(?P<high>\w+))?(?:/(?P<step>\d+))?", re.ASCII)
_HASHED = re.compile(r"[HR](?P<range>\(\d+-\d+\))?(?:/(?P<step>\d+))?", re.ASCII)
_BY_CHANCE = re.compile(r"R(?:[(/].*)?|.*~.*")
_LAST = re.compile(r"L(?P<after>\w+)|(?P<before>\w+)L", re.ASCII)
_EQUAL_ENDS = re.compile(r"(\w+)-\1#", re.ASCII)
_OPEN = re.compile(r"\*|\b(?<!-)\w+/", re.ASCII)


def plain(text: str) -> str:
    """Return the text of an expression or a time zone without a comment behind it and quotes around it."""
    text = _COMMENT.sub("", text.strip().removeprefix("\ufeff")).strip()
    quoted = _QUOTED.fullmatch(text)
    return plain(quoted["text"]) if quoted else text


def zone_before(text: str) -> tuple[str | None, str]:
    """Return the time zone that `CRON_TZ=` or `TZ=` gives before an expression, and the expression."""
    found = _ZONE.fullmatch(text)
    return (plain(found["zone"]), found["rest"]) if found else (None, text)


@dataclass(frozen=True, slots=True)
class Expression:
    """What a cron expression says of local times.  Made by `parse`.

    `text` is the normal form.  `hashed_by` is the experiment's id if there is an `H` in it.
    `is_interval` tells an expression with a `*` or an open step (`0/15`) for the second, minute or
    hour from one with fixed times of the day.
    """

    text: str
    hashed_by: str | None
    is_interval: bool = field(compare=False)
    _readings: tuple[Any, ...] = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, experiment_id: str | None = None) -> "Expression":
        """Read an expression; `experiment_id` is what an `H` in it is hashed from.

        Raises ScheduleError, which names the field, what was found there and what is allowed.
        """
        fields = _split(text)
        has_hash = any(one.startswith("H") and _HASHED.fullmatch(one) for one in fields)
        if has_hash and experiment_id is None:
            raise ScheduleError("H is hashed from an experiment's id, and none is given")
        hashed_by = experiment_id if has_hash else None
        times = fields[:_DAY] + fields[_SECOND : _SECOND + 1]
        is_interval = _OPEN.search(" ".join(times)) is not None
        return cls(" ".join(fields), hashed_by, is_interval, _readings(fields, hashed_by))

    def next_local(self, local: datetime) -> datetime | None:
        """The first local time after `local` that fits, both without a zone; None when there is none."""
        found = []
        for reading in self._readings:
            try:
                found.append(reading.get_next(datetime, start_time=local))
            except CroniterError:  # nothing fits any more
                continue
        return min(found, default=None)

    @property
    def warning(self) -> str | None:
        """What is probably a mistake: the second, which was meant to come first, is left at `*`."""
        seconds, *others = (self._values(index) for index in (_SECOND, *range(_SECOND)))
        if len(seconds) < len(_NUMBERS[_SECOND]) or all(map(_is_all, range(_SECOND), others)):
            return None
        return "it fires every second of some minutes; in six fields the second is the last one"

    def describe(self) -> str:
        """The expression in words, such as `At 09:00 AM, only on Monday`."""
        clock = " ".join(_written(index, self._values(index)) for index in (_SECOND, _MINUTE, _HOUR))
        month, year = (_written(index, self._values(index)) for index in (_MONTH, _YEAR))
        whole = _descriptor(f"{clock} * {month} * {year}")
        words = whole.get_description(DescriptionTypeEnum.TIMEOFDAY) + self._day_words()
        words += whole.get_description(DescriptionTypeEnum.MONTH)
        words += whole.get_description(DescriptionTypeEnum.YEAR)
        words = whole.transform_verbosity(words, use_verbose_format=False)
        return f"{words[:1].upper()}{words[1:]}"

    def _values(self, index: int) -> tuple[int, ...]:
        """The numbers of a field.  Of the day fields, those of the first reading."""
        expanded = self._readings[0].expanded
        if index < len(expanded):
            return _numbers(index, expanded[index])
        return (0,) if index == _SECOND else tuple(_NUMBERS[index])

    def _day_words(self) -> str:
        """The days in words, each kind described by itself: cron-descriptor mixes them up."""
        kinds = [kind for reading in self._readings for kind in _day_kinds(reading)]
        if "* * *" in kinds:
            return ""
        parts = []
        for described in (_descriptor(f"0 0 0 {kind} *") for kind in kinds):
            part = described.get_description(DescriptionTypeEnum.DAYOFMONTH)
            parts.append(part + described.get_description(DescriptionTypeEnum.DAYOFWEEK))
        return str(parts[0]) + "".join(
            f", or {part.removeprefix(', ').removeprefix('only ')}" for part in parts[1:]
        )


# -- reading --------------------------------------------------------------------------


def _split(text: str) -> list[str]:
    """The five to seven fields of an expression, in capitals, an alias replaced."""
    if len(text) > _MAX_LENGTH:
        raise ScheduleError(f"it has {len(text)} characters, more than the {_MAX_LENGTH} allowed")
    fields = plain(text).upper().split()
    if not fields:
        raise ScheduleError("it is empty")
    _check_characters(fields)
    if fields[0].startswith("@"):
        # Not left to croniter: with a `hash_id`, its `@daily` is some other time of the day.
        fields = _ALIASES.get(" ".join(fields), "").split()
        if not fields:
            raise ScheduleError(f"no such alias; there are {', '.join(_ALIASES).lower()}; {_INTERVAL}")
    if not len(_ORDER.split()) <= len(fields) <= len(_NAMES):
        raise ScheduleError(
            f"{len(fields)} fields; write five ({_ORDER}), six (second last) or seven (year after it)"
            + (f"; {_INTERVAL}" if fields[0].startswith(("EVERY", "RATE")) else "")
            + (f"; the alias is @{fields[0].lower()}" if f"@{fields[0]}" in _ALIASES else "")
        )
    for index in _LONG_NAMES:
        fields[index] = _with_short_names(index, fields[index])
    return fields


def _with_short_names(index: int, text: str) -> str:
    """A field of months or days with names as cron has them, where they are written out."""

    def short(found: re.Match[str]) -> str:
        whole = [name for name in _LONG_NAMES[index] if name.startswith(found[0])]
        return whole[0][:3] if whole else found[0]

    return _LONG_NAME.sub(short, text)


def _check_characters(fields: list[str]) -> None:
    """Refuse a dash or a star that only looks like one."""
    for text in fields:
        for char in text:
            if not char.isascii():
                name = unicodedata.name(char, "unknown")
                raise ScheduleError(
                    f"{text!r} has the character {char!r} ({name}); write plain - * , / instead"
                )


def _readings(fields: list[str], hashed_by: str | None) -> tuple[Any, ...]:
    """croniter's readings of an expression; whatever fits one of them fits it."""
    corrected = [_corrected(index, text) for index, text in enumerate(fields)]
    has_year = len(corrected) > _YEAR and corrected[_YEAR] not in _ANY
    # croniter gives up 50 years ahead, where a year may be longer away.
    most_years = _ANY_YEARLY_GAP_YEARS if has_year else _ANY_MONTHLY_GAP_YEARS
    hash_id = None if hashed_by is None else hashed_by.encode(errors="surrogatepass")
    readings = []
    try:
        for text in _alternatives(corrected):
            readings.append(croniter(text, 0, max_years_between_matches=most_years, hash_id=hash_id))
    except CroniterError as exc:
        raise _refusal_of(fields, hash_id, exc) from None
    return tuple(readings)


def _alternatives(fields: list[str]) -> list[str]:
    """The expression with one kind of day at a time.

    croniter ignores the weekday beside `15W`, joins `1` and `5#2` by AND, refuses `MON,5#2`, and takes
    30 days and `L` for every day.
    """
    day, weekday = fields[_DAY], fields[_WEEKDAY]
    days = [] if day in _ANY else _kinds(day, "LW")
    weekdays = [] if weekday in _ANY else _kinds(weekday, "L#")
    pairs = [*((one, "*") for one in days), *(("*", one) for one in weekdays)]
    return [
        " ".join([*fields[:_DAY], day, fields[_MONTH], weekday, *fields[_SECOND:]])
        for day, weekday in pairs or [("*", "*")]
    ]


def _kinds(text: str, signs: str) -> list[str]:
    """The items of a field that are plain, as a list, and each of the others."""
    plain: list[str] = []
    others: list[str] = []
    for item in text.split(","):
        (others if any(sign in item for sign in signs) else plain).append(item)
    return [*([",".join(plain)] if plain else []), *dict.fromkeys(others)]


def _corrected(index: int, text: str) -> str:
    """A field as it has to be written for croniter to read it right."""
    hashed = _HASHED.fullmatch(text)
    if hashed is None:
        return ",".join(_corrected_item(index, item) for item in text.split(","))
    # R is drawn by each worker for itself: they would not agree.  A hashed year is mostly over.
    if text.startswith("R") or index == _YEAR:
        raise _refusal(index, text)
    _check_step(index, text, hashed["step"])
    if index == _DAY and not hashed["range"]:  # croniter takes up to 31, which skips months
        return text.replace("H", "H(1-28)", 1)
    return text


def _corrected_item(index: int, item: str) -> str:
    if index == _WEEKDAY and (last := _LAST.fullmatch(item)):
        number = _number(index, last["after"] or last["before"])
        return item if number is None else f"L{number}"  # the only form that croniter takes
    if not item or _EQUAL_ENDS.match(item):  # croniter takes MON-MON#1 for every day
        raise _refusal(index, item)
    match = _ITEM.fullmatch(item)
    if match is None:
        return item
    _check_step(index, item, match["step"])
    low, high = _number(index, match["low"]), _number(index, match["high"] or "")
    if low is None or high is None:
        return item
    is_plain = low < high and not (index == _WEEKDAY and high == _SUNDAY)
    return item if is_plain else _around(index, item, low, high)


def _around(index: int, item: str, low: int, high: int) -> str:
    """A range that goes around, as a list.

    croniter takes `5-5` for the whole field, and miscounts a step that goes around: its `22-6/3` is
    22, 2, 5.
    """
    if index == _YEAR and low > high:
        raise _refusal(index, item)
    numbers, step = _NUMBERS[index], int(item.partition("/")[2] or 1)
    end = high + 1 + (len(numbers) if low > high else 0)
    found = {numbers[(number - numbers[0]) % len(numbers)] for number in range(low, end, step)}
    return ",".join(map(str, sorted(found)))


def _check_step(index: int, item: str, step: str | None) -> None:
    """Refuse `*/90`, which croniter takes for hourly."""
    if not 1 <= int(step or 1) <= len(_NUMBERS[index]):
        raise _refusal(index, item)


def _number(index: int, text: str) -> int | None:
    """The number that a value stands for, if it is one of the field; Sunday may be 7."""
    named = _NAMED.get(index, {}).get(text.lower())
    if named is not None:
        return named
    number = int(text) if text.isdecimal() and text.isascii() else -1
    return number if number in _NUMBERS[index] or (index == _WEEKDAY and number == _SUNDAY) else None


def _refusal_of(fields: list[str], hash_id: bytes | None, exc: CroniterError) -> ScheduleError:
    """The refusal of the first field that croniter refuses by itself, for its own messages name none."""
    for index, text in enumerate(fields):
        alone = ["*"] * len(fields)
        alone[index] = _corrected(index, text)
        if not all(croniter.is_valid(one, hash_id=hash_id) for one in _alternatives(alone)):
            return _refusal(index, text)
    return ScheduleError(str(exc))


def _refusal(index: int, text: str) -> ScheduleError:
    why = "; R and ~ would leave the time to chance, H does not" if _BY_CHANCE.fullmatch(text) else ""
    forms = f"lists (1,5), ranges (1-5), steps of 1-{len(_NUMBERS[index])} (*/5)"
    hashes = "" if index == _YEAR else " and H (hashed from the experiment's id)"
    return ScheduleError(
        f"the {_NAMES[index]} is {text!r}; allowed are {_ALLOWED[index]}, {forms}{hashes}{why}"
    )


# -- in words -------------------------------------------------------------------------


def _descriptor(expression: str) -> ExpressionDescriptor:
    return ExpressionDescriptor(expression, Options(locale_code="en_US", use_24hour_time_format=False))


def _numbers(index: int, expanded: list[int | str]) -> tuple[int, ...]:
    """The numbers of a field as croniter has expanded it."""
    if "*" in expanded:
        return tuple(_NUMBERS[index])
    return tuple(sorted(number for number in expanded if isinstance(number, int)))


def _is_all(index: int, values: tuple[int, ...]) -> bool:
    return len(values) == len(_NUMBERS[index])


def _written(index: int, values: tuple[int, ...]) -> str:
    """`values` in the plainest notation: cron-descriptor words the odder ones wrongly."""
    first, size, count = values[0], len(_NUMBERS[index]), len(values)
    step = values[1] - first if count > 1 else size
    if values != tuple(range(first, values[-1] + 1, step)) or (count < 4 and size != 60):
        return ",".join(map(str, values))
    by = f"/{step}" if step > 1 else ""
    if first == _NUMBERS[index][0] and count > 1 and count * step == size:
        return f"*{by}"
    return f"{first}-{values[-1]}{by}" if count > 3 else ",".join(map(str, values))


def _day_kinds(reading: Any) -> list[str]:
    """The day, month and weekday fields of expressions that cron-descriptor words right."""
    if reading.nearest_weekday:
        return [f"{day}W * *" for day in reading.nearest_weekday]
    if reading.nth_weekday_of_month:
        ranks = sorted(
            (day, str(rank)) for day, all_of in reading.nth_weekday_of_month.items() for rank in all_of
        )
        return [f"* * {day}L" if rank == "l" else f"* * {day}#{rank}" for day, rank in ranks]
    days, weekdays = (_numbers(index, reading.expanded[index]) for index in (_DAY, _WEEKDAY))
    kinds = ["L * *"] if "l" in reading.expanded[_DAY] else []
    if days and not _is_all(_DAY, days):
        kinds.insert(0, f"{_written(_DAY, days)} * *")
    elif not _is_all(_WEEKDAY, weekdays):
        kinds.append(f"* * {_written(_WEEKDAY, weekdays)}")
    return kinds or ["* * *"]
