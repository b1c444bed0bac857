"""Settings: environment > .env > config/schedule.yaml > defaults.  Read once, at the start, by `main`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta

from services.executor.artifacts import open_blobs
from services.executor.isolation.sandbox import Sandbox
from shared import keys
from shared.connection import check_url
from shared.errors import ArtifactError, SettingsError
from shared.members import Misfits, Mistake, finite, read

FILE = Path("config/schedule.yaml")
ENV_FILE = Path(".env")

FILE_MEMBERS = {
    "mode": "schedule_mode",
    "trigger.channels": "trigger_channels",
    "cron.check_interval": "cron_check_interval",
    "speedrun.interval_seconds": "speedrun_interval",
    "speedrun.max_experiments_per_cycle": "speedrun_max_per_cycle",
    "timeouts.tool_execution": "tool_execution_timeout",
    "retry.max_attempts": "retry_max_attempts",
    "retry.backoff_min": "retry_backoff_min",
    "retry.backoff_max": "retry_backoff_max",
}
"""Members of the settings file, by the field each one sets."""


LISTS = frozenset({"schedule_mode", "trigger_channels", "tool_environment", "sandbox_readable"})
"""Fields whose values may be written in one text, with commas in between."""


class Mode(StrEnum):
    """Where runs come from; several may be combined."""

    TRIGGER = "trigger"
    CRON = "cron"
    SPEEDRUN = "speedrun"


T = TypeVar("T")


def _not_empty(value: tuple[T, ...]) -> tuple[T, ...]:
    if not value:
        raise ValueError("names nothing")
    return tuple(dict.fromkeys(value))


def _storable_kind(value: str) -> str:
    try:
        open_blobs(value)
    except ArtifactError as exc:
        raise ValueError(str(exc)) from None
    return value


def _reachable_kind(value: str) -> str:
    try:
        return check_url(value)
    except SettingsError as exc:
        raise ValueError(str(exc)) from None


Seconds = Annotated[float, Meta(gt=0), finite]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting of the service, as `load` found it; a field's upper-case name is its variable."""

    redis_url: Annotated[str, _reachable_kind] = "redis://localhost:6379/0"
    tools_path: Path = Path("tools")
    schedule_mode: Annotated[tuple[Mode, ...], _not_empty] = (Mode.TRIGGER,)
    trigger_channels: Annotated[tuple[str, ...], _not_empty] = (keys.EXECUTE_NOW,)
    speedrun_interval: Seconds = 5.0
    speedrun_max_per_cycle: Annotated[int, Meta(ge=1)] = 3
    cron_check_interval: Seconds = 60.0
    tool_execution_timeout: Seconds = 300.0
    retry_max_attempts: Annotated[int, Meta(ge=1)] = 3
    retry_backoff_min: Annotated[float, Meta(ge=0), finite] = 1.0
    retry_backoff_max: Annotated[float, Meta(ge=0), finite] = 30.0
    concurrency: Annotated[int, Meta(ge=1, le=1_000)] = 8
    warm_processes: Annotated[int, Meta(ge=1, le=1_000)] = 32
    isolation: Literal["warm", "fork", "spawn"] = "warm"
    tool_environment: tuple[str, ...] = ()
    sandbox: Sandbox = Sandbox.OFF
    sandbox_readable: tuple[Path, ...] = ()
    shutdown_grace: Annotated[float, Meta(ge=0), finite] = 30.0
    heartbeat_ttl: Annotated[float, Meta(ge=0.5), finite] = 3.0
    run_retention: Seconds = 30 * 86_400.0
    metrics_kept: Annotated[int, Meta(ge=1)] = 10_000
    journal_kept: Annotated[int, Meta(ge=1)] = 100_000
    log_lines_kept: Annotated[int, Meta(ge=1)] = 2_000
    environments_path: Path = Path(".fullsend/environments")
    artifacts: Annotated[str, _storable_kind] = ".fullsend/artifacts"
    inline_artifact_max_bytes: Annotated[int, Meta(ge=0, le=1_000_000)] = 64_000
    bundles_path: Path = Path(".fullsend/bundles")
    environment_retention: Seconds = 30 * 86_400.0
    health_port: Annotated[int, Meta(ge=0, le=65_535)] = 0
    health_host: str = "127.0.0.1"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    given: frozenset[str] = field(default=frozenset(), init=False, compare=False, repr=False)
    """The settings that somebody chose; the others are at their defaults."""


