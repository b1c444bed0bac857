"""The records that neighbours exchange over Redis, and the readers of the shapes that they write.

A reader accepts any of the documented shapes (docs/redis.md) and refuses content that it can't
understand with a `ContractError` that names the key, the member and what was expected.
"""

import contextlib
import json
import re
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shared.documents import SURROGATES, json_object, json_text, kind, member, printable, validated
from shared.errors import ContractError
from shared.schedule_members import schedule_members
from shared.yaml_reader import yaml_object

TRIGGER_MAX_BYTES = 1_000_000


class State(StrEnum):
    """The state of an experiment, as its author or the executor wrote it last."""

    DRAFT = "draft"
    READY = "ready"
    RUNNING = "running"
    RUN = "run"
    COMPLETED = "completed"
    FAILED = "failed"
    PAUSED = "paused"
    ARCHIVED = "archived"


RECURRING = frozenset({State.READY, State.RUN, State.COMPLETED, State.FAILED})
"""The states in which cron and speedrun take an experiment."""


def valid_id(value: object) -> str:
    """Return `value` if it can be the id of an experiment or a request; raises ValueError otherwise."""
    if not isinstance(value, str) or not value:
        hint = "" if isinstance(value, str) else ", in quotes if it looks like a number"
        raise ValueError(f"must be a non-empty text{hint}")
    categories = set() if value.isprintable() else {unicodedata.category(char) for char in value}
    if "Cc" in categories:
        raise ValueError("must not contain control characters")
    if "Cs" in categories:
        raise ValueError("must be UTF-8")
    if len(value) > 512:
        raise ValueError("must not be longer than 512 characters")
    return value


ExperimentId = Annotated[str, AfterValidator(valid_id)]


def _state(value: object) -> State:
    if value is None or value == "":
        return State.READY
    try:
        return State(value)  # type: ignore[arg-type]
    except ValueError:
        *others, last = State
        raise ValueError(f"expected {', '.join(others)} or {last}") from None


def _optional_text(value: object) -> str | None:
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    raise ValueError("must be a text")


PositiveNumber = Annotated[float, Field(gt=0)]
PositiveCount = Annotated[int, Field(ge=1)]
LimitKey = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\A[^\x00-\x1f\x7f]+\z")]


