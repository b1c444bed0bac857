"""Set up structlog: JSON lines for machines, colours for a terminal, no secret in either.

Event names are `noun.past_verb` constants; what varies is in the fields.
"""

import io
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, TextIO

import structlog

from shared.documents import iso_second, json_text

_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|token|api[_-]?key|authorization|credential|private[_-]?key)"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/?#\s]*@|(?<=[?&]password=)[^&#\s]*")
_MASK = "***"
SHORTEST_SECRET = 6
SHORTEST_LINE = 8
"""Of a secret of several lines, such as a key in PEM: those that are shorter turn up anywhere."""

_known_secrets: set[str] = set()


def configure(
    *,
    level: str = "info",
    readable: bool | None = None,
    file: TextIO | None = None,
    for_good: bool = False,
) -> None:
    """Send every log line to stderr, or to `file`.

    Args:
        level: the lowest level that is written.
        readable: colours instead of JSON; by default when the lines go to a terminal.
        file: instead of stderr.
        for_good: this is not called again, so that loggers needn't ask for each line how it is to be written.
    """
    file = file or sys.stderr
    if readable is None:
        readable = file.isatty()
    rendering: Sequence[structlog.typing.Processor] = (
        (_mask_secrets, structlog.dev.ConsoleRenderer(exception_formatter=_write_traceback))
        if readable
        else (_show_traceback, _json_line)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _add_timestamp,
            *rendering,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=file),
        cache_logger_on_first_use=for_good,
    )


def keep_secret(value: str) -> None:
    """Mask `value` wherever it turns up in a log line from now on; short ones would mask half the log."""
    if len(value) >= SHORTEST_SECRET:
        _known_secrets.add(value)


def masked(text: str) -> str:
    """`text` without passwords in addresses and without any known secret."""
    if "://" in text or "password=" in text:
        text = _URL_PASSWORD.sub(_masked_part, text)
    if _known_secrets:
        for secret in sorted(_known_secrets, key=len, reverse=True):  # one may begin with another
            text = text.replace(secret, _MASK)
    return text


def masking(secrets: Iterable[str]) -> Callable[[str], str]:
    """What masks these secrets in a text, also line by line; short ones would mask half of it."""
    whole = {secret for secret in secrets if len(secret) >= SHORTEST_SECRET}
    if not whole:
        return unmasked
    lines = {line.strip() for secret in whole for line in secret.splitlines()}
    long_lines = {line for line in lines if len(line) >= SHORTEST_LINE}
    known = sorted(whole | long_lines, key=len, reverse=True)

    def mask(text: str) -> str:
        for secret in known:
            text = text.replace(secret, _MASK)
        return text

    return mask


def unmasked(text: str) -> str:
    """The text as it is: the mask of those who have no secrets."""
    return text


def masked_within(value: Any, mask: Callable[[str], str]) -> Any:
    """What JSON holds, masked in all its texts and names."""
    if mask is unmasked:
        return value
    match value:
        case str():
            return mask(value)
        case Mapping():
            return {mask(str(name)): masked_within(one, mask) for name, one in value.items()}
        case list() | tuple():
            return [masked_within(one, mask) for one in value]
        case _:
            return value


def _add_timestamp(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """ISO 8601 in UTC."""
    now = time.time_ns()
    event["timestamp"] = f"{iso_second(now // 1_000_000_000)}.{now // 1_000 % 1_000_000:06d}Z"
    return event


def _json_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    """Most lines hold no secret, which is told at once from the whole of a line."""
    if _is_flat(event):
        line = json_text(event)
        if not _may_hold_a_secret(line):
            return line
    return json_text(_mask_secrets(logger, method, event))


_FLAT = frozenset({str, int, float, bool, type(None)})


def _is_flat(event: Mapping[str, Any]) -> bool:
    """Whether it holds nothing that has names of its own, and no name of a secret."""
    return _FLAT.issuperset(map(type, event.values())) and not any(map(_names_a_secret, event))


def _may_hold_a_secret(line: str) -> bool:
    return (
        "://" in line or "password=" in line or any(_as_in_json(secret) in line for secret in _known_secrets)
    )


@lru_cache
def _as_in_json(text: str) -> str:
    return json_text(text)[1:-1]


def _masked_part(found: re.Match[str]) -> str:
    user, at, _ = found[0].rpartition("@")
    if not at:
        return _MASK
    return f"{_MASK}@" if ":" in user else found[0]


# Local variables would be written as they are: no mask knows what is in their text.
_dict_tracebacks = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def _show_traceback(
    logger: structlog.typing.WrappedLogger, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    return _dict_tracebacks(logger, method, event) if "exc_info" in event else event


def _write_traceback(file: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    text = io.StringIO()
    structlog.dev.plain_traceback(text, exc_info)
    file.write(masked(text.getvalue()))


def _mask_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = _MASK if _names_a_secret(name) and value else _masked_value(value)
    return event


@lru_cache
def _names_a_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _masked_value(value: Any) -> Any:
    match value:
        case str():
            return masked(value)
        case None | bool() | int() | float():
            return value
        case dict():
            return {str(k): _MASK if _names_a_secret(str(k)) else _masked_value(v) for k, v in value.items()}
        case list() | tuple():
            return [_masked_value(item) for item in value]
        case _:
            return masked(str(value))
