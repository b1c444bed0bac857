"""Unreadable content is refused with the key, the member and what was expected."""

import json

import pytest

from shared.errors import ContractError
from shared.messages import read_experiment, read_experiment_file, read_trigger
from shared.schedules import read_schedule, read_schedule_message


def refusal(redis_type: str, content: dict[str, str] | str) -> str:
    with pytest.raises(ContractError) as refused:
        read_experiment("exp_1", redis_type, content)
    return str(refused.value)


def document_refusal(**members: object) -> str:
    return refusal("string", json.dumps({"tool": "t"} | members))


@pytest.mark.parametrize("redis_type", ["list", "set", "zset", "stream", "none", "ReJSON-RL"])
def test_another_type_is_named(redis_type: str) -> None:
    assert refusal(redis_type, "") == (
        f"experiments:exp_1 is a Redis {redis_type}; expected a hash or a string with JSON"
    )


def test_a_hash_without_a_known_field_is_refused_with_the_known_ones() -> None:
    assert refusal("hash", {"state": "ready"}) == (
        "experiments:exp_1 has none of the fields 'tool', 'execution', 'spec'; one of them is expected"
    )


@pytest.mark.parametrize(
    ("content", "kind"),
    [("[]", "a list"), ('"x"', "a text"), ("5", "a number"), ("null", "null"), ("true", "true or false")],
)
def test_a_string_with_other_json_is_refused_with_its_kind(content: str, kind: str) -> None:
    assert refusal("string", content) == f"experiments:exp_1 is {kind}; expected a JSON object"


@pytest.mark.parametrize("content", ["", "tool: t", '{"tool": "t"', "{'tool': 't'}", '{"a": "\n"}'])
def test_a_string_that_is_not_json_is_refused_with_its_beginning(content: str) -> None:
    message = refusal("string", content)

    assert message.startswith("experiments:exp_1 is not JSON: ")
    assert message.endswith(f"it starts with {content!r}")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_json_does_not_have_is_refused(number: str) -> None:
    text = '{"tool": "t", "params": {"a": NUMBER}}'.replace("NUMBER", number)

    assert f"{number} is not a JSON number" in refusal("string", text)


@pytest.mark.parametrize("value", [[], "x", 5, True])
def test_an_execution_that_is_not_an_object_is_refused(value: object) -> None:
    assert "experiments:exp_1 member 'execution' is " in document_refusal(execution=value)
    assert "expected an object" in document_refusal(execution=value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sandbox", "files"),
        ("sandbox", "off"),
        ("capabilities", ["net_raw"]),
    ],
)
def test_a_member_of_a_tools_header_is_refused_in_an_experiment(name: str, value: object) -> None:
    expected = f"member '{name}' can't be set by an experiment; set it in the header of the tool's file"
    as_text = value if isinstance(value, str) else json.dumps(value)
    spec = f"experiment: {{execution: {{tool: t, {name}: {json.dumps(value)}}}}}"

    assert expected in document_refusal(**{name: value})
    assert expected in refusal("string", json.dumps({"execution": {"tool": "t", name: value}}))
    assert expected in refusal("hash", {"tool": "t", name: as_text})
    assert expected in refusal("hash", {"execution": json.dumps({"tool": "t", name: value})})
    assert expected in refusal("hash", {"spec": spec})
    with pytest.raises(ContractError, match=r"exp\.yaml member"):
        read_experiment_file("exp.yaml", f"id: exp_1\ntool: t\n{name}: {json.dumps(value)}")


@pytest.mark.parametrize("name", ["sandbox", "capabilities"])
def test_confinement_is_refused_beside_the_execution_too(name: str) -> None:
    document = {"execution": {"tool": "t"}, name: ["files"]}

    assert f"member '{name}' can't be set" in refusal("string", json.dumps(document))


@pytest.mark.parametrize("name", ["environment", "dependencies"])
def test_an_authors_own_members_are_ignored(name: str) -> None:
    execution = {"tool": "t", "sandbox": None, "capabilities": "", name: ["exp_0"]}
    document = {"execution": execution, name: ["exp_0"]}

    assert read_experiment("exp_1", "string", json.dumps(document)).tool == "t"


@pytest.mark.parametrize(
    "value", [5, [], {}, True, "../x", "/etc/x", "a/b", "a.py", "a b", "t@sha256:1", "_a"]
)
def test_a_tool_must_be_a_name(value: object) -> None:
    assert document_refusal(tool=value).startswith(
        f"experiments:exp_1 member 'tool' is '{value}': can't be a tool; a name has letters, digits"
    )


