"""Settings: environment > .env > config/schedule.yaml > defaults."""

from enum import StrEnum
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from pydantic import ValidationError

from services.executor import config
from services.executor.config import FILE_MEMBERS, NAMES, Mode, Settings, load, origins
from services.executor.isolation.sandbox import Sandbox
from tests.unit.executor.conftest import Write

pytestmark = pytest.mark.usefixtures("elsewhere")

# Four values for each setting, as text and as they are read: none is the default.
Values = list[tuple[str, Any]]
SPECIAL: dict[str, Values] = {
    "redis_url": [(f"redis://{name}/1", f"redis://{name}/1") for name in "abcd"],
    "schedule_mode": [
        ("cron", (Mode.CRON,)),
        ("speedrun", (Mode.SPEEDRUN,)),
        ("trigger,cron", (Mode.TRIGGER, Mode.CRON)),
        ("cron,speedrun", (Mode.CRON, Mode.SPEEDRUN)),
    ],
    "sandbox": [(one.value, one) for one in (Sandbox.FILES, Sandbox.FILES_AND_NETWORK)] * 2,
    "sandbox_readable": [(text, (Path(text),)) for text in "abcd"],
    "tool_capabilities_allowed": [
        (text, tuple(text.split(","))) for text in ("chown", "net_raw,chown", "setuid", "net_raw")
    ],
    "artifacts": [(text, text) for text in ("a", "file:///b", "s3://c/d", "memory://e")],
    "price_currency": [(text, text) for text in ("EUR", "GBP", "CHF", "JPY")],
    "retry_backoff_max": [("41", 41), ("42", 42), ("43", 43), ("44", 44)],
}


def default_of(field: str) -> Any:
    return Settings.model_fields[field].default


def values_of(field: str) -> Values:
    """Values that differ from the default, and from each other where there are as many."""
    if field in SPECIAL:
        return SPECIAL[field]
    kind, default = get_type_hints(Settings)[field], default_of(field)
    if kind is bool:
        return [(str(not default).lower(), not default)] * 4
    if get_origin(kind) is Literal or (isinstance(kind, type) and issubclass(kind, StrEnum)):
        choices = get_args(kind) or list(kind)
        return ([(str(one), one) for one in choices if one != default] * 4)[:4]
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return [(text, tuple(map(item, text.split(",")))) for text in ("a", "a,b", "b,c", "d")]
    if kind in (str, Path):
        return [(text, kind(text)) for text in "abcd"]
    return [(str(number), number) for number in (11, 12, 13, 14)]


def in_file(member: str, text: str) -> str:
    """`a.b` and a value as the YAML of the settings file."""
    document: Any = text
    for name in reversed(member.split(".")):
        document = {name: document}
    return yaml.safe_dump(document)


# -- what is stronger -----------------------------------------------------------------


@pytest.mark.parametrize("field", sorted(NAMES))
def test_the_environment_overrides_the_env_file(
    field: str, env_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, first), (second_text, second), (third_text, third), _ = values_of(field)

    assert getattr(load(), field) == default_of(field)
    env_file(f"{field.upper()}={second_text}\n")
    assert getattr(load(), field) == second
    monkeypatch.setenv(field.upper(), third_text)
    assert getattr(load(), field) == third
    assert getattr(load(**{field: first}), field) == first


@pytest.mark.parametrize(("member", "field"), FILE_MEMBERS.items())
def test_the_env_file_overrides_the_settings_file(
    member: str, field: str, file: Write, env_file: Write
) -> None:
    (first_text, first), (second_text, second), *_ = values_of(field)

    file(in_file(member, first_text))
    assert getattr(load(), field) == first
    env_file(f"{field.upper()}={second_text}\n")
    assert getattr(load(), field) == second


