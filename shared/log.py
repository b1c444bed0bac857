"""Logs with structlog: JSON lines for machines, coloured lines for a terminal, and no secrets in either.

The name of an event is `noun.past_verb`; values are in its fields.
"""

import base64
import io
import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any, TextIO
from urllib.parse import quote, quote_plus

import structlog

from shared.documents import iso_second, json_text, visible

_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|token|api[_-]?key|authorization|credential|private[_-]?key)"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/?#\s]*@|(?<=[?&]password=)[^&#\s]*")
_MASK = "***"
_ESCAPE = re.compile("%[0-9A-F]{2}")
_URL_SAFE = str.maketrans("+/", "-_")
SHORTEST_SECRET = 6
"""Shorter secrets are not masked, because they occur in too many texts."""
SHORTEST_LINE = 8
"""The same for the lines of a secret with several lines, such as a key in PEM."""

known_secrets: set[str] = set()
"""The secrets that are masked in every log line; see `keep_secret`."""


def configure(
    *,
    level: str = "info",
    readable: bool | None = None,
    file: TextIO | None = None,
    for_good: bool = False,
) -> None:
    """Write all log lines to stderr, or to `file`.

    Args:
        level: the lowest level that is written.
        readable: write coloured lines instead of JSON; by default, if the lines go to a terminal.
        file: where to write instead of stderr.
        for_good: this is the last call, so loggers may cache the configuration.
    """
    file = file or sys.stderr
    if readable is None:
        readable = file.isatty()
    rendering: Sequence[structlog.typing.Processor] = (
        (
            _mask_secrets,
            _without_control_characters,
            structlog.dev.ConsoleRenderer(exception_formatter=_write_traceback),
        )
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
    """Mask `value` in all later log lines, unless it is shorter than `SHORTEST_SECRET`."""
    if len(value) >= SHORTEST_SECRET:
        known_secrets.add(value)


def masked(text: str) -> str:
    """Return `text` with passwords in addresses and known secrets masked."""
    if "://" in text or "password=" in text:
        text = _URL_PASSWORD.sub(_masked_part, text)
    if known_secrets:
        for secret in sorted(known_secrets, key=len, reverse=True):  # one may be part of another
            text = text.replace(secret, _MASK)
    return text


def masking(secrets: Iterable[str]) -> Callable[[str], str]:
    """Return a function that masks `secrets` in a text.

    Each is masked as it is, as a literal of JSON and of Python, URL-encoded, in hex and in base64, also as
    part of a longer text in base64; and so is each line of a secret with several lines, as it is.
    """
    return _replacing(dict.fromkeys(secrets, _MASK))


def naming(variables: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces the values of variables in a text, in the forms that `masking` knows.

    Texts that differ stay different: each value is replaced by the name of its variable, as `${NAME}`.
    """
    return _replacing({value: f"${{{name}}}" for name, value in sorted(variables.items(), reverse=True)})


def _replacing(secrets: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces secrets, each by its own text."""
    known: dict[str, str] = {}
    for secret, shown in secrets.items():
        if len(secret) >= SHORTEST_SECRET:
            known.update(dict.fromkeys(forms_of(secret), shown))
    if not known:
        return unmasked
    longest_first = sorted(known.items(), key=lambda pair: len(pair[0]), reverse=True)

    def replace(text: str) -> str:
        for form, shown in longest_first:
            text = text.replace(form, shown)
        return text

    return replace


def forms_of(secret: str) -> set[str]:
    """Return the texts by which a secret is recognised in another text."""
    plain = {secret, secret.strip()}
    lines = {line.strip() for line in secret.splitlines()} - plain
    forms = {line for line in lines if len(line) >= SHORTEST_LINE}
    for text in plain:
        data = text.encode(errors="surrogateescape")
        quoted = {quote(data, safe=safe) for safe in ("", "/")} | {quote_plus(data)}
        literals = {json_text(text)[1:-1], json.dumps(text)[1:-1], repr(text)[1:-1]}
        encoded = {data.hex(), *_in_base64(data)}
        forms |= {text, *quoted, *map(_lower_escapes, quoted), *literals, *encoded, data.hex().upper()}
    return {form for form in forms if len(form) >= SHORTEST_SECRET}


def _lower_escapes(quoted: str) -> str:
    return _ESCAPE.sub(lambda found: found[0].lower(), quoted)


def _in_base64(data: bytes) -> Iterator[str]:
    """Yield the base64 of `data`, and what it looks like inside the base64 of something longer."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        # The characters that also hold bits of other bytes are left out.
        certain = text[(8 * before + 5) // 6 : 8 * (before + len(data)) // 6]
        for one in (certain, text) if before == 0 else (certain,):
            yield one
            yield one.translate(_URL_SAFE)


def unmasked(text: str) -> str:
    """Return the text unchanged; the function that `masking` returns if there are no secrets."""
    return text


def masked_within(value: Any, mask: Callable[[str], str]) -> Any:
    """Return a JSON value with `mask` applied to all its texts and keys."""
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
    """Add the time as ISO 8601 in UTC."""
    now = time.time_ns()
    event["timestamp"] = f"{iso_second(now // 1_000_000_000)}.{now // 1_000 % 1_000_000:06d}Z"
    return event


def _json_line(logger: object, method: str, event: MutableMapping[str, Any]) -> str:
    """The line as JSON.  Most lines hold no secret, and one look at the whole line shows that."""
    if _is_flat(event):
        line = json_text(event)
        if not _may_hold_a_secret(line):
            return line
    return json_text(_mask_secrets(logger, method, event))


_FLAT = frozenset({str, int, float, bool, type(None)})


def _is_flat(event: Mapping[str, Any]) -> bool:
    """Whether all values are scalars, and no name is that of a secret."""
    return _FLAT.issuperset(map(type, event.values())) and not _name_a_secret(tuple(event))


def _may_hold_a_secret(line: str) -> bool:
    return (
        "://" in line or "password=" in line or any(_as_in_json(secret) in line for secret in known_secrets)
    )


@lru_cache
def _name_a_secret(names: tuple[str, ...]) -> bool:
    return any(map(_names_a_secret, names))


@lru_cache
def _as_in_json(text: str) -> str:
    return json_text(text)[1:-1]


def _masked_part(found: re.Match[str]) -> str:
    user, at, _ = found[0].rpartition("@")
    if not at:
        return _MASK
    return f"{_MASK}@" if ":" in user else found[0]


# Without local variables, because secrets in them can't be recognized.
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
    file.write(visible(masked(text.getvalue())))


def _without_control_characters(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Remove what a terminal acts upon from texts; `repr`, which shows other values, escapes it."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = visible(value)
    return event


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
