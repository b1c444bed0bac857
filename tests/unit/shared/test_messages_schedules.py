"""Schedules are read in every shape and Redis type that neighbours write."""

import json
import re

import pytest

from shared.errors import ContractError
from shared.messages import read_experiment
from shared.schedules import Schedule, read_schedule, read_schedule_message


def refusal(redis_type: str, content: dict[str, str] | str) -> str:
    with pytest.raises(ContractError) as refused:
        read_schedule("exp_1", redis_type, content)
    return str(refused.value)


def in_json(**members: object) -> Schedule:
    return read_schedule("exp_1", "string", json.dumps(members))


WEEKLY = Schedule(experiment_id="exp_1", cron="0 9 * * MON")


# -- shapes ---------------------------------------------------------------------------


def test_a_string_may_be_the_expression_alone() -> None:
    assert read_schedule("exp_1", "string", "0 9 * * MON") == WEEKLY


@pytest.mark.parametrize("name", ["cron", "schedule"])
def test_a_string_may_be_json(name: str) -> None:
    schedule = in_json(
        experiment_id="another", timezone="America/Los_Angeles", enabled=True, **{name: "0 9 * * MON"}
    )

    assert schedule == WEEKLY.model_copy(update={"timezone": "America/Los_Angeles"})


def test_cron_overrides_schedule() -> None:
    assert in_json(schedule="* * * * *", cron="0 9 * * MON") == WEEKLY


def test_a_hash_has_cron_and_a_zone() -> None:
    fields = {
        "cron": "0 9 * * MON",
        "timezone": "Asia/Kolkata",
        "state": "active",
        "created_at": "2024-01-15",
    }

    assert read_schedule("exp_1", "hash", fields) == WEEKLY.model_copy(update={"timezone": "Asia/Kolkata"})


def test_a_hash_without_a_state_is_active() -> None:
    assert read_schedule("exp_1", "hash", {"schedule": "0 9 * * MON"}) == WEEKLY


@pytest.mark.parametrize("zone", [None, ""])
def test_an_empty_zone_counts_as_not_given(zone: str | None) -> None:
    assert in_json(cron="0 9 * * MON", timezone=zone) == WEEKLY
    assert read_schedule("exp_1", "hash", {"cron": "0 9 * * MON", "timezone": ""}) == WEEKLY


@pytest.mark.parametrize("state", ["paused", "completed"])
def test_a_hash_that_is_not_active_is_not_enabled(state: str) -> None:
    assert not read_schedule("exp_1", "hash", {"cron": "0 9 * * MON", "state": state}).enabled


@pytest.mark.parametrize(
    ("enabled", "expected"), [(False, False), (True, True), (None, True), ("false", False), (0, False)]
)
def test_json_can_be_disabled(enabled: object, expected: bool) -> None:
    assert in_json(cron="0 9 * * MON", enabled=enabled).enabled is expected


@pytest.mark.parametrize("state", [{}, {"state": "active"}])
def test_a_hash_can_be_disabled(state: dict[str, str]) -> None:
    assert not read_schedule("exp_1", "hash", {"cron": "0 9 * * MON", "enabled": "false", **state}).enabled


def test_the_experiment_is_the_one_in_the_key() -> None:
    fields = {"cron": "0 9 * * MON", "experiment_id": "another"}

    assert read_schedule("a:b", "hash", fields).experiment_id == "a:b"


@pytest.mark.parametrize("name", ["cron", "schedule"])
def test_a_message_names_its_experiment(name: str) -> None:
    members = {"experiment_id": "exp_1", name: "0 9 * * MON", "timezone": None, "type": "recurring"}

    assert read_schedule_message(json.dumps(members)) == WEEKLY


# -- faults ---------------------------------------------------------------------------


def test_an_unknown_state_of_a_hash_is_refused_with_the_known_ones() -> None:
    message = refusal("hash", {"cron": "0 9 * * MON", "state": "activ"})

    assert message == "schedules:exp_1 member 'state' is 'activ': expected active, paused or completed"


@pytest.mark.parametrize("content", ["{}", '{"cron": ""}', '{"cron": null}', '{"timezone": "UTC"}'])
def test_a_schedule_without_an_expression_is_refused(content: str) -> None:
    assert refusal("string", content) == "schedules:exp_1 has no 'cron'"
    assert refusal("hash", {"timezone": "UTC"}) == "schedules:exp_1 has no 'cron'"


def test_an_empty_string_has_no_expression() -> None:
    assert refusal("string", "") == "schedules:exp_1 has no 'cron'"


@pytest.mark.parametrize("name", ["cron", "timezone"])
@pytest.mark.parametrize("value", [5, ["0 9 * * *"], True])
def test_a_member_of_the_wrong_type_is_named(name: str, value: object) -> None:
    message = refusal("string", json.dumps({"cron": "0 9 * * MON"} | {name: value}))

    assert message.startswith(f"schedules:exp_1 member '{name}' is ")


