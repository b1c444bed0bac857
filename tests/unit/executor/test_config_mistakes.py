"""A wrong setting is reported in one line, with the place it was made in."""

from typing import Any

import pytest

from services.executor import config
from services.executor.config import FILE_MEMBERS, NAMES, load
from shared.errors import SettingsError
from tests.unit.executor.conftest import Write

pytestmark = pytest.mark.usefixtures("elsewhere")


def refusal(**overrides: Any) -> list[str]:
    """The lines that `load` refuses with."""
    with pytest.raises(SettingsError) as refused:
        load(**overrides)
    return str(refused.value).splitlines()


def test_a_mistake_in_the_environment_is_reported_with_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONCURRENCY", "many")
    monkeypatch.setenv("schedule_mode", "trigger,crom")

    assert refusal() == [
        "SCHEDULE_MODE=crom: expected 'trigger', 'cron' or 'speedrun'",
        "CONCURRENCY=many: expected a whole number",
    ]


def test_a_mistake_in_the_env_file_is_reported_with_the_file(
    env_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    env_file("SPEEDRUN_INTERVAL=0\nspeedrun_max_per_cycle=0\n")
    monkeypatch.setenv("SPEEDRUN_INTERVAL", "")

    assert refusal() == [
        ".env: SPEEDRUN_INTERVAL=0: expected a number > 0",
        ".env: SPEEDRUN_MAX_PER_CYCLE=0: expected a whole number >= 1",
    ]


def test_a_mistake_in_the_settings_file_is_reported_with_its_member(
    file: Write, env_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    file("mode: 5\nretry: {max_attempts: none}\ntimeouts: {tool_execution: .inf}")
    env_file("RETRY_MAX_ATTEMPTS=\n")
    monkeypatch.setenv("TOOL_EXECUTION_TIMEOUT", "")

    assert refusal() == [
        "config/schedule.yaml: mode: 5: expected a list",
        "config/schedule.yaml: timeouts.tool_execution: inf: expected a finite number",
        "config/schedule.yaml: retry.max_attempts: none: expected a whole number",
    ]


def test_a_mistake_of_the_caller_is_not_attributed_to_a_file() -> None:
    assert refusal(concurrency=0) == ["concurrency=0: expected a whole number >= 1"]


@pytest.mark.parametrize("place", ["environment", "env file"])
def test_a_wrong_address_is_shown_without_its_password(
    place: str, env_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "http://:hunter2@host"
    if place == "environment":
        monkeypatch.setenv("REDIS_URL", url)
    else:
        env_file(f"REDIS_URL={url}")
    [line] = refusal()

    assert line.startswith(".env: REDIS_URL: '" if place == "env file" else "REDIS_URL: '")
    assert "http://***@host" in line
    assert "hunter2" not in line


def test_two_bounds_that_contradict_each_other_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETRY_BACKOFF_MIN", "31")

    assert refusal() == ["RETRY_BACKOFF_MIN (31) is more than RETRY_BACKOFF_MAX (30)"]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SPEEDRUN_INTERVAL", "0"),
        ("SPEEDRUN_INTERVAL", "nan"),
        ("SPEEDRUN_INTERVAL", "inf"),
        ("CRON_CHECK_INTERVAL", "-1"),
        ("TOOL_EXECUTION_TIMEOUT", "5s"),
        ("RETRY_MAX_ATTEMPTS", "0"),
        ("RETRY_BACKOFF_MIN", "-0.1"),
        ("RETRY_BACKOFF_MAX", "inf"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "1001"),
        ("WARM_PROCESSES", "0"),
        ("ISOLATION", "docker"),
        ("SHUTDOWN_GRACE", "-1"),
        ("HEARTBEAT_TTL", "0.1"),
        ("LOG_LEVEL", "loud"),
        ("SCHEDULE_MODE", ","),
        ("TRIGGER_CHANNELS", " , "),
        ("METRICS_KEPT", "0"),
    ],
)
def test_a_wrong_value_is_reported_in_one_line(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    [line] = refusal()

    assert line.startswith(f"{variable}=")


def test_an_unknown_member_of_the_file_is_reported_with_the_known_ones(file: Write) -> None:
    file("mod: cron\nretry: {attempts: 3}\nspeedrun: 5\n1: 2")
    lines = refusal()

    assert [line.partition(" is not a setting")[0] for line in lines] == [
        "config/schedule.yaml: 1",
        "config/schedule.yaml: mod",
        "config/schedule.yaml: retry.attempts",
        "config/schedule.yaml: speedrun",
    ]
    assert all(line.endswith("known are " + ", ".join(FILE_MEMBERS)) for line in lines)


@pytest.mark.parametrize(
    "text", ["mode: [", "\tmode: cron", "a: b: c", "--- a\n--- b", "x: !!python/name:os.system"]
)
def test_a_file_that_is_not_yaml_is_one_line(text: str, file: Write) -> None:
    file(text)
    [line] = refusal()

    assert line.startswith("config/schedule.yaml is not a YAML document: ")


@pytest.mark.parametrize(("text", "kind"), [("- mode\n", "a list"), ("cron", "a text"), ("5", "a number")])
def test_a_file_without_members_is_one_line(text: str, kind: str, file: Write) -> None:
    file(text)

    assert refusal() == [f"config/schedule.yaml is {kind}; expected members such as `mode: trigger`"]


def test_a_file_that_is_not_utf_8_is_one_line(file: Write) -> None:
    file("")
    config.FILE.write_bytes(b"mode: caf\xe9")

    assert refusal()[0].startswith("config/schedule.yaml can't be read: ")
    assert len(refusal()) == 1


def test_a_directory_where_the_file_should_be_is_one_line() -> None:
    config.FILE.mkdir(parents=True)

    assert refusal() == ["config/schedule.yaml can't be read: Is a directory"]


def test_an_env_file_that_is_not_utf_8_is_one_line() -> None:
    config.ENV_FILE.write_bytes(b"TOOLS_PATH=caf\xe9")
    [line] = refusal()

    assert line.startswith(".env can't be read: ")


def test_a_line_of_the_env_file_that_can_not_be_read_is_named(env_file: Write) -> None:
    env_file("# A comment\nTOOLS_PATH=a\n\n\nCONCURRENCY 5\nLOG_LEVEL='info\n")

    assert refusal() == [".env line 5 can't be read", ".env line 6 can't be read"]


def test_the_mistakes_of_all_sources_are_reported_together(
    file: Write, env_file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONCURRENCY", "0")
    env_file("LOG_LEVEL=loud\nno value\n")
    file("mode: crom\nmod: cron\n")

    assert [line.partition("; known are ")[0] for line in refusal(isolation="docker", other=1)] == [
        "config/schedule.yaml: mode: crom: expected 'trigger', 'cron' or 'speedrun'",
        "CONCURRENCY=0: expected a whole number >= 1",
        "isolation=docker: expected 'warm', 'fork' or 'spawn'",
        ".env: LOG_LEVEL=loud: expected 'debug', 'info', 'warning' or 'error'",
        "config/schedule.yaml: mod is not a setting",
        ".env line 2 can't be read",
        "other=1: expected one of " + ", ".join(NAMES),
    ]


def test_only_the_wrong_item_of_a_list_is_shown(env_file: Write) -> None:
    env_file("SCHEDULE_MODE=trigger,crom\n")

    assert refusal() == [".env: SCHEDULE_MODE=crom: expected 'trigger', 'cron' or 'speedrun'"]


def test_tools_are_not_given_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_ENVIRONMENT", "OTHER,REDIS_URL")
    monkeypatch.setenv("TOOL_ENVIRONMENT_ALLOWED", "redis_url")

    problem = "is the executor's connection to Redis, which no tool is given"
    assert refusal() == [
        f"TOOL_ENVIRONMENT=REDIS_URL: REDIS_URL {problem}",
        f"TOOL_ENVIRONMENT_ALLOWED=redis_url: redis_url {problem}",
    ]


def test_what_tools_may_ask_for_are_names_with_stars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOL_ENVIRONMENT_ALLOWED", "MYAPP_*, KEY")
    assert load().tool_environment_allowed == ("MYAPP_*", "KEY")

    monkeypatch.setenv("TOOL_ENVIRONMENT_ALLOWED", "KEY,MY?PP")
    assert refusal() == [
        "TOOL_ENVIRONMENT_ALLOWED=MY?PP: expected the name of a variable, or a pattern such as MYAPP_*"
    ]
