"""The protocol between the executor and its subprocesses: JSON-RPC 2.0 in frames.

A frame is four bytes of length, big-endian, and that many bytes of one message.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Final

VERSION: Final = 1
HEADER_BYTES: Final = 4

# Error codes: the executor failed to do what the tool requests, or refuses it however often it is requested.
FAILED: Final = -32000
REFUSED: Final = -32602
# The tool raised; the process must not run its tool again; there is no such method.
RAISED: Final = 1
NO_LONGER_FIT: Final = -32600
METHOD_NOT_FOUND: Final = -32601


class ProtocolBroken(Exception):
    """The other side sent something that is no frame.  Nothing that it sends afterwards can be understood."""


def encoder(default: Callable[[Any], Any] | None = None) -> Callable[[Any], str]:
    """A function that turns a value into JSON; `default` as for `json.dumps`.

    It raises RecursionError for a value that contains itself.  `JSONEncoder.encode` makes a new C encoder
    for each value, which takes longer than encoding a small one; this makes it once.
    """
    plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=default)
    make: Any = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    if make is None:
        return plain.encode
    text = json.encoder.encode_basestring
    parts = make(None, plain.default, text, None, ":", ",", False, False, False)
    return lambda value: "".join(parts(value, 0))


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_encode = encoder()
_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def encode_value(value: Any) -> bytes:
    """`value` as JSON in UTF-8.  ValueError, TypeError or RecursionError for what JSON can't hold.

    A lone surrogate, which UTF-8 can't hold, is written as JSON's escape.
    """
    return _encode(value).encode("utf-8", "backslashreplace")


def encode_frame(payload: bytes) -> bytes:
    """The frame around a message that is JSON already."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def decode(text: str) -> Any:
    """The JSON value that `text` is.  Twice as fast as the decoder itself if there is no space around it."""
    try:
        value, end = _decoder.scan_once(text, 0)  # type: ignore[attr-defined]
    except StopIteration:
        end = -1
    return value if end == len(text) else _decoder.decode(text)