def test_enabled_is_true_or_false() -> None:
    message = refusal("string", json.dumps({"cron": "0 9 * * MON", "enabled": "sometimes"}))

    assert message.startswith("schedules:exp_1 member 'enabled' is 'sometimes': ")


def test_broken_json_is_not_taken_for_an_expression() -> None:
    assert refusal("string", ' {"cron": ').startswith("schedules:exp_1 is not JSON: ")


@pytest.mark.parametrize("experiment_id", ["", "a\nb", "a\udcff"])
def test_a_key_with_a_wrong_id_is_refused(experiment_id: str) -> None:
    with pytest.raises(ContractError, match="member 'experiment_id' is"):
        read_schedule(experiment_id, "string", "0 9 * * MON")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("0 9 * * MON", "schedule message is not JSON: "),
        ("[]", "schedule message is a list; expected a JSON object"),
        ('{"cron": "0 9 * * MON"}', "schedule message has no 'experiment_id'"),
        ('{"experiment_id": "a"}', "schedule message has no 'cron'"),
        ('{"experiment_id": 5, "cron": "* * * * *"}', "schedule message member 'experiment_id' is '5': "),
    ],
)
def test_a_message_that_can_not_be_read_is_refused(data: str, expected: str) -> None:
    with pytest.raises(ContractError, match="^" + re.escape(expected)):
        read_schedule_message(data)


# -- mappings -------------------------------------------------------------------------


def in_file(schedule: object, timezone: str | None = None) -> tuple[str | None, str | None, bool]:
    """The schedule of an experiment whose file has this one: expression, zone, and whether it is on."""
    execution = {"tool": "t", "schedule": schedule, "timezone": timezone}
    document = json.dumps({"experiment": {"id": "exp_1", "execution": execution}})
    found = read_experiment("exp_1", "string", document)
    return found.schedule, found.timezone, found.is_schedule_enabled


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"cron": "0 9 * * MON", "timezone": "Asia/Kolkata"}, ("0 9 * * MON", "Asia/Kolkata", True)),
        ({"type": "cron", "expression": "0 9 * * MON", "tz": "UTC"}, ("0 9 * * MON", "UTC", True)),
        ({"schedule": "@daily", "enabled": False}, ("@daily", None, False)),
        ({"cron": "@daily", "paused": True, "description": "for now"}, ("@daily", None, False)),
        ({"cron": "@daily", "state": "paused"}, ("@daily", None, False)),
        ({"frequency": "hourly"}, ("0 * * * *", None, True)),
        ({"frequency": "daily", "time": "09:00"}, ("0 9 * * *", None, True)),
        ({"frequency": "Daily", "time": "9:05 PM", "timezone": "UTC"}, ("5 21 * * *", "UTC", True)),
        ({"frequency": "daily", "time": "12:00 am"}, ("0 0 * * *", None, True)),
        ({"frequency": "weekdays", "at": "17:30:00"}, ("30 17 * * MON-FRI", None, True)),
        ({"frequency": "weekly", "time": "09:00", "day": "monday"}, ("0 9 * * MON", None, True)),
        ({"frequency": "weekly", "time": "09:00", "days": ["Tue", "thurs"]}, ("0 9 * * TUE,THU", None, True)),
        (
            {"frequency": "weekly", "time": "09:00", "day_of_week": "mon, fri"},
            ("0 9 * * MON,FRI", None, True),
        ),
        ({"frequency": "monthly", "time": "09:00", "day": 15}, ("0 9 15 * *", None, True)),
        ({"frequency": "monthly", "time": "09:00", "day_of_month": "last"}, ("0 9 L * *", None, True)),
    ],
)
def test_a_mapping_with_a_plain_meaning_is_read(
    mapping: dict[str, object], expected: tuple[str, str | None, bool]
) -> None:
    assert in_file(mapping) == expected


def test_the_zone_beside_a_mapping_counts_unless_the_mapping_has_one() -> None:
    assert in_file({"cron": "@daily"}, "Asia/Kolkata") == ("@daily", "Asia/Kolkata", True)
    assert in_file({"cron": "@daily", "timezone": "UTC"}, "Asia/Kolkata") == ("@daily", "UTC", True)


def test_a_schedule_may_stand_beside_execution() -> None:
    document = json.dumps({"id": "exp_1", "schedule": "@daily", "execution": {"tool": "t"}})

    assert read_experiment("exp_1", "string", document).schedule == "@daily"


