"""Forms made of JSON Schema."""

from typing import Any

import pytest

from services.web.forms import Kind, fields_of, read_params

SCHEMA: dict[str, Any] = {
    "properties": {
        "name": {"type": "string", "description": "what it is called"},
        "mode": {"enum": ["fast", 2, None], "default": "fast"},
        "count": {"type": ["integer", "null"], "default": 3},
        "rate": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "dry": {"type": "boolean", "default": True},
        "tags": {"type": "array"},
    },
    "required": ["name"],
}


def test_each_type_has_its_field_with_what_applies_now() -> None:
    fields = fields_of(SCHEMA, {"count": 7, "tags": ["é"]})

    assert [(one.name, one.kind, one.text, one.default) for one in fields] == [
        ("name", Kind.TEXT, "", ""),
        ("mode", Kind.CHOICE, '"fast"', '"fast"'),
        ("count", Kind.INTEGER, "7", "3"),
        ("rate", Kind.NUMBER, "", ""),
        ("dry", Kind.FLAG, "on", "true"),
        ("tags", Kind.JSON, '["é"]', ""),
    ]
    assert fields[0].is_required
    assert fields[0].about == "what it is called"
    assert [choice.label for choice in fields[1].choices] == ["fast", "2", "None"]


def test_what_was_entered_becomes_values_of_their_types_and_empty_fields_are_left_out() -> None:
    form = {"p:name": "x", "p:mode": "2", "p:count": "", "p:rate": "1e-3", "p:tags": "[1]", "p:other": "1"}

    params, problems = read_params(SCHEMA, form)

    assert params == {"name": "x", "mode": 2, "rate": 0.001, "dry": False, "tags": [1]}
    assert problems == {}


@pytest.mark.parametrize(
    ("name", "text"),
    [("count", "1.5"), ("rate", "much"), ("mode", '"slow"'), ("mode", "fast"), ("tags", "[1"), ("name", "")],
)
def test_what_is_wrong_is_said_of_its_field_and_stays_entered(name: str, text: str) -> None:
    form = {"p:name": "x", f"p:{name}": text}

    params, problems = read_params(SCHEMA, form)
    shown = {one.name: one for one in fields_of(SCHEMA, {}, form, problems)}

    assert name not in params
    assert list(problems) == [name]
    assert (shown[name].text, shown[name].problem) == (text, problems[name])


@pytest.mark.parametrize("schema", [None, "text", {}, {"properties": []}, {"properties": {"a": 1}}])
def test_a_schema_that_says_little_is_no_error(schema: Any) -> None:
    assert read_params(schema, {})[1] == {}
    assert len(fields_of(schema, {"a": 1})) <= 1
