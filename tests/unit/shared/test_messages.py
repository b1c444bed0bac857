"""Experiments are read in every shape and Redis type that neighbours write."""

import json
from typing import Any

import pytest

from shared.errors import ContractError
from shared.messages import (
    RECURRING,
    Experiment,
    State,
    place_of_state,
    read_experiment,
    read_experiment_file,
)

POLICY: dict[str, Any] = {
    "timeout_seconds": 12.5,
    "max_attempts": 4,
    "backoff_min": 0.5,
    "backoff_max": 8,
    "isolation": "fork",
    "overlap": "queue",
    "catch_up": "all",
    "grace_seconds": 30,
    "on_worker_death": "fail",
    "priority": "high",
    "memory_mb": 256,
    "cpu_seconds": 5,
    "file_size_mb": 10,
    "open_files": 64,
    "processes": 8,
    "max_concurrent": 2,
    "max_per_minute": 1.5,
    "burst": 3,
    "limit_key": "an account",
    "seed": 7,
    "cache": True,
}


def in_hash(**fields: str) -> Experiment:
    return read_experiment("exp_1", "hash", fields)


def in_string(document: object) -> Experiment:
    return read_experiment("exp_1", "string", json.dumps(document))


def moved_to(state: str, document: str) -> str:
    """The text of an experiment with another state."""
    place = place_of_state(document)
    assert place is not None
    _, before, after = place
    return f"{before}{state}{after}"


# -- the shapes -----------------------------------------------------------------------


def test_a_flat_hash_needs_only_a_tool() -> None:
    experiment = read_experiment("exp_test", "hash", {"tool": "test_tool", "state": "ready"})

    assert experiment.id == "exp_test"
    assert experiment.tool == "test_tool"
    assert experiment.params == {}
    assert experiment.state is State.READY
    assert experiment.schedule is None
    assert experiment.timezone is None


def test_the_end_of_a_line_is_no_part_of_a_tools_name() -> None:
    assert in_hash(tool="t\n").tool == "t"


def test_a_flat_hash_has_its_params_as_json_text() -> None:
    assert in_hash(tool="t", params='{"a": [1, {"b": null}]}').params == {"a": [1, {"b": None}]}


@pytest.mark.parametrize("params", ["", "{}"])
def test_empty_params_count_as_not_given(params: str) -> None:
    assert in_hash(tool="t", params=params).params == {}


@pytest.mark.parametrize("times", [1, 2])
def test_a_hash_may_have_its_json_encoded_twice(times: int) -> None:
    params, execution = '{"a": 1}', '{"tool": "t", "params": {"a": 1}}'
    for _ in range(times - 1):
        params, execution = json.dumps(params), json.dumps(execution)

    assert in_hash(tool="t", params=params).params == in_hash(execution=execution).params == {"a": 1}


def test_a_byte_order_mark_is_no_part_of_a_document() -> None:
    assert read_experiment("exp_1", "string", '\ufeff{"tool": "t"}').tool == "t"
    assert in_hash(spec="\ufefftool: t").tool == "t"


def test_a_nested_hash_has_its_execution_as_json_text() -> None:
    execution = {"tool": "t", "params": {"a": 1}, "schedule": "0 9 * * MON", "timezone": "Asia/Kolkata"}
    experiment = in_hash(execution=json.dumps(execution), state="paused", hypothesis="it works")

    assert (experiment.tool, experiment.params) == ("t", {"a": 1})
    assert (experiment.schedule, experiment.timezone) == ("0 9 * * MON", "Asia/Kolkata")
    assert experiment.state is State.PAUSED


SPEC = """
experiment:
  id: another
  state: draft
  execution:
    tool: t
    params: {repo: "a/b", limit: 2000}
    schedule: "0 9 * * MON"  # weekly
    timezone: "America/Los_Angeles"
"""