@pytest.mark.parametrize(
    ("mapping", "problem"),
    [
        ({}, "has no 'cron'"),
        ({"timezone": "UTC"}, "has no 'cron'"),
        ({"cron": 5}, "member 'cron' is a number; expected a text"),
        ({"cron": ["@daily"]}, "member 'cron' is a list; expected a text"),
        ({"cron": "@daily", "expression": "@hourly"}, "has 'cron' and 'expression', which differ"),
        (
            {"cron": "@daily", "start_date": "2026-01-01"},
            "member 'start_date' is '2026-01-01', which can't be",
        ),
        ({"cron": "@daily", "jitter": 30}, "member 'jitter' is '30', which can't be read"),
        ({"cron": "@daily", "enabled": "maybe"}, "member 'enabled' is 'maybe': expected true or false"),
        ({"cron": "@daily", "status": "activ"}, "member 'status' is 'activ': expected active, paused or"),
        ({"minute": 0, "hour": 9}, "member 'minute' is '0', which can't be read; write 'cron' with"),
        ({"interval": "5m"}, "member 'interval' is '5m', which can't be read; write 'cron' with"),
        ({"frequency": "daily"}, "has no 'time', such as \"09:00\""),
        ({"frequency": "daily", "time": 750}, "member 'time' is a number; expected a text"),
        ({"frequency": "daily", "time": "24:00"}, "member 'time' is '24:00': expected a time such as"),
        ({"frequency": "daily", "time": "13:00 PM"}, "member 'time' is '13:00 PM': expected a time such as"),
        ({"frequency": "daily", "time": "noon"}, "member 'time' is 'noon': expected a time such as"),
        (
            {"frequency": "daily", "time": "09:00", "day": "monday"},
            "member 'day' is 'monday', which can't be",
        ),
        ({"frequency": "hourly", "time": "09:00"}, "member 'time' is '09:00', which can't be read"),
        ({"frequency": "weekly", "time": "09:00"}, "is weekly, and has no 'day'"),
        ({"frequency": "weekly", "time": "09:00", "day": 1}, "member 'day' is '1': expected names of days"),
        (
            {"frequency": "weekly", "time": "09:00", "day": "mo"},
            "member 'day' is 'mo': expected names of days",
        ),
        ({"frequency": "weekly", "time": "09:00", "days": []}, "has no day in 'days'; expected names"),
        (
            {"frequency": "weekly", "time": "09:00", "day": "monday", "days": ["tue"]},
            "has 'day' and 'days'; leave one out",
        ),
        (
            {"frequency": "monthly", "time": "09:00", "day": 1, "day_of_month": 15},
            "has 'day' and 'day_of_month'; leave one out",
        ),
        ({"frequency": "monthly", "time": "09:00", "day": 31}, "member 'day' is '31': expected 1 to 28"),
        (
            {"frequency": "biweekly", "time": "09:00"},
            "member 'frequency' is 'biweekly': expected hourly, daily",
        ),
    ],
)
def test_a_mapping_whose_meaning_is_not_plain_is_refused_with_the_member(
    mapping: dict[str, object], problem: str
) -> None:
    with pytest.raises(
        ContractError, match="^" + re.escape(f"experiments:exp_1 member 'schedule' {problem}")
    ):
        in_file(mapping)


@pytest.mark.parametrize(
    "members",
    [
        {"schedule": {"cron": "0 9 * * MON", "timezone": "UTC"}},
        {"cron": '{"cron": "0 9 * * MON", "timezone": "UTC"}'},
        {"frequency": "weekly", "day": "monday", "time": "09:00", "timezone": "UTC", "type": "recurring"},
    ],
)
def test_a_key_and_a_message_may_have_a_mapping_as_well(members: dict[str, object]) -> None:
    expected = WEEKLY.model_copy(update={"timezone": "UTC"})

    assert in_json(**members) == expected
    assert read_schedule_message(json.dumps({"experiment_id": "exp_1", **members})) == expected


@pytest.mark.parametrize(
    "member",
    [
        {"paused": True},
        {"disabled": "true"},
        {"active": False},
        {"enabled": "no"},
        {"enabled": True, "paused": 1},
        {"schedule": {"cron": "0 9 * * MON"}, "cron": None, "active": "false"},
    ],
)
def test_every_switch_counts_beside_an_expression(member: dict[str, object]) -> None:
    members = {"cron": "0 9 * * MON", **member}

    assert not in_json(**members).enabled
    assert not read_schedule_message(json.dumps({"experiment_id": "exp_1", **members})).enabled


def test_a_zone_may_be_called_tz_beside_an_expression() -> None:
    expected = WEEKLY.model_copy(update={"timezone": "Asia/Kolkata"})

    assert in_json(cron="0 9 * * MON", tz="Asia/Kolkata") == expected
    assert read_schedule("exp_1", "hash", {"cron": "0 9 * * MON", "tz": "Asia/Kolkata"}) == expected
    assert "has 'timezone' and 'tz', which differ" in refusal(
        "hash", {"cron": "@daily", "tz": "UTC", "timezone": "Asia/Kolkata"}
    )


def test_a_key_that_has_no_expression_is_refused_with_what_it_has() -> None:
    assert "member 'minute' is '0', which can't be read" in refusal("hash", {"minute": "0", "hour": "9"})
    assert "member 'interval' is '5m', which can't be read" in refusal("string", '{"interval": "5m"}')


def test_a_string_may_be_json_that_was_encoded_twice() -> None:
    assert read_schedule("exp_1", "string", json.dumps(json.dumps({"cron": "0 9 * * MON"}))) == WEEKLY


def test_json_may_have_a_state() -> None:
    assert not in_json(cron="0 9 * * MON", state="paused").enabled
    assert not in_json(cron="0 9 * * MON", status="completed").enabled
