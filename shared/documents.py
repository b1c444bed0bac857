"""Text that somebody else wrote, as plain values: JSON and YAML, checked, with errors that name the place."""

import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date
from functools import lru_cache
from typing import Any, TypeVar

import orjson
import yaml
from pydantic import BaseModel, ValidationError

from shared.errors import ContractError

MAX_DEPTH = 100
MAX_VALUES = 100_000
CHARACTERS_PER_VALUE = 100
_MAX_INTEGER_BITS = 14_000  # what Python prints without being told to
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")

Value = TypeVar("Value")
Model = TypeVar("Model", bound=BaseModel)


def json_object(place: str, text: bytes | str) -> dict[str, Any]:
    """The JSON object in `text`.  Raises `ContractError`."""
    try:
        value = _decoder.decode(
            text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        )
        if _is_deeper(value, MAX_DEPTH):
            raise ContractError(f"{place} is nested deeper than {MAX_DEPTH} levels")
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


def json_text(value: Any, raw: str = "") -> str:
    """`value` as JSON that every reader takes: half a surrogate pair is escaped, not written as it is.

    Args:
        raw: the text that `value` was read from; bytes in it that were not UTF-8 stay as they were.
    """
    try:
        return orjson.dumps(value, option=_NOTHING_NATIVE).decode()
    except TypeError:  # large integers, surrogates, names that are no text, deep nesting
        text = _encode(value)
    return _SURROGATES.sub(lambda found: found[0] if found[0] in raw else f"\\u{ord(found[0]):04x}", text)


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
        raise misfit(place, exc) from None


def misfit(place: str, exc: ValidationError) -> ContractError:
    """The error that names the first member of the document at `place` that doesn't fit."""
    first = exc.errors(include_url=False, include_context=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"].startswith("missing") or first["input"] is None:
        return ContractError(f"{place} has no '{name}'")
    message = first["msg"].removeprefix("Value error, ")
    return ContractError(f"{place} member '{name}' is {shown(first['input'])}: {message}")


def kind(value: object) -> str:
    """What `value` is, in words for an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def printable(text: str) -> str:
    """`text` on one line: what can't be seen is escaped."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def shown(value: object) -> str:
    """`value` as an error message quotes it: short, on one line."""
    text = value[:400].decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_NOTHING_NATIVE = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


_decoder = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [item for one in inner for item in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True


# -- YAML -----------------------------------------------------------------------------


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, also from merge keys (`<<`) that unfold into too much while they are read."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise _too_much()


@lru_cache(maxsize=256)
def _parsed_yaml(text: str) -> Any:
    # Cached: an experiment's file is read again for each of its runs.
    _check_nesting(text)
    return _plain(yaml.load(text, Loader=_YamlLoader), budget=[MAX_VALUES])  # noqa: S506  (a safe loader)


def _check_nesting(text: str) -> None:
    """Before the document is built: libyaml builds recursively, and overflows the C stack."""
    depth = 0
    for event in yaml.parse(text, Loader=_YamlLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _plain(value: Any, budget: list[int]) -> Any:
    """YAML's values as JSON has them; refuses documents whose aliases unfold into too much."""
    budget[0] -= 1 + (len(value) // CHARACTERS_PER_VALUE if isinstance(value, str) else 0)
    if budget[0] < 0:
        raise _too_much()
    match value:
        case dict():
            return {_key(key): _plain(item, budget) for key, item in value.items()}
        case list() | set() | tuple():
            return [_plain(item, budget) for item in value]
        case None | str() | bool():
            return value
        case int() | float():
            return _number(value)
        case date():
            return value.isoformat()
        case _:
            raise ValueError(f"{shown(value)} has no form in JSON")


def _number(value: float) -> float:
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        raise ValueError("it holds a number with too many digits")
    return value if isinstance(value, int) or math.isfinite(value) else _no_number(str(value))


def _key(key: object) -> str:
    match key:
        case str():
            return key
        case date():
            return key.isoformat()
        case None | bool() | int() | float():
            return json.dumps(key)
        case _:
            raise ValueError(f"the key {shown(key)} has no form in JSON")


def _too_much() -> ValueError:
    characters = MAX_VALUES * CHARACTERS_PER_VALUE
    return ValueError(f"it holds more than {MAX_VALUES:,} values or {characters:,} characters")
