"""Checks the parameters of all cases of a plan against the schema of its tool, before one runs.  Pure."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from services.planner.models import TestCase
from shared.documents import printable
from shared.errors import PlanError

SHOWN: Final = 20
VALUE_CHARACTERS: Final = 60
_WORDS: Final = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
    "object": "an object",
    "array": "a list",
}


def check_cases(tool: str, cases: Sequence[TestCase], schema: Mapping[str, Any]) -> None:
    """Compare the parameters of each case with the schema: names, and types as far as the schema says them.

    Args:
        tool: its name, for the message.
        cases: of the plan.
        schema: JSON Schema of the tool's parameters.

    Raises:
        PlanError: a line for each mistake, with the number of cases that have it.
    """
    found: dict[str, list[int]] = {}
    for index, case in enumerate(cases):
        for mistake in _mistakes(case.parameters, schema):
            found.setdefault(mistake, []).append(index)
    if not found:
        return
    lines = [f"{mistake} ({_where(indexes)})" for mistake, indexes in found.items()]
    if len(lines) > SHOWN:
        lines[SHOWN:] = [f"and {len(lines) - SHOWN:,} more mistakes"]
    takes = ", ".join(schema.get("properties", {})) or "no parameters"
    raise PlanError("\n".join([*lines, f"the tool {tool} takes: {takes}; nothing was run"]))


def _where(indexes: Sequence[int]) -> str:
    return f"case {indexes[0]}" if len(indexes) == 1 else f"{len(indexes):,} cases, the first is {indexes[0]}"


def _mistakes(parameters: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    known: Mapping[str, Any] = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in parameters:
            yield f"parameter '{name}' is missing"
    for name, value in parameters.items():
        if name in known:
            if not fits(value, known[name]):
                yield f"parameter '{name}' is {_shown(value)}; expected {_expected(known[name])}"
        elif not schema.get("additionalProperties", False):
            yield f"parameter '{printable(name)}' is unknown"


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether a JSON value fits a schema, of which `type`, `enum`, `anyOf` and `items` are read.

    As in JSON Schema, 2.0 is a whole number, and true is no number.  A parameter's default always fits.
    """
    if "default" in schema and _is_same(value, schema["default"]):
        return True
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return any(_is_same(value, one) for one in schema["enum"])
    kinds = schema.get("type")
    if kinds is None:
        return True
    return any(_is(value, kind, schema) for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _is(value: Any, kind: str, schema: Mapping[str, Any]) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return _is_number(value) and value == value // 1
        case "number":
            return _is_number(value)
        case "boolean":
            return isinstance(value, bool)
        case "null":
            return value is None
        case "object":
            return isinstance(value, Mapping)
        case "array":
            items = schema.get("items", {})
            return isinstance(value, list | tuple) and all(fits(one, items) for one in value)
        case _:
            return True


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_same(value: Any, other: Any) -> bool:
    """Whether two JSON values are the same; in Python, true equals 1."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _expected(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_expected(one) for one in schema["anyOf"])
    if "enum" in schema:
        return f"one of {', '.join(map(_shown, schema['enum']))}"
    kinds = schema.get("type", ())
    words = " or ".join(_WORDS.get(one, one) for one in ([kinds] if isinstance(kinds, str) else kinds))
    items = schema.get("items")
    return f"{words} in which each is {_expected(items)}" if items and kinds == "array" else words


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return printable(text if len(text) <= VALUE_CHARACTERS else text[: VALUE_CHARACTERS - 3] + "...")