def test_a_spec_hash_has_the_whole_file_as_yaml_text() -> None:
    experiment = in_hash(spec=SPEC, created_at="2024-01-15T10:30:00Z", updated_at="2024-01-15T10:30:00Z")

    assert (experiment.tool, experiment.params) == ("t", {"repo": "a/b", "limit": 2000})
    assert (experiment.schedule, experiment.timezone) == ("0 9 * * MON", "America/Los_Angeles")
    assert experiment.state is State.DRAFT


def test_the_state_of_a_hash_overrides_the_state_in_its_spec() -> None:
    assert in_hash(spec=SPEC, state="ready").state is State.READY


def test_the_id_is_that_of_the_key() -> None:
    assert in_hash(spec=SPEC).id == "exp_1"


def test_a_spec_without_its_wrapper_is_read_as_well() -> None:
    assert in_hash(spec="execution: {tool: t}").tool == "t"


def test_a_string_is_the_whole_experiment_as_json() -> None:
    document = {
        "id": "another",
        "hypothesis": "it works",
        "execution": {"tool": "t", "params": {"a": 1}, "schedule": "@daily", "timezone": "UTC"},
        "metrics": [{"name": "emails_sent"}],
    }
    experiment = in_string(document)

    assert (experiment.id, experiment.tool, experiment.params) == ("exp_1", "t", {"a": 1})
    assert (experiment.schedule, experiment.timezone) == ("@daily", "UTC")


def test_a_string_may_wrap_it_as_the_file_does() -> None:
    experiment = in_string({"experiment": {"state": "failed", "execution": {"tool": "t"}}})

    assert (experiment.tool, experiment.state) == ("t", State.FAILED)


def test_a_string_may_be_flat() -> None:
    experiment = in_string({"tool": "t", "params": {"a": 1}, "state": "draft"})

    assert (experiment.tool, experiment.params, experiment.state) == ("t", {"a": 1}, State.DRAFT)


def test_params_inside_json_may_be_json_text_again() -> None:
    assert in_string({"execution": {"tool": "t", "params": '{"a": 1}'}}).params == {"a": 1}


@pytest.mark.parametrize("absent", [None, ""])
def test_an_optional_member_may_be_null_or_empty(absent: str | None) -> None:
    document = {"tool": "t", "params": absent, "state": absent, "schedule": absent, "timezone": absent}
    experiment = in_string(document | dict.fromkeys(POLICY, absent))

    assert (experiment.params, experiment.state, experiment.schedule) == ({}, State.READY, None)
    assert set(experiment.policy.model_dump().values()) == {None}


# -- policy ---------------------------------------------------------------------------


def test_a_policy_may_be_flat_as_text() -> None:
    experiment = in_hash(tool="t", **{name: str(value) for name, value in POLICY.items()})

    assert experiment.policy.model_dump() == POLICY


def test_a_policy_may_be_in_the_execution() -> None:
    in_nested = in_hash(execution=json.dumps({"tool": "t", **POLICY}))
    in_document = in_string({"execution": {"tool": "t", **POLICY}})

    assert in_nested.policy.model_dump() == in_document.policy.model_dump() == POLICY


def test_a_policy_may_be_beside_the_execution() -> None:
    assert in_string({"execution": {"tool": "t"}, **POLICY}).policy.model_dump() == POLICY


def test_the_policy_in_the_execution_overrides_the_one_beside_it() -> None:
    experiment = in_string({"max_attempts": 2, "execution": {"tool": "t", "max_attempts": 5}})

    assert experiment.policy.max_attempts == 5


# -- states and ids -------------------------------------------------------------------


@pytest.mark.parametrize("state", list(State))
def test_every_state_is_read(state: State) -> None:
    assert in_hash(tool="t", state=state.value).state is state


def test_the_states_are_those_of_the_contract() -> None:
    names = "draft ready running run completed failed paused archived"

    assert [state.value for state in State] == names.split()