class WireRecord(BaseModel):
    """A record from outside: frozen, without infinite numbers, ignoring members that it does not have.

    Texts are converted to numbers and to true and false, because all values of a Redis hash are texts.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)


class Policy(WireRecord):
    """How the runs of an experiment are performed; None leaves the choice to the tool or the settings."""

    timeout_seconds: Annotated[float, Field(gt=0, le=30 * 86_400)] | None = None
    max_attempts: Annotated[int, Field(ge=1, le=1_000)] | None = None
    backoff_min: Annotated[float, Field(ge=0)] | None = None
    backoff_max: Annotated[float, Field(ge=0)] | None = None
    isolation: Literal["warm", "fork", "spawn"] | None = None
    overlap: Literal["skip", "queue", "allow"] | None = None
    catch_up: Literal["latest", "all", "none"] | None = None
    grace_seconds: Annotated[float, Field(ge=0)] | None = None
    on_worker_death: Literal["retry", "fail"] | None = None
    priority: Literal["high", "normal", "low"] | None = None
    memory_mb: PositiveCount | None = None
    cpu_seconds: PositiveCount | None = None
    file_size_mb: PositiveCount | None = None
    open_files: PositiveCount | None = None
    processes: PositiveCount | None = None
    max_concurrent: PositiveCount | None = None
    max_per_minute: PositiveNumber | None = None
    burst: PositiveCount | None = None
    limit_key: LimitKey | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    cache: bool | None = None


CONFINEMENT = ("sandbox", "capabilities")
"""Members of a tool's header that an experiment can't have: who writes one relies on it."""


class Experiment(Struct, frozen=True):
    """An experiment as its author wrote it, independent of its shape."""

    id: str
    state: State
    tool: str
    params: Mapping[str, Any]
    schedule: str | None
    timezone: str | None
    policy: Policy
    is_schedule_enabled: bool = True


class Trigger(WireRecord):
    """A request to run an experiment now."""

    experiment_id: ExperimentId
    request_id: ExperimentId | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    triggered_by: str | None = None
    traceparent: str | None = None


# -- readers --------------------------------------------------------------------------


def read_experiment(experiment_id: str, redis_type: str, content: Mapping[str, str] | str) -> Experiment:
    """Return the experiment stored at `experiments:{experiment_id}`.

    Args:
        experiment_id: everything after the first colon of the key.
        redis_type: the TYPE of the key, `hash` or `string`.
        content: the hash's fields, or the string.

    Raises:
        ContractError: names the key, the member and what was expected.
    """
    place = printable(f"experiments:{experiment_id}")
    match redis_type, content:
        case "hash", Mapping():
            experiment = _experiment_from_hash(experiment_id, place, content)
            _check_bytes(place, experiment.params, content.values())
        case "string", str():
            experiment = _experiment(experiment_id, place, json_object(place, content))
            _check_bytes(place, experiment.params, [content])
        case _:
            raise ContractError(wrong_type(place, redis_type, content, "a hash or a string with JSON"))
    return experiment


def _check_bytes(place: str, params: Mapping[str, Any], texts: Iterable[str]) -> None:
    """Refuse parameters with bytes that are not UTF-8, which no tool could be given as they are."""
    raw = "".join(text for text in texts if not text.isascii() and SURROGATES.search(text))
    if raw and SURROGATES.search(json_text(params, raw=raw)):
        raise ContractError(f"{place} member 'params' has bytes that are not UTF-8")


def place_of_state(document: str) -> tuple[str, str, str] | None:
    """Return the state in the JSON text of an experiment, and the texts before and after it.

    The texts are in the form that the executor writes.  The state of an experiment that is stored as a string
    can only be changed by replacing the whole text.

    None if the text is no JSON object, or its state is an unknown word.
    """
    try:
        root = json_object("", document)
        state = _state(_body(root).get("state"))
    except (ValueError, ContractError):
        return None
    mark = secrets.token_hex(16)
    _body(root)["state"] = mark
    before, _, after = json_text(root, raw=document).partition(mark)
    return state.value, before, after


def read_trigger(data: bytes | str) -> Trigger:
    """Return the trigger in a message from the `execute_now` channel.  Raises `ContractError`."""
    place, hint = "trigger", "Store a large input where the tool can fetch it, and pass its address"
    check_length(place, data, hint=f". {hint}")
    message = json_object(place, data)
    if isinstance(data, str) and not data.isascii():
        _check_bytes(place, message, [data])
    return validated(Trigger, place, without_nulls(message))


def read_experiment_file(place: str, text: str) -> Experiment:
    """Return the experiment in a file: YAML (or JSON) with `experiment:` at its root.

    Args:
        place: the name of the file, for error messages.
        text: its content.

    Raises:
        ContractError: names the file, the member and what was expected.
    """
    document = yaml_object(place, text)
    return _experiment(_body(document).get("id"), place, document)


# -- details --------------------------------------------------------------------------


def wrong_type(place: str, redis_type: str, content: object, expected: str) -> str:
    """Return what is wrong with a key of a type that holds no document."""
    if redis_type == "oversize":
        return f"{place} holds {content} (EXPERIMENT_MAX_BYTES)"
    return f"{place} is a Redis {redis_type}; expected {expected}"


def check_length(place: str, data: bytes | str, hint: str = "") -> None:
    """Raise `ContractError` if a message is too long to be read."""
    size_bytes = len(data if isinstance(data, bytes) else data.encode(errors="surrogatepass"))
    if size_bytes > TRIGGER_MAX_BYTES:
        raise ContractError(
            f"{place} is {size_bytes:,} bytes long; at most {TRIGGER_MAX_BYTES:,} are read{hint}"
        )


def _experiment_from_hash(experiment_id: str, place: str, fields: Mapping[str, str]) -> Experiment:
    if "spec" in fields:
        document = {**_body(yaml_object(f"{place} field 'spec'", fields["spec"]))}
    elif "execution" in fields:
        document = {"execution": object_in(f"{place} field 'execution'", fields["execution"])}
    elif "tool" in fields:
        document = dict(fields)
    else:
        raise ContractError(
            f"{place} has none of the fields 'tool', 'execution', 'spec'; one of them is expected"
        )
    if "state" in fields:
        document["state"] = fields["state"]
    return _experiment(experiment_id, place, document)


def experiment_failed(
    experiment_id: str | None,
    run_id: str | None,
    error: str | None,
    error_type: str | None,
    status: str = "failed",
) -> dict[str, Any]:
    """Return the members that every message about a failure has, on the result channel."""
    return {
        "type": "experiment_failed",
        "experiment_id": experiment_id,
        "run_id": run_id,
        "status": status,
        "error": error,
        "error_type": error_type,
    }


def _experiment(experiment_id: object, place: str, root: dict[str, Any]) -> Experiment:
    read = {name: read() for name, read in experiment_parts(experiment_id, lambda _: place, root).items()}
    schedule = read["schedule"]
    return Experiment(
        id=read["id"],
        state=read["state"],
        tool=read["tool"],
        params=read["params"],
        schedule=schedule.get("cron"),
        timezone=schedule.get("timezone"),
        policy=read["policy"],
        is_schedule_enabled=schedule.get("enabled", True),
    )


def experiment_parts(
    experiment_id: object, place: Callable[[str], str], root: dict[str, Any]
) -> dict[str, Callable[[], Any]]:
    """Return what reads the parts of an experiment; each raises `ContractError` about its own members.

    Args:
        experiment_id: its id.
        place: returns the place of a member, for error messages.
        root: the document.

    Raises:
        ContractError: `execution` is no object.
    """
    body = _body(root)
    execution = body.get("execution", body)
    if not isinstance(execution, dict):
        raise ContractError(
            f"{place('execution')} member 'execution' is {kind(execution)}; expected an object"
        )
    given = {name: value for name, value in {**body, **execution}.items() if value not in ("", None)}
    return {
        "id": lambda: _experiment_id(place("id"), experiment_id),
        "state": lambda: member(place("state"), "state", body.get("state"), _state),
        "tool": lambda: _tool(place("tool"), body, execution),
        "params": lambda: _params(place("params"), execution.get("params")),
        "schedule": lambda: _schedule_in(place, given),
        "confinement": lambda: _check_members(place, given),
        "policy": lambda: validated(Policy, place("policy"), given),
    }


def _experiment_id(place: str, value: object) -> str:
    if value is None:
        raise ContractError(f"{place} has no 'id', which names the experiment")
    return member(place, "id", value, valid_id)


def _schedule_in(place: Callable[[str], str], given: Mapping[str, Any]) -> dict[str, Any]:
    """`cron`, `timezone` and `enabled` of the schedule in an experiment; nothing if it has none."""
    zone = member(place("timezone"), "timezone", given.get("timezone"), _optional_text)
    schedule = given.get("schedule")
    if isinstance(schedule, Mapping):
        return {"timezone": zone} | schedule_members(f"{place('schedule')} member 'schedule'", schedule)
    return {"cron": member(place("schedule"), "schedule", schedule, _optional_text), "timezone": zone}


def _check_members(place: Callable[[str], str], given: Mapping[str, Any]) -> None:
    """Refuse a confinement, which only a tool's header can ask for."""
    for name in CONFINEMENT:
        if name in given:
            raise ContractError(
                f"{place(name)} member '{name}' can't be set by an experiment; "
                "set it in the header of the tool's file"
            )


