"""Forms for parameters, made of the JSON Schema of a tool, and the parameters in a form that was sent."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

PREFIX = "p:"
"""Stands before the names of parameters in a form."""


class Kind(StrEnum):
    """How a parameter is entered."""

    CHOICE = "choice"
    FLAG = "yes or no"
    INTEGER = "integer"
    NUMBER = "number"
    TEXT = "text"
    JSON = "JSON"


_KINDS = {"integer": Kind.INTEGER, "number": Kind.NUMBER, "string": Kind.TEXT, "boolean": Kind.FLAG}


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the values of an enumeration; `text` is its JSON."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class FormField:
    """A parameter in a form.

    Attributes:
        name: of the parameter.
        kind: how it is entered.
        text: what is entered; of a flag "on" or "".
        is_required: whether it has to be given.
        about: its description.
        default: as JSON; "" if there is none.
        choices: the values of an enumeration.
        problem: what is wrong with the text.
    """

    name: str
    kind: Kind
    text: str
    is_required: bool
    about: str
    default: str
    choices: tuple[Choice, ...] = ()
    problem: str = ""


def fields_of(
    schema: object,
    params: Mapping[str, Any],
    form: Mapping[str, str] | None = None,
    problems: Mapping[str, str] | None = None,
) -> list[FormField]:
    """The fields of a form.

    Args:
        schema: of the tool's parameters; one that can't be read has none.
        params: what the fields contain; of other parameters, the default.
        form: what was entered instead, if the form is shown again.
        problems: what is wrong with that, by parameter.
    """
    found = []
    for name, one in _properties(schema).items():
        kind = _kind(one)
        text = _text(kind, params[name] if name in params else one.get("default"))
        found.append(
            FormField(
                name=name,
                kind=kind,
                text=text if form is None else form.get(PREFIX + name, ""),
                is_required=name in _required(schema),
                about=str(one.get("description", "")),
                default=_json(one["default"]) if "default" in one else "",
                choices=tuple(Choice(_json(value), str(value)) for value in _choices(one)),
                problem=(problems or {}).get(name, ""),
            )
        )
    return found


def read_params(schema: object, form: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """The parameters in a form, and what is wrong with it, by parameter.

    A parameter whose field is empty is left out, so that the experiment's value or the default applies.
    """
    params: dict[str, Any] = {}
    problems: dict[str, str] = {}
    for name, one in _properties(schema).items():
        kind, text = _kind(one), form.get(PREFIX + name, "")
        if kind is Kind.FLAG:
            params[name] = text == "on"
        elif text == "":
            if name in _required(schema):
                problems[name] = "is needed"
        else:
            try:
                params[name] = _value(kind, text, one)
            except ValueError:
                problems[name] = f"this is no {kind}"
    return params, problems


def _properties(schema: object) -> dict[str, Mapping[str, Any]]:
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(properties, Mapping):
        return {}
    return {name: one if isinstance(one, Mapping) else {} for name, one in properties.items()}


def _required(schema: object) -> list[Any]:
    required = schema.get("required") if isinstance(schema, Mapping) else None
    return required if isinstance(required, list) else []


def _choices(schema: Mapping[str, Any]) -> list[Any]:
    choices = schema.get("enum")
    return choices if isinstance(choices, list) else []


def _kind(schema: Mapping[str, Any]) -> Kind:
    if _choices(schema):
        return Kind.CHOICE
    kind: Any = schema.get("type")
    if isinstance(kind, list):  # a value or null: an empty field is left out
        others = [one for one in kind if one != "null"]
        kind = others[0] if len(others) == 1 else ""
    if isinstance(options := schema.get("anyOf"), list):
        others = [one for one in options if isinstance(one, Mapping) and one.get("type") != "null"]
        return _kind(others[0]) if len(others) == 1 else Kind.JSON
    return _KINDS.get(str(kind), Kind.JSON)


def _text(kind: Kind, value: Any) -> str:
    if kind is Kind.FLAG:
        return "on" if value is True else ""
    if value is None:
        return ""
    return value if kind is Kind.TEXT and isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _value(kind: Kind, text: str, schema: Mapping[str, Any]) -> Any:
    """Raises ValueError if the text is no value of this kind."""
    match kind:
        case Kind.TEXT:
            return text
        case Kind.INTEGER:
            return int(text)
        case Kind.NUMBER:
            return float(text)
        case Kind.CHOICE:
            value = json.loads(text)
            if value not in _choices(schema):
                raise ValueError(text)
            return value
        case _:
            return json.loads(text)
