"""A tool's result as JSON, or a sentence that says which part of it can't be."""

from __future__ import annotations

import enum
import math
import os
from typing import Any

from . import protocol

CANT_HOLD = "which JSON can't hold; return text, a number, a list or a dict there, or save it as an artifact"


class Unserializable(Exception):
    """Some part of a value has no JSON form; the message names the part."""


class _Unknown(Exception):
    """No rule turns this object into something simpler."""


def to_json(value: Any, name: str = "result") -> bytes:
    """`value` as JSON in UTF-8.

    Beyond what JSON knows: tuples and named tuples become lists; sets become
    sorted lists (in any order if they can't be sorted); dates and times their
    ISO form; Decimal, UUID and paths text, so that nothing is rounded;
    enumeration members their value; dataclasses and pydantic models objects;
    numpy scalars and arrays numbers and lists.  Keys that are numbers, bools or
    None become text.  Raises Unserializable for anything else.
    """
    try:
        return _encode(value).encode("utf-8", "replace")
    except Exception as error:
        raise Unserializable(_explain(value, name, error)) from None


def simpler(value: Any) -> Any:
    """One step from an object that JSON doesn't know towards one it does; TypeError if there is none."""
    try:
        return _simpler(value)
    except _Unknown:
        raise TypeError(type(value).__name__) from None


_encode = protocol.encoder(simpler)


def _simpler(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return _in_order(value)
    if isinstance(value, enum.Enum):
        return value.value
    kind = type(value)
    if isinstance(value, type) or isinstance(value, (bytes, bytearray, memoryview)):
        raise _Unknown
    if hasattr(kind, "__dataclass_fields__"):
        return {field: getattr(value, field) for field in kind.__dataclass_fields__ if hasattr(value, field)}
    if hasattr(kind, "model_dump"):
        return value.model_dump(mode="json")
    if hasattr(kind, "isoformat"):
        return value.isoformat()
    if hasattr(kind, "tolist") and hasattr(kind, "dtype"):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if (kind.__module__, kind.__qualname__) in (("decimal", "Decimal"), ("uuid", "UUID")):
        return str(value)
    raise _Unknown


def _in_order(values: Any) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _explain(value: Any, name: str, error: Exception) -> str:
    """The sentence for the first part of `value` that made the encoder give up."""
    try:
        return _find(value, name, ()) or f"{name} can't be turned into JSON: {type(error).__name__}: {error}"
    except RecursionError:
        return f"{name} is nested too deeply for JSON; return a flatter structure"
    except Exception as further:
        return f"{name} can't be turned into JSON: {type(further).__name__}: {further}"


def _find(value: Any, path: str, above: tuple[int, ...]) -> str | None:
    if value is None or isinstance(value, (str, bool, int)):
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{path} is {value!r}, {CANT_HOLD}"
    if id(value) in above:
        return f"{path} contains itself, {CANT_HOLD}"
    above = (*above, id(value))
    if isinstance(value, dict):
        return _find_in_dict(value, path, above)
    if isinstance(value, (list, tuple)):
        problems = (_find(item, f"{path}[{index}]", above) for index, item in enumerate(value))
        return next((problem for problem in problems if problem), None)
    try:
        return _find(_simpler(value), path, above)
    except _Unknown:
        return f"{path} is {type(value).__name__}, {CANT_HOLD}"


def _find_in_dict(value: dict[Any, Any], path: str, above: tuple[int, ...]) -> str | None:
    for key, item in value.items():
        if not (key is None or isinstance(key, (str, int, float, bool))):
            return (
                f"{path} has the key {key!r:.80}, a {type(key).__name__}; the keys of a JSON object are text"
            )
        problem = _find(item, f"{path}[{key!r}]", above)
        if problem:
            return problem
    return None
