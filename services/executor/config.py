"""Settings: environment > .env > config/schedule.yaml > defaults.  Read once, at the start, by `main`."""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from dotenv import dotenv_values
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from services.executor.artifacts import open_blobs
from services.executor.isolation.sandbox import Sandbox
from shared import keys
from shared.connection import check_url
from shared.errors import ArtifactError, SettingsError

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


class Mode(StrEnum):
    """Where runs come from; several may be combined."""

    TRIGGER = "trigger"
    CRON = "cron"
    SPEEDRUN = "speedrun"


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """Every setting of the service; a field's upper-case name is its environment variable."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    redis_url: str = "redis://localhost:6379/0"
    tools_path: Path = Path("tools")
    schedule_mode: Annotated[tuple[Mode, ...], NoDecode] = (Mode.TRIGGER,)
    trigger_channels: Annotated[tuple[str, ...], NoDecode] = (keys.EXECUTE_NOW,)
    speedrun_interval: Seconds = 5.0
    speedrun_max_per_cycle: Annotated[int, Field(ge=1)] = 3
    cron_check_interval: Seconds = 60.0
    tool_execution_timeout: Seconds = 300.0
    retry_max_attempts: Annotated[int, Field(ge=1)] = 3
    retry_backoff_min: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    retry_backoff_max: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    concurrency: Annotated[int, Field(ge=1, le=1_000)] = 8
    warm_processes: Annotated[int, Field(ge=1, le=1_000)] = 32
    isolation: Literal["warm", "fork", "spawn"] = "warm"
    tool_environment: Annotated[tuple[str, ...], NoDecode] = ()
    sandbox: Sandbox = Sandbox.OFF
    sandbox_readable: Annotated[tuple[Path, ...], NoDecode] = ()
    shutdown_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    heartbeat_ttl: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] = 3.0
    run_retention: Seconds = 30 * 86_400.0
    metrics_kept: Annotated[int, Field(ge=1)] = 10_000
    journal_kept: Annotated[int, Field(ge=1)] = 100_000
    log_lines_kept: Annotated[int, Field(ge=1)] = 2_000
    environments_path: Path = Path(".fullsend/environments")
    artifacts: str = ".fullsend/artifacts"
    inline_artifact_max_bytes: Annotated[int, Field(ge=0, le=1_000_000)] = 64_000
    bundles_path: Path = Path(".fullsend/bundles")
    environment_retention: Seconds = 30 * 86_400.0
    health_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    health_host: str = "127.0.0.1"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator(
        "schedule_mode", "trigger_channels", "tool_environment", "sandbox_readable", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("schedule_mode", "trigger_channels")
    @classmethod
    def _not_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names nothing")
        return tuple(dict.fromkeys(value))

    @field_validator("artifacts")
    @classmethod
    def _storable_kind(cls, value: str) -> str:
        try:
            open_blobs(value)
        except ArtifactError as exc:
            raise ValueError(str(exc)) from None
        return value

    @field_validator("redis_url")
    @classmethod
    def _reachable_kind(cls, value: str) -> str:
        try:
            return check_url(value)
        except SettingsError as exc:
            raise ValueError(str(exc)) from None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.retry_backoff_min > self.retry_backoff_max:
            raise ValueError(
                f"RETRY_BACKOFF_MIN ({self.retry_backoff_min:g}) is more than "
                f"RETRY_BACKOFF_MAX ({self.retry_backoff_max:g})"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, dotenv_settings, _FileSource(settings_cls)


def load(**overrides: Any) -> Settings:
    """The settings as this process finds them.

    Args:
        overrides: values stronger than everything else, by field name.

    Raises:
        SettingsError: one line per mistake, each with the place it was made in.
    """
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        lines = [_mistake(error, overrides) for error in exc.errors(include_url=False)]
        raise SettingsError("\n".join(lines)) from None
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{ENV_FILE} can't be read: {exc}") from None


def origins(settings: Settings) -> dict[str, str]:
    """Where each of the settings that were loaded comes from, by field name; for people to look at."""
    variables, lines = _written()

    def origin(field: str) -> str:
        if field in variables:
            return "environment"
        if field in lines:
            return str(ENV_FILE)
        return str(FILE) if field in settings.model_fields_set else "default"

    return {field: origin(field) for field in Settings.model_fields}


def _written() -> tuple[set[str], set[str]]:
    """The names in the environment and in `.env`, as fields are called; what is empty says nothing."""
    variables = {name.lower() for name, value in os.environ.items() if value}
    lines = {name.lower() for name, value in dotenv_values(ENV_FILE).items() if value}
    return variables, lines


def _mistake(error: Any, overrides: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return message
    field = str(error["loc"][0])
    member = next((member for member, name in FILE_MEMBERS.items() if name == field), field)
    found = "" if field == "redis_url" else f"={error['input']}"  # the message has it, without the password
    variables, lines = _written()
    if field in overrides:
        return f"{field}{found}: {message}"
    if field in variables:
        return f"{field.upper()}{found}: {message}"
    if field in lines:
        return f"{ENV_FILE}: {field.upper()}{found}: {message}"
    return f"{FILE}: {member}: {error['input']}: {message}"


class _FileSource(PydanticBaseSettingsSource):
    """The settings file, flattened to field names."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return self().get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
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
        content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as exc:
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
