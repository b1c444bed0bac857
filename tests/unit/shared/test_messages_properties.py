"""A reader reads or refuses any content; it never fails otherwise."""

import json
import math
from collections.abc import Callable
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.documents import json_text
from shared.errors import ContractError
from shared.messages import Policy, State, place_of_state, read_experiment, read_experiment_file, read_trigger
from shared.schedules import read_schedule, read_schedule_message

# A shared core makes a single example slow at times; the same examples on every run are no surprise.
steady = settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)

MEMBERS = [
    *("experiment", "execution", "spec", "tool", "params", "state", "schedule", "timezone", "cron"),
    *("experiment_id", "request_id", "enabled", "timeout_seconds", "max_attempts", "priority", "id"),
]
any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=30)
texts = st.one_of(
    any_text,
    st.sampled_from(
        ["ready", "archived", "0 9 * * MON", "UTC", "true", "1", "-1", "nan", "1e999", "{}", "[]"]
    ),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
names = st.one_of(st.sampled_from(MEMBERS), any_text)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
    max_leaves=15,
)
objects = st.dictionaries(names, values, max_size=8)
json_texts = st.one_of(
    any_text,
    values.map(json.dumps),
    objects.map(json.dumps),
    objects.map(lambda one: json.dumps(one, ensure_ascii=False)),
)
yaml_texts = st.one_of(
    any_text,
    st.text("{}[]:-&*!<>|'\"#\n aé01~.", max_size=40),
    objects.map(lambda one: yaml.safe_dump(one, default_flow_style=True)),
)
fields = st.dictionaries(names, st.one_of(json_texts, yaml_texts, texts), max_size=6)


def reads_or_refuses(read: Callable[[], Any]) -> None:
    message = "read"
    try:
        read()
    except ContractError as exc:
        message = str(exc)

    assert message
    assert "\n" not in message


@steady
@given(any_text, st.sampled_from(["hash", "string", "list", ""]), st.one_of(json_texts, fields))
def test_an_experiment_is_read_or_refused(
    experiment_id: str, redis_type: str, content: str | dict[str, str]
) -> None:
    reads_or_refuses(lambda: read_experiment(experiment_id, redis_type, content))


@steady
@given(yaml_texts)
def test_an_experiment_file_is_read_or_refused(text: str) -> None:
    reads_or_refuses(lambda: read_experiment_file("a.yaml", text))
    reads_or_refuses(lambda: read_experiment("a", "hash", {"spec": text}))


@steady
@given(st.one_of(json_texts, st.binary(max_size=60)))
def test_a_trigger_is_read_or_refused(data: bytes | str) -> None:
    reads_or_refuses(lambda: read_trigger(data))


@steady
@given(any_text, st.sampled_from(["hash", "string", "zset"]), st.one_of(json_texts, fields))
def test_a_schedule_is_read_or_refused(
    experiment_id: str, redis_type: str, content: str | dict[str, str]
) -> None:
    reads_or_refuses(lambda: read_schedule(experiment_id, redis_type, content))


@steady
@given(st.one_of(json_texts, st.binary(max_size=60)))
def test_a_schedule_message_is_read_or_refused(data: bytes | str) -> None:
    reads_or_refuses(lambda: read_schedule_message(data))


@steady
@given(objects, st.sampled_from(State), st.booleans())
def test_a_document_in_another_state_has_all_its_other_members(
    members: dict[str, Any], state: State, is_wrapped: bool
) -> None:
    free = {name: value for name, value in members.items() if name not in _UNDERSTOOD}
    inner = _finite({**free, "tool": "t", "state": "ready"})
    document = {"experiment": inner, "more": 1} if is_wrapped else inner

    place = place_of_state(json.dumps(document))
    assert place is not None
    moved = state.value.join(place[1:])

    inner["state"] = state.value
    assert json.loads(moved.encode()) == document


@steady
@given(values)
def test_json_text_is_utf_8_and_means_the_same(value: Any) -> None:
    value = _finite(value)

    assert json.loads(json_text(value).encode()) == json.loads(json.dumps(value))


_UNDERSTOOD = {"experiment", "execution", "params", "schedule", "timezone", *Policy.model_fields}


def _finite(value: Any) -> Any:
    match value:
        case dict():
            return {name: _finite(one) for name, one in value.items()}
        case list():
            return [_finite(one) for one in value]
        case float() if not math.isfinite(value):
            return 0.0
        case _:
            return value
