"""Reads the fields of a cron expression; what may stand in them is said in `cron.py`."""

import calendar
import re
from dataclasses import dataclass
from functools import lru_cache

from shared.errors import ScheduleError

_MAX_LENGTH = 1000
_ANY = ("*", "?", "*/1")
LAST = 0
"""Stands for the last day, or the last such weekday, of a month."""
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
class Column:
    """One field of an expression: its numbers, and names for the first of them."""

    name: str
    numbers: range
    allowed: str
    names: tuple[str, ...] = ()


SECOND = Column("second", range(60), "0-59")
MINUTE = Column("minute", range(60), "0-59")
HOUR = Column("hour", range(24), "0-23")
DAY = Column("day-of-month", range(1, 32), "1-31, L for the last day")
_MONTH_NAMES = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
MONTH = Column("month", range(1, 13), "1-12, JAN-DEC", _MONTH_NAMES)
_DAY_NAMES = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT", "7")
WEEKDAY = Column("day-of-week", range(7), "0-7, SUN-SAT, 5#2 (second Friday), 5L (last Friday)", _DAY_NAMES)
YEAR = Column("year", range(1970, 2200), "1970-2199")

_ITEM = re.compile(r"(?:\*|(?P<low>\w+)(?:-(?P<high>\w+))?)(?:/(?P<step>\d+))?", re.ASCII)
_NTH = re.compile(r"(?P<day>\w+)#(?P<rank>[1-5])|(?P<before>\w+)L|L(?P<after>\w+)", re.ASCII)
OPEN = re.compile(r"\*|\b(?<!-)\w+/", re.ASCII)
_BY_CHANCE = re.compile(r"[HR](?:[(/].*)?|.*~.*")


@dataclass(frozen=True, slots=True)
class Days:
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
                ends = day + 7 > length and (weekday, LAST) in self.nth
                if ends or weekday in self.weekdays or (weekday, rank) in self.nth:
                    due.add(day)
        return sorted(due)


def split(expression: str) -> list[str]:
    """The five to seven fields of an expression, in capitals, an alias replaced."""
    if len(expression) > _MAX_LENGTH:
        raise ScheduleError(f"it has {len(expression)} characters, more than the {_MAX_LENGTH} allowed")
    texts = expression.upper().split()
    if texts and texts[0].startswith("@"):
        texts = _ALIASES.get(" ".join(texts), "").split()
        if not texts:
            raise ScheduleError(f"no such alias; there are {', '.join(_ALIASES).lower()}")
    if not 5 <= len(texts) <= 7:
        order = "minute hour day-of-month month day-of-week"
        raise ScheduleError(
            f"{len(texts)} fields; write five ({order}), six (second first) or seven (year last)"
        )
    return texts


# Schedules share these: a hundred thousand of them would otherwise hold as many copies.
@lru_cache(maxsize=4096)
def read_values(column: Column, text: str) -> tuple[int, ...]:
    return tuple(sorted({number for item in text.split(",") for number in _item(column, item)}))


@lru_cache(maxsize=4096)
def read_days(day: str, weekday: str) -> Days:
    numbers, weekdays, nth = set[int](), set[int](), set[tuple[int, int]]()
    if day in _ANY:
        day = "*" if weekday in _ANY else ""
    for item in day.split(",") if day else []:
        numbers.update([LAST] if item == "L" else _item(DAY, item))
    for item in [] if weekday in _ANY else weekday.split(","):
        if match := _NTH.fullmatch(item):
            name = match["day"] or match["before"] or match["after"]
            nth.add((_number(WEEKDAY, name, item) % 7, int(match["rank"] or LAST)))
        else:
            weekdays.update(_item(WEEKDAY, item))
    return Days(tuple(sorted(numbers)), tuple(sorted(weekdays)), tuple(sorted(nth)))


def _item(column: Column, item: str) -> list[int]:
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
    if low > high and column is YEAR:
        raise _refusal(column, item)
    around = range(low, high + 1 + (size if low > high else 0), int(match["step"] or 1))
    return [column.numbers[(number - column.numbers[0]) % size] for number in around]


def _number(column: Column, text: str, item: str) -> int:
    if text in column.names:
        return column.numbers[0] + column.names.index(text)
    if not text.isdecimal() or int(text) not in column.numbers:
        raise _refusal(column, item)
    return int(text)


def _refusal(column: Column, item: str) -> ScheduleError:
    why = "; H, R and ~ would leave the time to chance" if _BY_CHANCE.fullmatch(item) else ""
    forms = f"lists (1,5), ranges (1-5) and steps of 1-{len(column.numbers)} (*/5)"
    return ScheduleError(f"the {column.name} is {item!r}; allowed are {column.allowed}, {forms}{why}")
