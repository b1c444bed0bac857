"""Reads a schedule that is a mapping: `{cron: 0 9 * * MON}`, or `{frequency: daily, time: "09:00"}`.

What has one plain meaning becomes a cron expression.  Anything else is refused with the name of the member,
because a schedule that is read in part would be due at wrong times.
"""

import re
from collections.abc import Mapping
from typing import Any

from shared.documents import kind, shown
from shared.errors import ContractError

_CRON = ("cron", "schedule", "expression")
_ZONES = ("timezone", "tz")
_SWITCHES = {"enabled": True, "active": True, "paused": False, "disabled": False}
"""Members that turn a schedule on or off, and the value with which it is on."""

_DESCRIPTIVE = ("type", "name", "description", "comment", "created_at", "updated_at", "experiment_id")
_DAYS = ("day", "days", "weekday", "day_of_week")
_DATES = ("day", "day_of_month")
_TIMES = ("time", "at")
_MEMBERS_OF = {"hourly": (), "daily": (), "weekdays": (), "weekly": _DAYS, "monthly": _DATES}
"""The members that say on which days a frequency is due."""

_WEEK = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_TIME = re.compile(
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::00)?(?:\s*(?P<half>[ap])\.?m\.?)?", re.I | re.ASCII
)
_OPTIONAL = (None, "")


def schedule_members(place: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return `cron`, and `timezone` and `enabled` where they are given.

    Args:
        place: what the mapping is, for error messages.
        given: its members.

    Raises:
        ContractError: names the member that can't be read, or that is missing.
    """
    members = {name: value for name, value in given.items() if value not in _OPTIONAL}
    found = zone_and_switch(place, members)
    cron = _one_of(place, members, _CRON)
    read = {*_ZONES, *_SWITCHES, *_DESCRIPTIVE, "state", "status"}
    if cron is not None:
        read.update(_CRON)
        found["cron"] = cron[1]
    else:
        found["cron"], names = _frequency(place, members)
        read.update(names)
    for name in members:
        if name not in read:
            raise ContractError(
                f"{place} member '{name}' is {shown(members[name])}, which can't be read; "
                "write a cron expression such as \"0 9 * * MON\", and if need be 'timezone'"
            )
    return found


def zone_and_switch(place: str, members: Mapping[str, Any]) -> dict[str, Any]:
    """Return `timezone`, and `enabled` if it is False, as far as members say so.  Raises `ContractError`."""
    said: dict[str, Any] = {}
    if zone := _one_of(place, members, _ZONES):
        said["timezone"] = zone[1]
    for name, on in _SWITCHES.items():
        value = members.get(name)
        if value is None:
            continue
        text = str(value).lower()
        if text not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise ContractError(f"{place} member '{name}' is {shown(value)}: expected true or false")
        if (text in ("true", "1", "yes", "on")) is not on:
            said["enabled"] = False
    for name in ("state", "status"):
        if name in members and not _is_active(place, name, members[name]):
            said["enabled"] = False
    return said


def _is_active(place: str, name: str, state: Any) -> bool:
    """Whether a schedule in this state is on.  Raises ContractError for an unknown state."""
    if state not in (*_OPTIONAL, "active", "paused", "completed"):
        raise ContractError(
            f"{place} member '{name}' is {shown(state)}: expected active, paused or completed"
        )
    return state not in ("paused", "completed")


def _one_of(place: str, members: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, str] | None:
    """The member that has one of these names, and its text."""
    for name in names:
        value = members.get(name)
        if value is not None and not isinstance(value, str):
            raise ContractError(f"{place} member '{name}' is {kind(value)}; expected a text")
    given = [(name, members[name]) for name in names if name in members]
    if len({value for _, value in given}) > 1:
        both = " and ".join(f"'{name}'" for name, _ in given)
        raise ContractError(f"{place} has {both}, which differ; leave one out")
    return given[0] if given else None


# -- frequencies ----------------------------------------------------------------------


def _frequency(place: str, members: Mapping[str, Any]) -> tuple[str, set[str]]:
    """The cron expression of a frequency, and the names of the members that say it."""
    if "frequency" not in members:
        unread = [
            name for name in members if name not in (*_ZONES, *_SWITCHES, *_DESCRIPTIVE, "state", "status")
        ]
        if unread:
            raise ContractError(
                f"{place} member '{unread[0]}' is {shown(members[unread[0]])}, which can't be read; "
                "write 'cron' with an expression such as \"0 9 * * MON\""
            )
        raise ContractError(f"{place} has no 'cron'")
    frequency = str(members["frequency"]).lower()
    if frequency not in _MEMBERS_OF:
        raise ContractError(
            f"{place} member 'frequency' is {shown(members['frequency'])}: expected "
            f"{', '.join(_MEMBERS_OF)}; for others write 'cron' with an expression"
        )
    read = {"frequency", *_MEMBERS_OF[frequency]}
    if frequency == "hourly":
        return "0 * * * *", read
    name, time = _one_of(place, members, _TIMES) or ("time", "")
    clock = _clock(place, name, time)
    read.update(_TIMES)
    if frequency == "daily":
        return f"{clock} * * *", read
    if frequency == "weekdays":
        return f"{clock} * * MON-FRI", read
    names = _MEMBERS_OF[frequency]
    given = [one for one in names if one in members]
    if not given:
        raise ContractError(f"{place} is {frequency}, and has no '{names[0]}'")
    if len(given) > 1:
        raise ContractError(f"{place} has {' and '.join(map(repr, given))}; leave one out")
    [day] = given
    if frequency == "weekly":
        return f"{clock} * * {_week_days(place, day, members[day])}", read
    return f"{clock} {_date(place, day, members[day])} * *", read


def _clock(place: str, name: str, text: str) -> str:
    """Minute and hour of a time such as 09:00 or 9:00 PM."""
    if not text:
        raise ContractError(f"{place} has no '{name}', such as \"09:00\"")
    found = _TIME.fullmatch(text.strip())
    hour, minute = (int(found["hour"]), int(found["minute"])) if found else (99, 99)
    half = found["half"] if found else None
    if half:
        hour = hour % 12 + (12 if half in "pP" else 0) if 1 <= hour <= 12 else 99
    if hour > 23 or minute > 59:
        raise ContractError(f"{place} member '{name}' is {shown(text)}: expected a time such as \"09:00\"")
    return f"{minute} {hour}"


def _week_days(place: str, name: str, value: object) -> str:
    """Days of the week as cron has them.  A number isn't read: systems count them from different days."""
    given = value if isinstance(value, list) else str(value).split(",")
    found = []
    for one in given:
        text = str(one).strip().lower()
        matching = [day for day in _WEEK if len(text) >= 3 and day.startswith(text)]
        if not matching:
            raise ContractError(
                f"{place} member '{name}' is {shown(value)}: expected names of days such as monday"
            )
        found.append(matching[0][:3].upper())
    if not found:
        raise ContractError(f"{place} has no day in '{name}'; expected names of days such as monday")
    return ",".join(found)


def _date(place: str, name: str, value: object) -> str:
    if str(value).lower() == "last":
        return "L"
    if str(value).isdecimal() and 1 <= int(str(value)) <= 28:
        return str(int(str(value)))
    raise ContractError(
        f"{place} member '{name}' is {shown(value)}: expected 1 to 28, which every month has, or last; "
        "for others write 'cron' with an expression"
    )
