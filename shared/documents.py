"""Text that somebody else wrote, as plain values: JSON and YAML, checked, with errors that name the place."""

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from shared.errors import ContractError

MAX_VALUES = 100_000
_YamlLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

Value = TypeVar("Value")
Model = TypeVar("Model", bound=BaseModel)


def json_object(place: str, text: bytes | str) -> dict[str, Any]:
    """The JSON object in `text`.  Raises `ContractError`."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        raise ContractError(f"{place} is not JSON: {exc}; it starts with {shown(text)}") from None
    if not isinstance(value, dict):
        raise ContractError(f"{place} is {kind(value)}; expected a JSON object")
    return value


def yaml_object(place: str, text: str) -> dict[str, Any]:
    """The YAML mapping in `text`, as JSON would have it: dates become text.  Raises `ContractError`."""
    try:
        value = _parsed_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise ContractError(f"{place} is not a YAML document: {' '.join(str(exc).split())}") from None
    if not isinstance(value, dict):
        raise ContractError(f"{place} is {kind(value)}; expected a YAML mapping")
    return value


def member(place: str, name: str, value: Any, read: Callable[[Any], Value]) -> Value:
    """`read(value)`, its `ValueError` turned into a `ContractError` that names `place` and `name`."""
    try:
        return read(value)
    except ValueError as exc:
        raise ContractError(f"{place} member '{name}' is {shown(value)}: {exc}") from None


def validated(model: type[Model], place: str, members: Mapping[str, Any]) -> Model:
    """`members` as a `model`.  Raises `ContractError` for the first member that doesn't fit."""
    try:
        return model.model_validate(members)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing" or first["input"] is None:
            raise ContractError(f"{place} has no '{name}'") from None
        message = first["msg"].removeprefix("Value error, ")
        raise ContractError(f"{place} member '{name}' is {shown(first['input'])}: {message}") from None


def kind(value: object) -> str:
    """What `value` is, in words for an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def shown(value: object) -> str:
    """`value` as an error message quotes it: short, on one line."""
    text = value[:400].decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


@lru_cache(maxsize=256)
def _parsed_yaml(text: str) -> Any:
    # Cached: an experiment's file is read again for each of its runs.
    return _plain(yaml.load(text, Loader=_YamlLoader), budget=[MAX_VALUES])  # noqa: S506  (a safe loader)


def _plain(value: Any, budget: list[int]) -> Any:
    """YAML's values as JSON has them; refuses documents whose aliases unfold into too much."""
    budget[0] -= 1
    if budget[0] < 0:
        raise ValueError(f"it holds more than {MAX_VALUES:,} values")
    match value:
        case dict():
            return {_key(key): _plain(item, budget) for key, item in value.items()}
        case list() | set() | tuple():
            return [_plain(item, budget) for item in value]
        case None | str() | bool() | int() | float():
            return value
        case _ if hasattr(value, "isoformat"):
            return value.isoformat()
        case _:
            raise ValueError(f"{shown(value)} has no form in JSON")


def _key(key: object) -> str:
    return key if isinstance(key, str) else json.dumps(key, default=str)
