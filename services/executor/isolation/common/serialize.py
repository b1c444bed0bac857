"""A tool's result, or the exception that it raised, as JSON."""

from __future__ import annotations

import enum
import math
import os
import traceback
from typing import Any

from . import protocol

CANT_HOLD = "which JSON can't hold; return text, a number, a list or a dict there, or save it as an artifact"

_ISOLATION = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = tuple(os.path.join(_ISOLATION, package, "") for package in ("child", "common"))
_ASYNCIO = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "asyncio", "")
# The executor masks secrets and cuts once more, so that no part of a secret is left where a text is cut here.
MAX_MESSAGE_CHARACTERS = 100_000
MAX_TRACEBACK_CHARACTERS = 1_000_000
MAX_NAME_CHARACTERS = 10_000


class Unserializable(Exception):
    """A part of a value has no JSON form; the message names the part."""


class _NoRule(Exception):
    """No rule turns this object into something simpler."""


# -- results --------------------------------------------------------------------------


def to_json(value: Any, name: str = "result") -> bytes:
    """`value` as JSON in UTF-8.

    Beyond what JSON knows: tuples and named tuples become lists; sets become sorted lists (in any order if
    they can't be sorted); dates and times their ISO form; Decimal, UUID and paths text, so that nothing is
    rounded; enumeration members their value; dataclasses and pydantic models objects; numpy scalars and
    arrays numbers and lists.  Keys that are numbers, bools or None become text.

    Raises Unserializable for anything else; it calls the value `name`.
    """
    try:
        # A lone surrogate, which UTF-8 can't hold, becomes JSON's escape.
        return _encode(value).encode("utf-8", "backslashreplace")
    except Exception as error:
        raise Unserializable(_explain(value, name, error)) from None


def simpler(value: Any) -> Any:
    """One step from an object that JSON doesn't know towards one it does.  TypeError if there is none."""
    try:
        return _simpler(value)
    except _NoRule:
        raise TypeError(type(value).__name__) from None


_encode = protocol.encoder(simpler)


def _simpler(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return _in_order(value)
    if isinstance(value, enum.Enum):
        return value.value
    kind = type(value)
    if isinstance(value, type) or isinstance(value, (bytes, bytearray, memoryview)):
        raise _NoRule
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
    raise _NoRule


def _in_order(values: Any) -> list[Any]:
    try:
        return sorted(values)
    except TypeError:
        return list(values)


def _explain(value: Any, name: str, error: Exception) -> str:
    """The sentence for the first part of `value` that can't be encoded."""
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
    except _NoRule:
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


# -- exceptions -----------------------------------------------------------------------


def exception_data(error: BaseException, limit_bytes: int) -> dict[str, Any]:
    """Type, message, the tool's traceback, and what the exception says about a retry.

    The exception's class may be broken in any way.  It is found by `type()`, because an exception can lie
    even about `__class__`.  `partial_results`, if there are any of at most `limit_bytes`, are JSON already.
    """
    data = {
        "error_type": type(error).__name__[:MAX_NAME_CHARACTERS],
        "message": _cut(_message(error), MAX_MESSAGE_CHARACTERS),
        "traceback": _cut(format_traceback(error), MAX_TRACEBACK_CHARACTERS),
        "retryable": _retryable(error),
        "retry_after_seconds": _retry_after_seconds(error),
    }
    partial = _partial_results(error, limit_bytes)
    if partial is not None:
        data["partial_results"] = partial
    return data


def format_traceback(error: BaseException) -> str:
    """The traceback and its chain of causes, beginning at the tool's first frame."""
    try:
        formatted = traceback.TracebackException.from_exception(error)
        _cut_frames(formatted, set())
        return "".join(formatted.format()).rstrip()
    except BaseException as broken:
        return f"{type(error).__name__} (its traceback can't be formatted: {type(broken).__name__})"


def _cut_frames(formatted: Any, seen: set[int]) -> None:
    """Cut each stack down to what follows the last frame of ours that leads into the tool."""
    if formatted is None or id(formatted) in seen:
        return
    seen.add(id(formatted))
    frames = list(formatted.stack)
    first = next((index for index, frame in enumerate(frames) if not _leads_in(frame.filename)), len(frames))
    formatted.stack[:] = [frame for frame in frames[first:] if not frame.filename.startswith(OURS)]
    _cut_frames(formatted.__cause__, seen)
    _cut_frames(formatted.__context__, seen)
    for inner in getattr(formatted, "exceptions", None) or ():
        _cut_frames(inner, seen)


def _leads_in(filename: str) -> bool:
    """Whether a frame can stand between the start of the process and the tool: ours, or the event loop's."""
    return filename.startswith((*OURS, _ASYNCIO))


def _message(error: BaseException) -> str:
    if issubclass(type(error), SystemExit):
        code = _safe_repr(_attribute(error, "code"))
        return f"the tool called sys.exit({code}); return a result or raise an exception instead"
    try:
        return str(error) or type(error).__name__
    except BaseException as broken:
        return f"(no message: str() of this {type(error).__name__} raised {type(broken).__name__})"


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except BaseException:
        return f"<{type(value).__name__}>"


def _retryable(error: BaseException) -> bool:
    said = _attribute(error, "retryable")
    if said is True or said is False:
        return said is True
    # ConnectionError and TimeoutError are among them.
    return issubclass(type(error), OSError) or _is_asyncio_timeout(error)


def _is_asyncio_timeout(error: BaseException) -> bool:
    """Before Python 3.11 the time-outs of asyncio and concurrent.futures were not TimeoutError."""
    kinds = {(kind.__module__, kind.__name__) for kind in type(error).__mro__}
    return bool(
        kinds & {("asyncio.exceptions", "TimeoutError"), ("concurrent.futures._base", "TimeoutError")}
    )


def _retry_after_seconds(error: BaseException) -> float | None:
    said = _attribute(error, "retry_after")
    if type(said) not in (int, float):
        return None
    try:
        seconds = float(said)
    except (OverflowError, ValueError):
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _partial_results(error: BaseException, limit_bytes: int) -> bytes | None:
    """`partial_results` as JSON.  What can't be sent is left out: it must not hide the error itself."""
    partial = _attribute(error, "partial_results")
    if partial is None:
        return None
    try:
        encoded = to_json(partial, "partial_results")
    except Unserializable:
        return None
    return encoded if len(encoded) <= limit_bytes else None


def _attribute(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except BaseException:
        return None


def _cut(text: str, limit: int) -> str:
    """Keep the beginning, which tells where, and the end, which tells what happened."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - limit} characters left out) ...\n{text[-half:]}"
