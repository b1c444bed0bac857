"""An exception as data: type, message, the tool's own traceback, and what it says of a retry."""

from __future__ import annotations

import math
import os
import traceback
from typing import Any

from . import convert

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = tuple(os.path.join(_HERE, package, "") for package in ("child", "common"))
MAX_MESSAGE_CHARACTERS = 16_384
MAX_TRACEBACK_CHARACTERS = 1_000_000


def describe(error: BaseException, limit_bytes: int) -> dict[str, Any]:
    """Everything that is worth knowing about `error`, however broken its class is.

    Its class is asked by `type()`: an exception may lie even about `__class__`.
    """
    data = {
        "error_type": type(error).__name__,
        "message": _cut(_message(error), MAX_MESSAGE_CHARACTERS),
        "traceback": _cut(trace(error), MAX_TRACEBACK_CHARACTERS),
        "retryable": _retryable(error),
        "retry_after_seconds": _retry_after_seconds(error),
    }
    partial = _partial_results(error, limit_bytes)
    if partial is not None:
        data["partial_results"] = partial
    return data


def trace(error: BaseException) -> str:
    """The traceback and its chain of causes, beginning at the tool's first frame."""
    try:
        formatted = traceback.TracebackException.from_exception(error)
        _without_ours(formatted, set())
        return "".join(formatted.format()).rstrip()
    except BaseException as broken:
        return f"{type(error).__name__} (its traceback can't be formatted: {type(broken).__name__})"


def is_ours(filename: str) -> bool:
    """Whether a frame belongs to the executor's side of the process."""
    return filename.startswith(OURS)


def _without_ours(formatted: Any, seen: set[int]) -> None:
    """Cut each stack down to what comes after the last frame of ours that leads into the tool."""
    if formatted is None or id(formatted) in seen:
        return
    seen.add(id(formatted))
    frames = list(formatted.stack)
    first = next((index for index, frame in enumerate(frames) if not _leads_in(frame.filename)), len(frames))
    formatted.stack[:] = [frame for frame in frames[first:] if not is_ours(frame.filename)]
    _without_ours(formatted.__cause__, seen)
    _without_ours(formatted.__context__, seen)
    for inner in getattr(formatted, "exceptions", None) or ():
        _without_ours(inner, seen)


def _leads_in(filename: str) -> bool:
    """Whether a frame stands between the process' start and the tool: ours, or the event loop's."""
    return is_ours(filename) or filename.startswith(_ASYNCIO)


_ASYNCIO = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "asyncio") + os.sep


def _message(error: BaseException) -> str:
    if issubclass(type(error), SystemExit):
        code = _safe_repr(_attribute(error, "code"))
        return f"the tool called sys.exit({code}); return a result or raise an exception instead"
    try:
        return str(error)
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
    """`partial_results` as JSON; what can't be sent is left out rather than hiding the error itself."""
    partial = _attribute(error, "partial_results")
    if partial is None:
        return None
    try:
        encoded = convert.to_json(partial, "partial_results")
    except convert.Unserializable:
        return None
    return encoded if len(encoded) <= limit_bytes else None


def _attribute(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except BaseException:
        return None


def _cut(text: str, limit: int) -> str:
    """Keep the end, which tells what happened, and the beginning, which tells where."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... ({len(text) - limit} characters left out) ...\n{text[-half:]}"