def test_cron_and_speedrun_take_what_is_neither_draft_nor_stopped() -> None:
    assert {state.value for state in RECURRING} == {"ready", "run", "completed", "failed"}


@pytest.mark.parametrize(
    "experiment_id", ["a", "a:b:c", ":", "ünïcödé 実験 🧪", "a b", "a\\b*?[x]", "x" * 512]
)
def test_an_id_may_contain_anything_but_control_characters(experiment_id: str) -> None:
    assert read_experiment(experiment_id, "hash", {"tool": "t"}).id == experiment_id


@pytest.mark.parametrize("char", ["\0", "\t", "\n", "\r", "\x1b", "\x7f", "\x85", "\x9f"])
def test_an_id_with_a_control_character_is_refused(char: str) -> None:
    with pytest.raises(ContractError, match=r"^experiments:a\\.* member 'id' .*control characters"):
        read_experiment(f"a{char}b", "hash", {"tool": "t"})


@pytest.mark.parametrize("experiment_id", ["a\udcffb", "\ud800"])
def test_an_id_that_is_not_utf_8_is_refused(experiment_id: str) -> None:
    with pytest.raises(ContractError, match=r"member 'id' .*UTF-8"):
        read_experiment(experiment_id, "hash", {"tool": "t"})


def test_an_id_must_have_1_to_512_characters() -> None:
    with pytest.raises(ContractError, match="member 'id' is '': must be a non-empty text"):
        read_experiment("", "hash", {"tool": "t"})
    with pytest.raises(ContractError, match=r"member 'id' is 'xxx.*must not be longer than 512 characters"):
        read_experiment("x" * 513, "hash", {"tool": "t"})


# -- a file ---------------------------------------------------------------------------


def test_a_file_has_the_id_of_its_experiment() -> None:
    experiment = read_experiment_file("a.yaml", SPEC)

    assert (experiment.id, experiment.tool, experiment.state) == ("another", "t", State.DRAFT)


def test_a_file_without_an_id_is_refused() -> None:
    with pytest.raises(ContractError, match=r"^a\.yaml has no 'id', which names the experiment$"):
        read_experiment_file("a.yaml", "experiment: {execution: {tool: t}}")


# -- another state --------------------------------------------------------------------


def test_a_document_keeps_every_other_member_in_another_state() -> None:
    document = {
        "experiment": {
            "hypothesis": "ünïcödé \U0001f9ea \"'\\",
            "state": "ready",
            "execution": {"tool": "t", "params": {"n": 1.5, "big": 2**70, "none": None}},
            "metrics": [{"name": "a"}, []],
        },
        "version": 3,
    }
    moved = moved_to("running", json.dumps(document))

    document["experiment"]["state"] = "running"  # type: ignore[index]
    assert json.loads(moved) == document
    assert list(json.loads(moved)["experiment"]) == list(document["experiment"])  # type: ignore[call-overload]


def test_a_document_without_a_state_gets_one() -> None:
    moved = moved_to("failed", '{"tool": "t"}')

    assert json.loads(moved) == {"tool": "t", "state": "failed"}


def test_a_document_in_another_state_is_still_utf_8() -> None:
    text = '{"tool": "t", "note": "\\ud83d and \\udc80, but \\ud83e\\uddea"}'
    moved = moved_to("run", text)

    assert json.loads(moved.encode()) == {**json.loads(text), "state": "run"}


def test_bytes_of_a_document_that_are_not_utf_8_are_kept() -> None:
    raw = b'{"tool": "t", "note": "caf\xe9"}'
    moved = moved_to("run", raw.decode(errors="surrogateescape"))

    assert b'"caf\xe9"' in moved.encode(errors="surrogateescape")


@pytest.mark.parametrize("text", ["[]", "{", '{"state": "activ"}', '{"state": 5}'])
def test_a_text_without_a_place_for_a_state_has_none(text: str) -> None:
    assert place_of_state(text) is None
