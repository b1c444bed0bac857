"""Read and write the texts of neighbours: JSON and times, as plain values and as checked records.

An error names the place of the text, the member and what was expected.
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from shared.errors import ContractError

MAX_DEPTH = 100

_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_NO_BRACKET = re.compile(r"[^\[\]{}]+")
_STEPS = bytes.maketrans(b"[{]}", bytes([1, 1, 255, 255]))  # 255 is -1 as a signed number
SURROGATES = re.compile("[\ud800-\udfff]")

Value = TypeVar("Value")
Record = TypeVar("Record", bound=BaseModel)

# -- JSON -----------------------------------------------------------------------------


def json_object(place: str, text: bytes | str) -> dict[str, Any]:
    """Return the JSON object in `text`.

    Raises:
        ContractError: `text` is not a JSON object, or is nested too deeply; names `place`.
    """
    try:
        decoded = text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")
        value = _decoder.decode(decoded.removeprefix("\ufeff"))
        if may_be_deeper(decoded, MAX_DEPTH) and is_deeper(decoded, MAX_DEPTH):
            raise ContractError(f"{place} is nested deeper than {MAX_DEPTH} levels")
    except (ValueError, RecursionError) as exc:
        raise ContractError(f"{place} is not JSON: {exc}; it starts with {shown(text)}") from None
    if not isinstance(value, dict):
        raise ContractError(f"{place} is {kind(value)}; expected a JSON object")
    return value


def json_text(value: Any, raw: str = "") -> str:
    """Return `value` as JSON that every reader accepts: an unpaired surrogate is written as an escape.

    Args:
        value: JSON's own types; other values are refused.
        raw: the text that `value` was read from.  Surrogates in it stand for bytes that are not UTF-8
            and are written unchanged.
    """
    try:
        return orjson.dumps(value, option=_PLAIN_VALUES_ONLY).decode()
    except TypeError:  # integers over 64 bits, surrogates, keys that are not texts, deep nesting
        text = _encode(value)
    return SURROGATES.sub(lambda found: found[0] if found[0] in raw else f"\\u{ord(found[0]):04x}", text)


def may_be_deeper(text: bytes | str, limit: int) -> bool:
    """Return whether JSON in `text` can be nested deeper than `limit`.

    Counting brackets is much faster than measuring the depth, and is enough for most texts.
    """
    if isinstance(text, str):
        return text.count("{") + text.count("[") > limit
    return text.count(b"{") + text.count(b"[") > limit


def is_deeper(text: str, limit: int) -> bool:
    """Return whether JSON is nested deeper: how many brackets are open at most."""
    brackets = _NO_BRACKET.sub("", _STRING.sub("", text)).encode()
    return max(accumulate(memoryview(brackets.translate(_STEPS)).cast("b")), default=0) > limit


def not_a_number(text: str) -> float:
    """Refuse a number that JSON doesn't have; raises ValueError."""
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else not_a_number(text)


_decoder = json.JSONDecoder(parse_constant=not_a_number, parse_float=_finite)
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_PLAIN_VALUES_ONLY = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

# -- times ----------------------------------------------------------------------------


