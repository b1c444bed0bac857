"""Text that somebody else wrote, as plain values: JSON and YAML, checked, with errors that name the place."""

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import orjson

from shared.errors import ContractError
from shared.members import Misfits, Mistake, read

MAX_DEPTH = 100
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATES = re.compile("[\ud800-\udfff]")

Value = TypeVar("Value")
Record = TypeVar("Record")


def json_object(place: str, text: bytes | str) -> dict[str, Any]:
    """The JSON object in `text`.  Raises `ContractError`."""
    try:
        value = _decoder.decode(
            text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        )
        if may_be_deeper(text, MAX_DEPTH) and _is_deeper(value, MAX_DEPTH):
            raise ContractError(f"{place} is nested deeper than {MAX_DEPTH} levels")
    except (ValueError, RecursionError) as exc:
        raise ContractError(f"{place} is not JSON: {exc}; it starts with {shown(text)}") from None
    if not isinstance(value, dict):
        raise ContractError(f"{place} is {kind(value)}; expected a JSON object")
    return value


def yaml_object(place: str, text: str) -> dict[str, Any]:
    """The YAML mapping in `text`, as JSON would have it: dates become text.  Raises `ContractError`."""
    # Here, for a worker whose experiments are JSON never needs it.
    import yaml

    from shared.yaml_values import parsed

    try:
        value = parsed(text)
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


def validated(
    kind: type[Record],
    place: str,
    members: Mapping[str, Any],
    *,
    only_known: bool = False,
    strict: bool = False,
) -> Record:
    """`members` as a `kind`, a dataclass (see `shared/members.py`).

    Args:
        only_known, strict: see `read` there.

    Raises:
        ContractError: names the first member that doesn't fit.
    """
    try:
        return read(kind, members, only_known=only_known, strict=strict)
    except Misfits as exc:
        raise _unfit(place, exc.mistakes[0]) from None


def _unfit(place: str, one: Mistake) -> ContractError:
    if one.value is None:
        return ContractError(f"{place} has no '{one.name}'")
    return ContractError(f"{place} member '{one.name}' is {shown(one.value)}: {one.message}")


def kind(value: object) -> str:
    """What `value` is, in words for an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def may_be_deeper(text: bytes | str, limit: int) -> bool:
    """Whether there are brackets enough for that: to count them is much quicker than to look."""
    if isinstance(text, str):
        return text.count("{") + text.count("[") > limit
    return text.count(b"{") + text.count(b"[") > limit


def printable(text: str) -> str:
    """`text` on one line: what can't be seen is escaped."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def shown(value: object) -> str:
    """`value` as an error message quotes it: short, on one line."""
    text = value[:400].decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")


_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_NOTHING_NATIVE = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME


def no_number(text: str) -> float:
    """Refuses what is a number elsewhere, but not in JSON."""
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else no_number(text)


_decoder = json.JSONDecoder(parse_constant=no_number, parse_float=_finite)


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        inner = [one for one in level if isinstance(one, dict | list)]
        level = [item for one in inner for item in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True