NAMES = tuple(one.name for one in fields(Settings) if one.init)


def load(**overrides: Any) -> Settings:
    """The settings as this process finds them.

    Args:
        overrides: values stronger than everything else, by field name.

    Raises:
        SettingsError: one line per mistake, each with the place it was made in.
    """
    variables, lines = _variables(), _lines()
    members = {**_members(), **lines, **variables, **overrides}
    try:
        settings = read(Settings, {name: _split(name, value) for name, value in members.items()})
    except Misfits as exc:
        mistakes = [_said(one, overrides, variables, lines) for one in exc.mistakes]
        raise SettingsError("\n".join(mistakes)) from None
    if settings.retry_backoff_min > settings.retry_backoff_max:
        raise SettingsError(
            f"RETRY_BACKOFF_MIN ({settings.retry_backoff_min:g}) is more than "
            f"RETRY_BACKOFF_MAX ({settings.retry_backoff_max:g})"
        )
    object.__setattr__(settings, "given", frozenset(members))
    return settings


def origins(settings: Settings) -> dict[str, str]:
    """Where each of the settings that were loaded comes from, by field name; for people to look at."""
    variables, lines = _variables(), _lines()

    def origin(name: str) -> str:
        if name in variables:
            return "environment"
        if name in lines:
            return str(ENV_FILE)
        return str(FILE) if name in settings.given else "default"

    return {name: origin(name) for name in NAMES}


def _variables() -> dict[str, str]:
    """What the environment says, by field name; what is empty says nothing."""
    return {name.lower(): value for name, value in os.environ.items() if value and name.lower() in NAMES}


def _lines() -> dict[str, str]:
    """What `.env` says, likewise."""
    try:
        if not ENV_FILE.exists() or ENV_FILE.is_dir():
            return {}
        # Here, for most workers have no such file.
        from dotenv import dotenv_values

        found = dotenv_values(ENV_FILE, encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{ENV_FILE} can't be read: {exc}") from None
    return {name.lower(): value for name, value in found.items() if value and name.lower() in NAMES}


def _split(name: str, value: Any) -> Any:
    """What a list in one text says; other values as they are."""
    if name not in LISTS or not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _said(
    one: Mistake, overrides: Mapping[str, Any], variables: Mapping[str, str], lines: Mapping[str, str]
) -> str:
    """A mistake in one line, with the place it was made in."""
    name = one.name.partition(".")[0]
    found = "" if name == "redis_url" else f"={one.value}"  # the message has it, without the password
    if name in overrides:
        return f"{name}{found}: {one.message}"
    if name in variables:
        return f"{name.upper()}{found}: {one.message}"
    if name in lines:
        return f"{ENV_FILE}: {name.upper()}{found}: {one.message}"
    member = next(member for member, known in FILE_MEMBERS.items() if known == name)
    return f"{FILE}: {member}: {one.value}: {one.message}"


def _members() -> dict[str, Any]:
    """What the settings file says, by field name."""
    members = _flattened(_read_file())
    members = {name: value for name, value in members.items() if not _is_left_out(name, value)}
    unknown = sorted(set(members) - set(FILE_MEMBERS))
    if unknown:
        known = ", ".join(FILE_MEMBERS)
        raise SettingsError(
            "\n".join(f"{FILE}: {name} is not a setting; known are {known}" for name in unknown)
        )
    return {FILE_MEMBERS[name]: value for name, value in members.items()}


def _is_left_out(name: str, value: Any) -> bool:
    """A member, or a whole section, with nothing behind its name."""
    known = any(f"{member}.".startswith(f"{name}.") for member in FILE_MEMBERS)
    return value is None and known


def _read_file() -> dict[str, Any]:
    try:
        text = FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{FILE} can't be read: {' '.join(str(exc).split())}") from None
    # Here, for a worker that finds no such file needs no YAML to start.
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as exc:
        raise SettingsError(f"{FILE} can't be read: {' '.join(str(exc).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{FILE} holds no members; expected `mode: trigger` and the like")
    return content


def _flattened(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
