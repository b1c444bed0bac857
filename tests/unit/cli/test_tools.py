"""A tool's parameters on one line."""

from typing import Any

import pytest

from services.executor.tools.description_text import type_name
from services.operations.registered_tools import signature


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "string"}, "string"),
        ({"type": "array"}, "array"),
        ({"type": "array", "items": {"type": "string"}}, "string[]"),
        ({"type": ["string", "null"]}, "string | null"),
        ({"anyOf": [{"type": "array", "items": {"type": "integer"}}, {"type": "null"}]}, "integer[] | null"),
        ({"enum": ["a", 1]}, '"a" | 1'),
        ({}, ""),
    ],
)
def test_a_type_has_a_short_name(schema: dict[str, Any], words: str) -> None:
    assert type_name(schema) == words


def test_a_signature_shows_types_defaults_and_further_parameters() -> None:
    schema = {
        "properties": {"a": {"type": "string"}, "b": {"default": ""}, "c": {}},
        "required": ["a"],
        "additionalProperties": True,
    }

    assert signature(schema) == 'a: string, b = "", c = ..., ...'


@pytest.mark.parametrize(
    "schema", [None, "nonsense", [], {"properties": 3}, {"properties": {"a": 1}, "required": 1}]
)
def test_a_signature_tolerates_any_schema(schema: object) -> None:
    signature(schema)