def _body(root: dict[str, Any]) -> dict[str, Any]:
    """The experiment's own members, which the document may have below `experiment`."""
    inner = root.get("experiment")
    return inner if isinstance(inner, dict) else root


def _params(place: str, value: object) -> dict[str, Any]:
    if value in (None, "", "null"):
        return {}
    if isinstance(value, str):
        return object_in(f"{place} member 'params'", value)
    if isinstance(value, dict):
        return value
    raise ContractError(f"{place} member 'params' is {kind(value)}; expected an object")


def object_in(place: str, text: str) -> dict[str, Any]:
    """The object in a text, which some neighbours encode as JSON twice."""
    if text.lstrip()[:1] == '"':
        with contextlib.suppress(ValueError):
            text = str(json.loads(text))
    return json_object(place, text)


def without_nulls(members: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out members that are null: neighbours write null for "not given"."""
    return {name: value for name, value in members.items() if value is not None}


NO_TOOL = (None, "", "null", "None")
"""What stands for a missing tool, also as jq, yq and Python print it: a tool called so would be ordered."""

TOOL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_TOOL = re.compile(rf"{TOOL_NAME.pattern}(?:@sha256:[0-9a-f]{{64}})?")


def _tool(place: str, body: Mapping[str, Any], execution: Mapping[str, Any]) -> str:
    tool = execution.get("tool")
    if isinstance(tool, str):
        tool = tool.strip()  # `redis-cli -x` keeps the end of the line
    if tool in NO_TOOL:
        held = ", ".join(f"'{printable(name)}'" for name in execution if name != "tool") or "nothing"
        where = "it" if execution is body else "'execution'"
        raise ContractError(f"{place} has no 'tool', which names what is run; {where} holds {held}")
    return member(place, "tool", tool, _tool_name)


def _tool_name(value: object) -> str:
    if not isinstance(value, str) or not _TOOL.fullmatch(value):
        raise ValueError(
            "can't be a tool; a name has letters, digits, '_' and '-' (or is NAME@sha256:DIGEST)"
        )
    return value
