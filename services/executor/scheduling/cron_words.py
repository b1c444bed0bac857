"""Says in words when a schedule fires: cron-descriptor, given one plain thing at a time."""

from cron_descriptor import DescriptionTypeEnum, ExpressionDescriptor, Options  # type: ignore[import-untyped]

from services.executor.scheduling.cron_fields import (
    DAY,
    HOUR,
    LAST,
    MINUTE,
    MONTH,
    SECOND,
    WEEKDAY,
    YEAR,
    Column,
    Days,
)


def describe(
    seconds: tuple[int, ...],
    minutes: tuple[int, ...],
    hours: tuple[int, ...],
    days: Days,
    months: tuple[int, ...],
    years: tuple[int, ...],
) -> str:
    """The schedule in words, such as `At 09:00 AM, only on Monday`."""
    clock = f"{_written(SECOND, seconds)} {_written(MINUTE, minutes)} {_written(HOUR, hours)}"
    whole = _descriptor(f"{clock} * {_written(MONTH, months)} * {_written(YEAR, years)}")
    words = whole.get_description(DescriptionTypeEnum.TIMEOFDAY) + _day_words(days)
    words += whole.get_description(DescriptionTypeEnum.MONTH)
    words += whole.get_description(DescriptionTypeEnum.YEAR)
    words = whole.transform_verbosity(words, use_verbose_format=False)
    return f"{words[:1].upper()}{words[1:]}"


def _descriptor(expression: str) -> ExpressionDescriptor:
    return ExpressionDescriptor(expression, Options(locale_code="en_US", use_24hour_time_format=False))


def _written(column: Column, values: tuple[int, ...]) -> str:
    """`values` in the plainest notation: cron-descriptor words the odder ones wrongly."""
    first, size, count = values[0], len(column.numbers), len(values)
    step = values[1] - first if count > 1 else size
    if values != tuple(range(first, values[-1] + 1, step)) or (count < 4 and size != 60):
        return ",".join(map(str, values))
    by = f"/{step}" if step > 1 else ""
    if first == column.numbers[0] and count > 1 and count * step == size:
        return f"*{by}"
    return f"{first}-{values[-1]}{by}" if count > 3 else ",".join(map(str, values))


def _day_words(days: Days) -> str:
    """The days in words, each kind described by itself, as cron-descriptor mixes them up."""
    numbers = tuple(number for number in days.numbers if number != LAST)
    if len(numbers) == 31 or len(days.weekdays) == 7:
        return ""
    kinds = [f"{_written(DAY, numbers)} * *"] if numbers else []
    kinds += ["L * *"] if LAST in days.numbers else []
    kinds += [f"* * {_written(WEEKDAY, days.weekdays)}"] if days.weekdays else []
    kinds += [f"* * {weekday}#{rank}" if rank else f"* * {weekday}L" for weekday, rank in days.nth]
    parts = []
    for described in (_descriptor(f"0 0 0 {kind} *") for kind in kinds):
        part = described.get_description(DescriptionTypeEnum.DAYOFMONTH)
        parts.append(part + described.get_description(DescriptionTypeEnum.DAYOFWEEK))
    return str(parts[0]) + "".join(
        f", or {part.removeprefix(', ').removeprefix('only ')}" for part in parts[1:]
    )
