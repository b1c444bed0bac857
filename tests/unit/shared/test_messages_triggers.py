"""Requests to run an experiment now."""

import json

import pytest

from shared.errors import ContractError
from shared.messages import Trigger, read_trigger


def refusal(data: bytes | str) -> str:
    with pytest.raises(ContractError) as refused:
        read_trigger(data)
    return str(refused.value)


def test_an_experiment_id_is_all_that_is_needed() -> None:
    assert read_trigger('{"experiment_id": "exp_123"}') == Trigger(experiment_id="exp_123")


def test_bytes_are_read_like_text() -> None:
    assert read_trigger('{"experiment_id": "ü"}'.encode()) == Trigger(experiment_id="ü")


def test_every_member_of_the_contract_is_read() -> None:
    members = {
        "experiment_id": "a:b",
        "request_id": "r-1",
        "params": {"a": [1, {"b": None}]},
        "triggered_by": "orchestrator",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }

    assert read_trigger(json.dumps(members)).model_dump() == members


def test_unknown_members_are_ignored() -> None:
    text = '{"experiment_id": "a", "timestamp": "2024-01-15T10:30:00Z", "priority": {"x": []}}'

    assert read_trigger(text) == Trigger(experiment_id="a")


@pytest.mark.parametrize("name", ["request_id", "params", "triggered_by", "traceparent"])
def test_null_means_that_an_optional_member_is_not_given(name: str) -> None:
    assert read_trigger(json.dumps({"experiment_id": "a", name: None})) == Trigger(experiment_id="a")


def test_the_last_of_two_members_with_the_same_name_counts() -> None:
    assert read_trigger('{"experiment_id": "a", "experiment_id": "b"}').experiment_id == "b"


@pytest.mark.parametrize(
    "data", ["", "run exp_123", "{'experiment_id': 'a'}", '{"experiment_id": "a"', b"\xff\xfe"]
)
def test_a_message_that_is_not_json_is_refused_with_its_beginning(data: bytes | str) -> None:
    assert refusal(data).startswith("trigger is not JSON: ")
    assert "it starts with " in refusal(data)


@pytest.mark.parametrize(
    ("data", "kind"), [("[]", "a list"), ('"exp_123"', "a text"), ("123", "a number"), ("null", "null")]
)
def test_a_message_that_is_not_an_object_is_refused_with_its_kind(data: str, kind: str) -> None:
    assert refusal(data) == f"trigger is {kind}; expected a JSON object"


@pytest.mark.parametrize("data", ["{}", '{"experiment_id": null}', '{"id": "a"}'])
def test_a_trigger_without_an_id_is_refused(data: str) -> None:
    assert refusal(data) == "trigger has no 'experiment_id'"


@pytest.mark.parametrize("value", ["", 5, [], {}, True, "a\nb", "x" * 513])
@pytest.mark.parametrize("name", ["experiment_id", "request_id"])
def test_a_wrong_id_is_refused(name: str, value: object) -> None:
    message = refusal(json.dumps({"experiment_id": "a", name: value}))

    assert message.startswith(f"trigger member '{name}' is ")
    assert ": must " in message if isinstance(value, str) else message.endswith(": expected a text")


@pytest.mark.parametrize("escape", ["\\ud800", "\\udfff", "\\udcff"])
@pytest.mark.parametrize("name", ["experiment_id", "request_id"])
def test_an_id_that_redis_can_not_hold_is_refused(name: str, escape: str) -> None:
    text = json.dumps({"experiment_id": "a"} | {name: "b-"}).replace("b-", escape)

    assert "must be UTF-8" in refusal(text)


@pytest.mark.parametrize("value", [[], "a=1", 5, True])
def test_params_that_are_not_an_object_are_refused(value: object) -> None:
    message = refusal(json.dumps({"experiment_id": "a", "params": value}))

    assert message == f"trigger member 'params' is {str(value)!r}: expected an object"


@pytest.mark.parametrize("name", ["triggered_by", "traceparent"])
def test_a_member_of_the_wrong_type_is_named(name: str) -> None:
    message = refusal(json.dumps({"experiment_id": "a", name: 5}))

    assert message == f"trigger member '{name}' is '5': expected a text"


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_number_that_json_does_not_have_is_refused(number: str) -> None:
    text = '{"experiment_id": "a", "params": {"a": NUMBER}}'.replace("NUMBER", number)

    assert f"{number} is not a JSON number" in refusal(text)


def test_an_unpaired_surrogate_in_params_is_kept() -> None:
    assert read_trigger('{"experiment_id": "a", "params": {"a": "\\ud83d"}}').params == {"a": "\ud83d"}
