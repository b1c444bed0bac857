"""YAML as the plain values that JSON has.  Apart from `documents.py`, as few workers ever meet any."""

import json
import math
from datetime import date
from functools import lru_cache
from typing import Any

import yaml

from shared.documents import MAX_DEPTH, no_number, shown

MAX_VALUES = 100_000
CHARACTERS_PER_VALUE = 100
_MAX_INTEGER_BITS = 14_000  # what Python prints without being told to


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe, also from merge keys (`<<`) that unfold into too much while they are read."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_VALUES:
            raise _too_much()


@lru_cache(maxsize=256)
def parsed(text: str) -> Any:
    """What the one document in `text` says.  Raises ValueError, yaml.YAMLError or RecursionError."""
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
    return value if isinstance(value, int) or math.isfinite(value) else no_number(str(value))


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
