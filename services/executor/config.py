"""The settings of the service: environment > `.env` > `config/schedule.yaml` > defaults."""

import io
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar

from dotenv.parser import Binding, parse_stream
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from services.executor.artifacts import open_blobs
from services.executor.isolation.sandbox import Sandbox, known_capability
from services.executor.policy import is_withheld, variable_pattern
from shared import keys
from shared.connection import check_url
from shared.documents import Mistake, kind, mistakes, printable
from shared.errors import ArtifactError, ContractError, SettingsError
from shared.yaml_reader import yaml_value

FILE = Path("config/schedule.yaml")
ENV_FILE = Path(".env")

Item = TypeVar("Item")


class Mode(StrEnum):
    """Where runs come from; several modes can be combined."""

    TRIGGER = "trigger"
    CRON = "cron"
    SPEEDRUN = "speedrun"


class InFile(NamedTuple):
    """The member of `config/schedule.yaml` that sets a setting, as a path with dots."""

    member: str


def _split(value: Any) -> Any:
    """A list may be written as one text with commas."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _at_least_one(value: tuple[Item, ...]) -> tuple[Item, ...]:
    if not value:
        raise ValueError("must not be empty")
    return tuple(dict.fromkeys(value))


def _artifact_store(value: str) -> str:
    try:
        open_blobs(value)
    except ArtifactError as exc:
        raise ValueError(str(exc)) from None
    return value


def _not_withheld(name: str) -> str:
    if is_withheld(name):
        raise ValueError(f"{name} is the executor's connection to Redis, which no tool is given")
    return name


List = Annotated[tuple[Item, ...], BeforeValidator(_split)]
NonEmptyList = Annotated[List[Item], AfterValidator(_at_least_one)]
Capability = Annotated[str, AfterValidator(known_capability)]
Seconds = Annotated[float, Field(gt=0)]
SecondsOrZero = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Every setting of the service.  The environment variable of a setting is its name in upper case."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=False,
        env_ignore_empty=True,
        enable_decoding=False,  # a list is split at its commas; pydantic-settings would read it as JSON
    )

    redis_url: Annotated[str, AfterValidator(check_url)] = "redis://localhost:6379/0"
    """`redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `embedded` or `embedded:PATH`."""

    tools_path: Path = Path("tools")
    """Directory of the tools."""

    schedule_mode: Annotated[NonEmptyList[Mode], InFile("mode")] = (Mode.TRIGGER,)
    """Where runs come from."""

    trigger_channels: Annotated[NonEmptyList[str], InFile("trigger.channels")] = (keys.EXECUTE_NOW,)
    """Channels on which triggers are received."""

    experiment_max_bytes: Count = 1_000_000
    """The largest experiment, schedule or registration of a tool that is read."""

    channel_prefix: Annotated[str, Field(pattern=r"\A[A-Za-z0-9:._-]*\z", max_length=100)] = ""
    """Stands before the names of all channels, where several databases of a server have executors."""

    cron_check_interval: Annotated[Seconds, InFile("cron.check_interval")] = 60.0
    """Seconds between full readings of the schedules."""

    speedrun_interval: Annotated[Seconds, InFile("speedrun.interval_seconds")] = 5.0
    """Seconds from the start of a cycle to the start of the next."""

    speedrun_max_per_cycle: Annotated[Count, InFile("speedrun.max_experiments_per_cycle")] = 3
    """Experiments per cycle."""

    tool_execution_timeout: Annotated[Seconds, InFile("timeouts.tool_execution")] = 300.0
    """Time limit of an attempt, in seconds."""

    retry_max_attempts: Annotated[Count, InFile("retry.max_attempts")] = 3
    """Attempts per run."""

    retry_backoff_min: Annotated[SecondsOrZero, InFile("retry.backoff_min")] = 1.0
    """Shortest pause between two attempts, in seconds; at most `retry_backoff_max`."""

    retry_backoff_max: Annotated[SecondsOrZero, InFile("retry.backoff_max")] = 30.0
    """Longest pause between two attempts, in seconds."""

    concurrency: Annotated[int, Field(ge=1, le=1_000)] = 8
    """Slots of a worker: runs at the same time."""

    warm_processes: Annotated[int, Field(ge=1, le=1_000)] = 32
    """Tool processes that a worker keeps, busy ones included; at least `concurrency` + 1 are kept."""

    isolation: Literal["warm", "fork", "spawn"] = "warm"
    """What a run shares with the runs before it, unless the experiment or the tool chooses."""

    sandbox: Sandbox = Sandbox.PROCESS
    """Confinement of all tools: `off`, `process`, `files` or `files+network`."""

    sandbox_readable: List[Path] = ()
    """Further paths that tools can read whose files are confined."""

    tool_capabilities_allowed: List[Capability] = ()
    """Capabilities of root that tools may ask for."""

    tool_environment: List[Annotated[str, AfterValidator(_not_withheld)]] = ()
    """Names of the environment variables that every tool gets."""

    tool_environment_allowed: List[
        Annotated[str, AfterValidator(variable_pattern), AfterValidator(_not_withheld)]
    ] = ()
    """Names of variables that a tool gets if it asks for them; `MYAPP_*` stands for all that begin so."""

    shutdown_grace: SecondsOrZero = 30.0
    """Seconds that running tools get when the service stops."""

    heartbeat_ttl: Annotated[float, Field(ge=0.5)] = 3.0
    """Seconds without a heartbeat after which a worker counts as dead."""

    run_retention: Seconds = 30 * 86_400.0
    """Seconds that a run's record, log and recorded steps are kept, and an experiment's metrics."""

    metrics_kept: Count = 10_000
    """Metric events that are kept per experiment."""

    journal_kept: Count = 100_000
    """Entries that the journal keeps."""

    journal_max_bytes: Count = 64_000_000
    """The memory that the journal may take in Redis."""

    log_lines_kept: Count = 2_000
    """Log lines that are kept per run."""

    health_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of `/healthz`, `/readyz` and `/metrics`; 0 disables them."""

    health_host: str = "127.0.0.1"
    """Address on which the health port listens."""

    artifacts: Annotated[str, AfterValidator(_artifact_store)] = ".fullsend/artifacts"
    """Store of artifacts, large results and tools' code: a directory, or the URL of an object store."""

    inline_artifact_max_bytes: Annotated[int, Field(ge=0, le=1_000_000)] = 64_000
    """Artifacts and results up to this size are kept in the record itself."""

    bundles_path: Path = Path(".fullsend/bundles")
    """Directory in which packages and code named by digest are unpacked for import."""

    core_hour_price: Annotated[float, Field(ge=0)] = 0.0
    """What an hour of one core of your machines costs, for estimates and budgets of plans; 0 if not known."""

    price_currency: Annotated[str, Field(pattern=r"\A[A-Z]{3}\z")] = "USD"
    """Currency of `core_hour_price`, as ISO 4217 has it."""

    environments_path: Path = Path(".fullsend/environments")
    """Directory of the tools' own environments."""

    uv_config_file: str = ""
    """The only configuration file that uv reads; by default the user's, or else the system's uv.toml."""

    tool_builds_allowed: bool = False
    """Whether packages are built also for tools with the sandbox `files` or `files+network`."""

    environment_retention: Seconds = 30 * 86_400.0
    """Seconds after which an unused environment is deleted."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""

    @model_validator(mode="after")
    def _check_backoff(self) -> Self:
        if self.retry_backoff_min > self.retry_backoff_max:
            raise ValueError(
                f"RETRY_BACKOFF_MIN ({self.retry_backoff_min:g}) is more than "
                f"RETRY_BACKOFF_MAX ({self.retry_backoff_max:g})"
            )
        return self

    @property
    def file_variables(self) -> dict[str, str]:
        """All variables in `.env`, of which tools may be given some."""
        return {one.key: one.value for one in _bindings() if one.key is not None and one.value}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of the settings, the strongest first."""
        return init_settings, env_settings, EnvFileSource(cls), ScheduleFileSource(cls)


NAMES: Final = tuple(Settings.model_fields)
FILE_MEMBERS: Final = {
    one.member: name
    for name, field in Settings.model_fields.items()
    for one in field.metadata
    if isinstance(one, InFile)
}
"""The members of the settings file, with the setting that each one sets."""


def load(**overrides: Any) -> Settings:
    """Return the settings of this process.

    Args:
        overrides: values by name of the setting; stronger than all sources.

    Raises:
        SettingsError: one line per mistake, each with the place it was made in.
    """
    try:
        return Settings(**overrides)
    except ValidationError as exc:
        places = {**_places(), **dict.fromkeys(overrides, "")}
        lines = [_line(one, places) for one in mistakes(exc, NAMES)]
        raise SettingsError("\n".join(lines)) from None


def origins(settings: Settings) -> dict[str, str]:
    """Return where each of the settings of this process comes from, by name, for people to read."""
    places = _places()
    return {name: places[name] if name in settings.model_fields_set else "default" for name in NAMES}


def _places() -> dict[str, str]:
    """The place that each setting was read from, as far as a source has it."""
    return {
        **dict.fromkeys(ScheduleFileSource(Settings)(), str(FILE)),
        **dict.fromkeys(EnvFileSource(Settings)(), str(ENV_FILE)),
        **dict.fromkeys(EnvSettingsSource(Settings)(), "environment"),
    }


def _line(mistake: Mistake, places: Mapping[str, str]) -> str:
    """The mistake in one line, with the place it was made in."""
    if mistake.value is _REFUSED:
        return mistake.member
    name = mistake.member.partition(".")[0]
    if not name:  # two settings contradict each other; the message names both
        return mistake.problem
    value = "" if name == "redis_url" else f"={mistake.value}"  # the message has it without the password
    match places.get(name, ""):
        case "":
            return f"{name}{value}: {mistake.problem}"
        case "environment":
            return f"{name.upper()}{value}: {mistake.problem}"
        case place if place == str(FILE):
            member = next(member for member, known in FILE_MEMBERS.items() if known == name)
            return f"{place}: {member}: {mistake.value}: {mistake.problem}"
        case place:
            return f"{place}: {name.upper()}{value}: {mistake.problem}"


# -- sources --------------------------------------------------------------------------

_REFUSED: Final = object()
"""What a source returns as the value of a message about something that is not a setting.

pydantic refuses such a member, and so reports it together with all other mistakes.
"""


class _FileSource(PydanticBaseSettingsSource):
    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Return the value of one setting; the base class requires this method."""
        return self().get(field_name), field_name, False


class EnvFileSource(_FileSource):
    """Reads `.env`, without interpolation: `${HOME}` in a password is part of the password."""

    def __call__(self) -> dict[str, Any]:
        """Return the settings in the file; an empty value counts as not set."""
        try:
            bindings = _bindings()
        except (OSError, UnicodeDecodeError) as exc:
            return {f"{ENV_FILE} can't be read: {_reason(exc)}": _REFUSED}
        return _env_settings(bindings)


def _bindings() -> list[Binding]:
    """The lines of `.env`; none if there is no such file."""
    try:
        text = "" if ENV_FILE.is_dir() else ENV_FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return list(parse_stream(io.StringIO(text)))


def _env_settings(bindings: Iterable[Binding]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in bindings:
        if one.error:
            written = one.original.string
            blank_lines = written[: len(written) - len(written.lstrip())].count("\n")
            found[f"{ENV_FILE} line {one.original.line + blank_lines} can't be read"] = _REFUSED
        elif one.key is not None and one.key.lower() in NAMES and one.value:
            found[one.key.lower()] = one.value
    return found


class ScheduleFileSource(_FileSource):
    """Reads `config/schedule.yaml`."""

    def __call__(self) -> dict[str, Any]:
        """Return the settings in the file; a member or a section without a value counts as not set."""
        try:
            content = yaml_value(str(FILE), FILE.read_text(encoding="utf-8"), finite=False)
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as exc:
            return {f"{FILE} can't be read: {_reason(exc)}": _REFUSED}
        except ContractError as exc:
            return {str(exc): _REFUSED}
        if not isinstance(content, dict | None):
            return {f"{FILE} is {kind(content)}; expected members such as `mode: trigger`": _REFUSED}
        members = sorted(_flattened(content or {}).items())
        return {_setting(name): value if name in FILE_MEMBERS else _REFUSED for name, value in members}


def _setting(member: str) -> str:
    """The setting that a member of the file sets, or the message that there is none."""
    known = ", ".join(FILE_MEMBERS)
    return FILE_MEMBERS.get(member) or f"{FILE}: {printable(member)} is not a setting; known are {known}"


def _flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The members that have a value, by their paths with dots."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        path = f"{prefix}{name}"
        if isinstance(value, dict):
            flat |= _flattened(value, f"{path}.")
        elif value is not None or not any(f"{known}.".startswith(f"{path}.") for known in FILE_MEMBERS):
            flat[path] = value
    return flat


def _reason(exc: OSError | UnicodeDecodeError) -> str:
    return exc.strerror or str(exc) if isinstance(exc, OSError) else " ".join(str(exc).split())