@pytest.mark.parametrize("value", [None, "", " ", "null", "None"])
def test_a_missing_tool_is_told_with_what_there_is(value: object) -> None:
    fields = {"execution": json.dumps({"tol": "t", "params": {}, "tool": value})}

    assert refusal("hash", fields) == (
        "experiments:exp_1 has no 'tool', which names what is run; 'execution' holds 'tol', 'params'"
    )
    assert refusal("hash", {"execution": "{}"}).endswith("; 'execution' holds nothing")
    assert refusal("hash", {"tool": "None", "params": "{}"}).endswith("; it holds 'params'")


def test_bytes_in_params_that_are_not_utf_8_are_refused() -> None:
    expected = "experiments:exp_1 member 'params' has bytes that are not UTF-8"
    params = '{"a": ["caf\udce9"]}'

    assert refusal("hash", {"tool": "t", "params": params}) == expected
    assert refusal("string", f'{{"tool": "t", "params": {params}}}') == expected
    with pytest.raises(ContractError, match="trigger member 'params' has bytes that are not UTF-8"):
        read_trigger(f'{{"experiment_id": "e", "params": {params}}}')


@pytest.mark.parametrize(("value", "kind"), [([], "a list"), (5, "a number"), (True, "true or false")])
def test_params_that_are_not_an_object_are_refused(value: object, kind: str) -> None:
    expected = f"experiments:exp_1 member 'params' is {kind}; expected "

    assert document_refusal(params=value) == expected + "an object"
    assert refusal("hash", {"tool": "t", "params": json.dumps(value)}) == expected + "a JSON object"


@pytest.mark.parametrize("value", ["READY", "done", 0, False, 5, [], {"a": 1}])
def test_an_unknown_state_is_refused_with_the_known_ones(value: object) -> None:
    assert document_refusal(state=value) == (
        f"experiments:exp_1 member 'state' is {str(value)!r}: "
        "expected draft, ready, running, run, completed, failed, paused or archived"
    )


@pytest.mark.parametrize("name", ["schedule", "timezone"])
@pytest.mark.parametrize("value", [5, ["0 9 * * *"], True])
def test_a_schedule_or_a_zone_that_is_not_a_text_is_refused(name: str, value: object) -> None:
    assert document_refusal(**{name: value}) == (
        f"experiments:exp_1 member '{name}' is {str(value)!r}: must be a text"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("timeout_seconds", "soon"),
        ("timeout_seconds", 0),
        ("timeout_seconds", -1),
        ("timeout_seconds", 1e9),
        ("timeout_seconds", "nan"),
        ("max_attempts", 0),
        ("max_attempts", 1.5),
        ("max_attempts", 10**9),
        ("backoff_min", -1),
        ("backoff_min", "inf"),
        ("backoff_max", "nan"),
        ("backoff_max", "inf"),
        ("grace_seconds", "inf"),
        ("isolation", "docker"),
        ("overlap", "SKIP"),
        ("catch_up", True),
        ("on_worker_death", "ignore"),
        ("priority", 5),
        ("max_concurrent", 0),
        ("max_concurrent", 1.5),
        ("max_per_minute", 0),
        ("max_per_minute", "inf"),
        ("burst", 0),
    ],
)
def test_a_wrong_policy_member_is_refused_by_its_name(name: str, value: object) -> None:
    expected = f"experiments:exp_1 member '{name}' is {str(value)!r}: "

    assert document_refusal(**{name: value}).startswith(expected)
    assert refusal("hash", {"tool": "t", name: str(value)}).startswith(expected)
    assert document_refusal(execution={"tool": "t", name: value}).startswith(expected)


def test_a_long_value_is_shortened_in_messages() -> None:
    assert len(document_refusal(state="x" * 100_000)) < 300
    assert len(refusal("string", "x" * 100_000)) < 300


def test_a_broken_json_text_inside_a_hash_is_named_by_its_field() -> None:
    assert refusal("hash", {"execution": "{"}).startswith("experiments:exp_1 field 'execution' is not JSON: ")
    assert refusal("hash", {"tool": "t", "params": "{"}).startswith(
        "experiments:exp_1 member 'params' is not JSON: "
    )
    assert refusal("hash", {"spec": "a: ["}).startswith(
        "experiments:exp_1 field 'spec' is not a YAML document: "
    )


# -- hostile ones ---------------------------------------------------------------------


def nested_json(depth: int) -> str:
    return '{"tool": "t", "params": ' + '{"a": [' * depth + "]}" * depth + "}"


@pytest.mark.parametrize("depth", [60, 400, 490, 5_000, 100_000])
def test_json_that_is_nested_too_deeply_is_refused(depth: int) -> None:
    assert "nested" in refusal("string", nested_json(depth)) or "recursion" in refusal(
        "string", nested_json(depth)
    )


