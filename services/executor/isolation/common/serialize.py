"""A tool's result, or the exception that it raised, as JSON."""

from __future__ import annotations

import math
import os
import re
import traceback
from typing import Any

from . import protocol
from .json_forms import CANT_HOLD, NoForm, clash, key_text, simpler

_ISOLATION = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OURS = tuple(os.path.join(_ISOLATION, package, "") for package in ("child", "common"))
_ASYNCIO = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "asyncio", "")
# The executor masks secrets and cuts once more, so that no part of a secret is left where a text is cut here.
MAX_MESSAGE_CHARACTERS = 100_000
MAX_TRACEBACK_CHARACTERS = 1_000_000
MAX_NAME_CHARACTERS = 10_000


class Unserializable(Exception):
    """A part of a value has no JSON form; the message names the part."""


# -- results --------------------------------------------------------------------------

_CONTAINERS = frozenset((dict, list, tuple))
_SCALARS = frozenset((str, int, float, bool, type(None)))
_encode = protocol.encoder(simpler)
_number_like = re.compile('"[-0-9]').search
_OTHER_KEYS = '"true":', '"false":', '"null":'


def to_json(value: Any, name: str = "result") -> bytes:
    """`value` as JSON in UTF-8, see `to_text`; a lone surrogate, which UTF-8 can't hold, is an escape."""
    return to_text(value, name).encode("utf-8", "backslashreplace")


def to_text(value: Any, name: str = "result") -> str:
    """`value` as JSON; docs/tools.md has a table of what becomes of each type.

    Raises Unserializable for what has no JSON form, and for keys that become the same text; it calls the
    value `name`.
    """
    try:
        text = _encode(value)
        dicts = text.count("{")  # at most, for texts may have some as well
        if dicts == 1 and type(value) is dict:
            for key in value:
                if type(key) is not str:  # a loop is faster than all that makes an object
                    _plain(value, name, ())
                    break
        elif dicts and _may_have_other_keys(text) and not _has_text_keys(value):
            _plain(value, name, ())
        return text
    except Unserializable:
        raise
    except Exception:
        return _in_steps(value, name)


def _may_have_other_keys(text: str) -> bool:
    """Whether JSON has keys that may have been something else than text: a number, a bool or None.

    Looking at the text takes a sixth of the time that looking at each part of the value would take.
    """
    return bool(_number_like(text)) or any(key in text for key in _OTHER_KEYS)


def _has_text_keys(value: Any) -> bool:
    """Whether `value` has only types of JSON, and all keys of each dict are of one type."""
    waiting = [value]  # not by recursion, whose limit is lower than that of the encoder
    while waiting:
        one = waiting.pop()
        kind = type(one)
        if kind is dict:
            kinds = set(map(type, one))
            if len(kinds) > 1 or not kinds <= _SCALARS:
                return False
            waiting.extend(one.values())
        elif kind in _CONTAINERS:
            waiting.extend(one)
        elif kind not in _SCALARS:
            return False
    return True


def _in_steps(value: Any, name: str) -> str:
    """The same for a value of which some keys are no plain ones, or some part has no form, which is named."""
    try:
        return _encode(_plain(value, name, ()))
    except Unserializable:
        raise
    except RecursionError:
        problem = f"{name} is nested too deeply for JSON; return a flatter structure"
    except Exception as error:
        problem = f"{name} can't be turned into JSON: {type(error).__name__}: {error}"
    raise Unserializable(problem)


def _plain(value: Any, path: str, above: tuple[int, ...]) -> Any:
    """`value` in JSON's own types.  Raises Unserializable for the first part that has no form."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, int):
        return _checked_int(value, path)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Unserializable(f"{path} is {value!r}, {CANT_HOLD}")
        return value
    if id(value) in above:
        raise Unserializable(f"{path} contains itself, {CANT_HOLD}")
    above = (*above, id(value))
    if isinstance(value, dict):
        return _plain_dict(value, path, above)
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{index}]", above) for index, item in enumerate(value)]
    try:
        nearer = simpler(value)
    except NoForm as error:
        raise Unserializable(f"{path} {str(error) or f'is {type(value).__name__}, {CANT_HOLD}'}") from None
    return _plain(nearer, path, above)


def _plain_dict(value: dict[Any, Any], path: str, above: tuple[int, ...]) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for key, item in value.items():
        try:
            text = key_text(key)
        except NoForm:
            kind = type(key).__name__
            raise Unserializable(
                f"{path} has the key {key!r:.80}, a {kind}; the keys of a JSON object are text"
            ) from None
        if isinstance(key, float) and not math.isfinite(key):
            raise Unserializable(f"{path} has the key {key!r}, {CANT_HOLD}")
        if text in plain:
            raise Unserializable(
                f"{path} has the keys {clash(value)}, which are the same text in JSON; rename one of them"
            )
        plain[text] = _plain(item, f"{path}[{key!r}]", above)
    return plain


def _checked_int(value: int, path: str) -> int:
    try:
        int.__repr__(value)
    except ValueError:  # Python writes no number of more digits than sys.set_int_max_str_digits() allows
        raise Unserializable(f"{path} is a whole number with too many digits, {CANT_HOLD}") from None
    return value


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
        return "; ".join([str(error) or type(error).__name__, *map(_leaf_text, _leaves(error))])
    except BaseException as broken:
        return f"(no message: str() of this {type(error).__name__} raised {type(broken).__name__})"


def _leaves(error: BaseException) -> list[BaseException]:
    """The exceptions in an exception group and in its groups; none if it is no group."""
    if not any(kind.__name__ == "BaseExceptionGroup" for kind in type(error).__mro__):
        return []  # before Python 3.11, the package exceptiongroup has it
    inner = _attribute(error, "exceptions") or ()
    return [leaf for one in inner for leaf in (_leaves(one) or [one])]


def _leaf_text(error: BaseException) -> str:
    name, text = type(error).__name__, _message(error)
    return name if text == name else f"{name}: {text}"


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except BaseException:
        return f"<{type(value).__name__}>"


def _retryable(error: BaseException) -> bool:
    said = _attribute(error, "retryable")
    if said is True or said is False:
        return said is True
    leaves = _leaves(error)
    if leaves:
        return all(map(_retryable, leaves))
    # ConnectionError and TimeoutError are among them.
    return issubclass(type(error), OSError) or _is_asyncio_timeout(error)


def _is_asyncio_timeout(error: BaseException) -> bool:
    """Before Python 3.11 the time-outs of asyncio and concurrent.futures were not TimeoutError."""
    kinds = {(kind.__module__, kind.__name__) for kind in type(error).__mro__}
    return bool(
        kinds & {("asyncio.exceptions", "TimeoutError"), ("concurrent.futures._base", "TimeoutError")}
    )


def _retry_after_seconds(error: BaseException) -> float | None:
    """What the exception asks for, or the exception of a group that asks for the longest time."""
    asked = [one for one in map(_own_retry_after, (error, *_leaves(error))) if one is not None]
    return max(asked, default=None)


def _own_retry_after(error: BaseException) -> float | None:
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
    found = [_attribute(one, "partial_results") for one in (error, *_leaves(error))]
    partials = [one for one in found if one is not None]
    if not partials:
        return None
    partial = partials[0] if len(partials) == 1 else partials
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