@pytest.mark.parametrize("field", sorted(NAMES))
def test_an_empty_variable_counts_as_not_set(
    field: str, env_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(field.upper(), "")
    assert getattr(load(), field) == default_of(field)

    env_file(f"{field.upper()}={values_of(field)[0][0]}\n")

    assert getattr(load(), field) == values_of(field)[0][1]


def test_the_names_of_the_contract_are_variables() -> None:
    names = """REDIS_URL TOOLS_PATH SCHEDULE_MODE SPEEDRUN_INTERVAL SPEEDRUN_MAX_PER_CYCLE CRON_CHECK_INTERVAL
        TOOL_EXECUTION_TIMEOUT RETRY_MAX_ATTEMPTS RETRY_BACKOFF_MIN RETRY_BACKOFF_MAX CONCURRENCY"""

    assert {name.lower() for name in names.split()} <= set(NAMES)


def test_the_members_of_the_file_are_those_of_the_contract() -> None:
    names = """mode trigger.channels cron.check_interval speedrun.interval_seconds
        speedrun.max_experiments_per_cycle timeouts.tool_execution
        retry.max_attempts retry.backoff_min retry.backoff_max"""

    assert list(FILE_MEMBERS) == names.split()


def test_the_file_in_the_repository_has_the_defaults(file: Write) -> None:
    defaults = load()
    file((Path(__file__).parents[3] / "config" / "schedule.yaml").read_text())

    assert load() == defaults


def test_the_origin_of_each_setting_is_known(
    file: Write, env_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file("mode: cron\nretry: {max_attempts: 5, backoff_max: 60}\n")
    env_file("RETRY_BACKOFF_MAX=50\nCONCURRENCY=\n")
    monkeypatch.setenv("tools_path", "elsewhere")
    found = origins(load())

    assert found["tools_path"] == "environment"
    assert found["retry_backoff_max"] == ".env"
    assert found["schedule_mode"] == found["retry_max_attempts"] == "config/schedule.yaml"
    assert found["concurrency"] == found["redis_url"] == "default"


# -- how values are written -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "modes"),
    [
        ("trigger", ["trigger"]),
        ("trigger,cron", ["trigger", "cron"]),
        (" cron , speedrun ,trigger", ["cron", "speedrun", "trigger"]),
        ("cron,cron,", ["cron"]),
    ],
)
def test_modes_are_a_list(text: str, modes: list[str], file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file(f"mode: {text!r}")
    assert list(load().schedule_mode) == modes
    file(f"mode: {modes}")
    assert list(load().schedule_mode) == modes

    monkeypatch.setenv("SCHEDULE_MODE", text)

    assert list(load().schedule_mode) == modes


def test_a_list_of_channels_may_be_a_list_or_a_text(file: Write) -> None:
    file("trigger: {channels: [a, 'b:c', a]}")
    assert load().trigger_channels == ("a", "b:c")
    file("trigger: {channels: 'a, b:c'}")
    assert load().trigger_channels == ("a", "b:c")


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "mode:\n", "retry:\nspeedrun: {}\n", "retry: {max_attempts: }"]
)
def test_every_member_of_the_file_is_optional(text: str, file: Write) -> None:
    file(text)

    assert load() == Settings()
    assert load().retry_max_attempts == 3


@pytest.mark.parametrize(
    "url", ["redis://h:1/0", "rediss://:pw@h", "unix:///run/r.sock", "embedded", "embedded:a b"]
)
def test_every_kind_of_address_is_accepted(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)

    assert load().redis_url == url


# -- what pydantic-settings does not do by itself -------------------------------------


def test_the_env_file_is_not_interpolated(env_file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    env_file("REDIS_URL='redis://:${HOME}$x@host/0'\nTOOLS_PATH=${HOME}/tools\n")

    assert load().redis_url == "redis://:${HOME}$x@host/0"
    assert load().tools_path == Path("${HOME}/tools")


def test_other_lines_of_the_env_file_are_left_alone(env_file: Write) -> None:
    env_file("RESEND_API_KEY=secret\nexport CONCURRENCY=5  # slots\nFOO\nwarm_processes = '6'\n")

    assert (load().concurrency, load().warm_processes) == (5, 6)


def test_all_lines_of_the_env_file_are_for_tools_as_well(env_file: Write) -> None:
    env_file("RESEND_API_KEY='a ${HOME}'\nexport CONCURRENCY=5  # slots\nFOO\nEMPTY=\n")

    assert load().file_variables == {"RESEND_API_KEY": "a ${HOME}", "CONCURRENCY": "5"}


def test_a_directory_with_the_name_of_the_env_file_is_ignored() -> None:
    """A virtual environment may have this name."""
    config.ENV_FILE.mkdir()

    assert load() == Settings()


def test_a_list_is_not_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_ENVIRONMENT", '["A", "B"]')

    assert load().tool_environment == ('["A"', '"B"]')


def test_a_value_that_equals_the_default_counts_as_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", default_of("redis_url"))

    assert "redis_url" in load().model_fields_set
    assert origins(load())["redis_url"] == "environment"


def test_bytes_that_are_not_utf_8_are_kept_in_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLS_PATH", "caf\udce9")

    assert load().tools_path == Path("caf\udce9")


def test_settings_can_not_be_changed() -> None:
    with pytest.raises(ValidationError):
        load().concurrency = 5


def test_the_manual_lists_every_setting_with_its_member_and_default() -> None:
    manual = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    rows = [
        [cell.strip().replace("`", "") for cell in line.split("|")[1:4]]
        for line in manual.splitlines()
        if line.startswith("| `")
    ]
    listed = {
        name.strip().lower(): (member.strip(), default.strip())
        for names, members, defaults in rows
        for name, member, default in zip_longest(
            names.split(","), members.split(","), defaults.split(","), fillvalue=""
        )
    }

    assert {name: default for name, (_, default) in listed.items() if name in NAMES} == {
        name: written(default_of(name)) for name in NAMES
    }
    assert {member: name for name, (member, _) in listed.items() if member and name in NAMES} == FILE_MEMBERS


def written(default: Any) -> str:
    """A default as the manual shows it."""
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.0f}" if isinstance(default, float) else str(default)