def test_json_of_a_reasonable_depth_is_read() -> None:
    assert read_experiment("exp_1", "string", nested_json(45)).tool == "t"


@pytest.mark.parametrize("depth", [105, 450, 960, 5_000, 100_000])
@pytest.mark.parametrize("place", ['{"experiment_id": %s}', '{"experiment_id": "a", "params": {"a": %s}}'])
def test_a_trigger_that_is_nested_too_deeply_is_refused(depth: int, place: str) -> None:
    with pytest.raises(ContractError, match=r"^trigger is (nested|not JSON)"):
        read_trigger(place % ("[" * depth + "]" * depth))


@pytest.mark.parametrize("depth", [150, 1_000, 20_000, 200_000])
@pytest.mark.parametrize("pair", ["[ ]", "{a: }", "- "])
def test_yaml_that_is_nested_too_deeply_is_refused(depth: int, pair: str) -> None:
    opening, _, closing = pair.partition(" ")
    text = f"{opening} " * depth + "1" + closing * depth

    assert "nested deeper than" in refusal("hash", {"spec": text})


def test_yaml_of_a_reasonable_depth_is_read() -> None:
    spec = "tool: t\nparams: {a: " + "[" * 90 + "]" * 90 + "}"

    assert read_experiment("exp_1", "hash", {"spec": spec}).tool == "t"


def bomb(first: str, line: str) -> str:
    """Nine levels, each ten times the one before."""
    lines = [f"a0: &a0 {first}"]
    lines += [f"a{i}: &a{i} " + line % ", ".join([f"*a{i - 1}"] * 10) for i in range(1, 10)]
    return "\n".join(["tool: t", *lines])


@pytest.mark.parametrize(("first", "line"), [("[x, y]", "[%s]"), ("{x: y}", "{<<: [%s]}")])
@pytest.mark.timeout(20)
def test_yaml_whose_aliases_unfold_into_too_much_is_refused(first: str, line: str) -> None:
    assert "it holds more than 100,000 values" in refusal("hash", {"spec": bomb(first, line)})


@pytest.mark.timeout(20)
def test_yaml_whose_long_texts_unfold_into_too_much_is_refused() -> None:
    spec = f"tool: t\nlong: &a {'x' * 100_000}\nparams: {{a: [{', '.join(['*a'] * 10_000)}]}}"

    assert "characters" in refusal("hash", {"spec": spec})


def test_yaml_that_contains_itself_is_refused() -> None:
    assert "not a YAML document" in refusal("hash", {"spec": "tool: t\nparams: &a {b: *a}"})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (".nan", "nan"),
        ("-.inf", "inf"),
        ("!!binary aGFsbG8=", "no form in JSON"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("0x" + "f" * 6_000, "digits"),
        ("*nowhere", "undefined alias"),
        ("!!timestamp 2024-13-45", "not a YAML document"),
    ],
)
def test_a_yaml_value_that_json_does_not_have_is_refused(value: str, why: str) -> None:
    message = refusal("hash", {"spec": f"tool: t\nparams:\n  a: {value}"})

    assert message.startswith("experiments:exp_1 field 'spec' is not a YAML document: ")
    assert why in message
    assert "\n" not in message


def test_several_yaml_documents_are_refused() -> None:
    assert "not a YAML document" in refusal("hash", {"spec": "tool: t\n---\ntool: u"})


def test_a_huge_value_where_a_text_is_expected_is_refused_like_a_small_one() -> None:
    assert "member 'tool'" in refusal("string", '{"tool": %s}' % ("9" * 4_000))
    assert "not JSON" in refusal("string", '{"tool": %s}' % ("9" * 5_000))


@pytest.mark.parametrize("read", [read_trigger, read_schedule_message])
def test_a_message_of_5_mb_is_refused_by_its_length(read: object) -> None:
    with pytest.raises(ContractError, match=r"is 5,000,0\d\d bytes long; at most 1,000,000 are read"):
        read('{"experiment_id": "a", "params": "%s"}' % ("x" * 4_999_985))  # type: ignore[operator]


def test_a_message_is_measured_in_bytes() -> None:
    with pytest.raises(ContractError, match="is 1,200,021 bytes long"):
        read_trigger('{"experiment_id": "%s"}' % ("ü" * 600_000))


def test_another_type_of_schedule_is_named() -> None:
    with pytest.raises(
        ContractError, match=r"^schedules:exp_1 is a Redis list; expected a string or a hash$"
    ):
        read_schedule("exp_1", "list", "")
