"""Schedules: the record, and the readers of the shapes in which neighbours write it (docs/redis.md)."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from shared.documents import json_object, json_text, printable, validated
from shared.errors import ContractError
from shared.messages import ExperimentId, WireRecord, check_length, object_in, without_nulls, wrong_type
from shared.schedule_members import schedule_members, zone_and_switch


class Schedule(WireRecord):
    """When an experiment runs.  The cron expression is only checked when it is parsed."""

    experiment_id: ExperimentId
    cron: Annotated[str, Field(min_length=1)]
    timezone: str | None = None
    enabled: bool = True

    def to_json(self) -> str:
        """Return the text that `read_schedule` reads."""
        return json_text(self.model_dump(exclude_none=True))


def read_schedule(experiment_id: str, redis_type: str, content: Mapping[str, str] | str) -> Schedule:
    """Return the schedule stored at `schedules:{experiment_id}`.  Raises `ContractError`."""
    place = printable(f"schedules:{experiment_id}")
    match redis_type, content:
        case "hash", Mapping():
            members: dict[str, Any] = dict(content)
        case "string", str() if content.lstrip().startswith(("{", '"{')):
            members = object_in(place, content)
        case "string", str():
            members = {"cron": content}
        case _:
            raise ContractError(wrong_type(place, redis_type, content, "a string or a hash"))
    return _schedule(place, {**members, "experiment_id": experiment_id})


def read_schedule_message(data: bytes | str) -> Schedule:
    """Return the schedule in a message from the `schedules` channel.  Raises `ContractError`."""
    place = "schedule message"
    check_length(place, data)
    return _schedule(place, json_object(place, data))


def _schedule(place: str, members: dict[str, Any]) -> Schedule:
    known = without_nulls(
        {name: one for name, one in members.items() if one != "" or name == "experiment_id"}
    )
    cron = known.get("cron") or known.get("schedule") or known.get("expression")
    if isinstance(cron, str) and cron.lstrip().startswith("{"):
        cron = json_object(f"{place} member 'cron'", cron)
    beside = zone_and_switch(place, known)
    if cron is None or isinstance(cron, dict):
        read = schedule_members(place, known if cron is None else cron)
    else:
        read = {"cron": cron}
    return validated(Schedule, place, known | beside | read)