def iso(seconds: float) -> str:
    """Return unix seconds as ISO 8601 in UTC, to the millisecond."""
    whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{iso_second(whole)}.{microseconds // 1_000:03d}+00:00"


@lru_cache(maxsize=64)
def iso_second(seconds: int) -> str:
    """Return whole unix seconds as ISO 8601 in UTC, without a zone."""
    # Cached, because most times are in the second of the last one.
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


# -- records --------------------------------------------------------------------------


def validated(record: type[Record], place: str, members: Mapping[str, Any]) -> Record:
    """Return `members` as a `record`.

    Raises:
        ContractError: names `place` and the first member that is wrong.
    """
    try:
        return record.model_validate(members)
    except ValidationError as exc:
        [first, *_] = mistakes(exc, record.model_fields)
    if first.value is None:
        raise ContractError(f"{place} has no '{first.member}'")
    raise ContractError(f"{place} member '{first.member}' is {shown(first.value)}: {first.problem}")


class Mistake(NamedTuple):
    """A wrong member of a record.

    `member` is its name, with an index for an item of a list (`names.1`); `value` is None if it is missing.
    """

    member: str
    value: object
    problem: str


def mistakes(exc: ValidationError, known: Iterable[str]) -> list[Mistake]:
    """Return what pydantic found wrong, in the words of this project.

    Args:
        exc: the error.
        known: the names of the record's members, for the message about a member that is not one of them.
    """
    return [
        Mistake(
            ".".join(map(str, one["loc"])),
            None if one["type"] == "missing" else one["input"],
            problem(one, known),
        )
        for one in exc.errors(include_url=False)
    ]


_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "path": "a path",
    "list": "a list",
    "tuple": "a list",
    "dict": "an object",
    "mapping": "an object",
    "model": "an object",
}
"""What was expected, by the first word of the type of pydantic's error, such as `int_parsing`."""

_BOUNDS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def problem(error: ErrorDetails, known: Iterable[str] = ()) -> str:
    """Return what one of pydantic's errors found wrong, in the words of this project; see `mistakes`."""
    about = error.get("ctx", {})
    match error["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return f"expected one of {', '.join(known)}"
        case "value_error":
            return str(about["error"])
        case "enum" | "literal_error":
            return f"expected {about['expected']}"
        case "string_too_short" | "too_short" if about["min_length"] == 1:
            return "must not be empty"
        case "string_too_short":
            return f"expected at least {about['min_length']} characters"
        case "string_too_long":
            return f"expected at most {about['max_length']} characters"
        case "string_pattern_mismatch":
            return f"expected a text that matches {about['pattern']}"
        case bound if bound in _BOUNDS:
            [limit] = about.values()
            number = "a whole number" if isinstance(limit, int) else "a number"
            return f"expected {number} {_BOUNDS[bound]} {int(limit) if limit == int(limit) else limit}"
        case other:
            first, _, _ = other.partition("_")
            return f"expected {_EXPECTED[first]}" if first in _EXPECTED else error["msg"]


def member(place: str, name: str, value: Any, read: Callable[[Any], Value]) -> Value:
    """Return `read(value)`.

    Raises:
        ContractError: `read` raised ValueError; names `place` and the member's `name`.
    """
    try:
        return read(value)
    except ValueError as exc:
        raise ContractError(f"{place} member '{name}' is {shown(value)}: {exc}") from None


# -- values in messages ---------------------------------------------------------------


def kind(value: object) -> str:
    """Return the kind of `value` in words, for an error message."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def printable(text: str) -> str:
    """Return `text` on one line, with control characters and surrogates as escapes."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def cut(text: str, most: int) -> str:
    """Return the beginning of `text`, and how much is left out, if it has more than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text) - most:,} characters left out)"


def cut_middle(text: str, most: int) -> str:
    """Return the beginning and the end of `text` if it has more than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... ({len(text) - most:,} characters left out) ...\n{text[-half:]}"


def visible(text: str) -> str:
    """Return `text`, which may have several lines, without characters that a terminal acts upon.

    These are control characters, among them the 8-bit ones, and those that change the direction of text.
    """
    if text.isprintable():
        return text
    lines = text.split("\n")
    if all(line.isprintable() for line in lines):
        return text
    return "\n".join("".join(map(visible_character, line.expandtabs())) for line in lines)


def visible_character(char: str) -> str:
    """Return a character, or a blank or a replacement if a terminal would act upon it."""
    if char.isprintable():
        return char
    return " " if char in "\t\n\r\v\f" else "\N{REPLACEMENT CHARACTER}"


def shown(value: object) -> str:
    """Return `value` as an error message quotes it: at most 80 characters on one line."""
    text = value[:400].decode(errors="replace") if isinstance(value, bytes) else str(value)
    return repr(text if len(text) <= 80 else text[:77] + "...")
