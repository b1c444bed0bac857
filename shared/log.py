"""Set up structlog: JSON lines for machines, colours for a terminal, no secret in either.

Event names are `noun.past_verb` constants; what varies is in the fields.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SECRET_NAME = re.compile(
    r"(?i)(password|passwd|secret|token|api_?key|authorization|credential|private_?key)"
)
_URL_PASSWORD = re.compile(r"(?<=://)[^/\s@]*:[^/\s@]*@")
_MASK = "***"
_known_secrets: set[str] = set()


def configure(*, level: str = "info", readable: bool | None = None) -> None:
    """Send every log line to stderr.

    Args:
        level: the lowest level that is written.
        readable: colours instead of JSON; by default when stderr is a terminal.
    """
    if readable is None:
        readable = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer()
        if readable
        else structlog.processors.JSONRenderer(default=str, ensure_ascii=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if readable else [structlog.processors.dict_tracebacks]),
            _mask_secrets,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )


def keep_secret(value: str) -> None:
    """Mask `value` wherever it turns up in a log line from now on; short ones would mask half the log."""
    if len(value) >= 6:
        _known_secrets.add(value)


def masked(text: str) -> str:
    """`text` without passwords in addresses and without any known secret."""
    text = _URL_PASSWORD.sub(f"{_MASK}@", text)
    for secret in _known_secrets:
        if secret in text:
            text = text.replace(secret, _MASK)
    return text


def _mask_secrets(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        event[name] = _MASK if _SECRET_NAME.search(name) and value else _masked_value(value)
    return event


def _masked_value(value: Any) -> Any:
    match value:
        case str():
            return masked(value)
        case dict():
            return {k: _MASK if _SECRET_NAME.search(str(k)) else _masked_value(v) for k, v in value.items()}
        case list() | tuple():
            return [_masked_value(item) for item in value]
        case _:
            return value
