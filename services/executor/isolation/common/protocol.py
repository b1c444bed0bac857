"""The frames that the executor and its subprocesses exchange, as bytes and as values.

A frame is four bytes of length, big-endian, and that many bytes of one JSON-RPC
2.0 message.  Nothing here trusts the other side: bytes that aren't such a frame
raise ProtocolBroken and nothing else, whatever they are.
"""

from __future__ import annotations

import gc
import json
from typing import Any, Callable, Final

VERSION: Final = 1
HEADER_BYTES: Final = 4
ENVELOPE_BYTES: Final = 8_388_608
"""What a frame may hold beside the value that the limit is about: names, a message, a traceback.

The longest traceback (`failure.py`) fits even if each of its characters has to be escaped.
"""

LARGE_BYTES: Final = 262_144

FAILED: Final = -32000
REFUSED: Final = -32602
"""What the executor couldn't do for the tool, and what it won't, however often it is asked."""

RAISED: Final = 1
NO_LONGER_FIT: Final = -32600


class ProtocolBroken(Exception):
    """The other side sent what is no frame; nothing it sends afterwards can be understood."""


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def encoder(default: Callable[[Any], Any] | None = None) -> Callable[[Any], str]:
    """What turns a value into JSON; `default` as for `json.dumps`.  What contains itself is a RecursionError.

    `JSONEncoder.encode` makes anew, for each value, the encoder that this makes once: it takes longer
    than to encode a small one, and in a fork each object that it touches is a page to be copied.
    """
    plain = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=default)
    make: Any = json.encoder.c_make_encoder  # type: ignore[attr-defined]
    if make is None:
        return plain.encode
    text = json.encoder.encode_basestring
    parts = make(None, plain.default, text, None, ":", ",", False, False, False)
    return lambda value: "".join(parts(value, 0))


_encode = encoder()
_decoder = json.JSONDecoder(parse_constant=_refuse_constant)


def encode_value(value: Any) -> bytes:
    """`value` as JSON in UTF-8; ValueError, TypeError or RecursionError for what JSON can't hold."""
    return _encode(value).encode("utf-8", "replace")


def decode(text: str) -> Any:
    """The JSON value that `text` is; twice as fast as the decoder itself for one without space around it."""
    try:
        value, end = _decoder.scan_once(text, 0)  # type: ignore[attr-defined]
    except StopIteration:
        end = -1
    return value if end == len(text) else _decoder.decode(text)


def _decode_large(text: str) -> Any:
    """The same, without the search for garbage that so many new objects set off: it takes as long again.

    On the event loop like the rest, because a thread would keep everybody waiting just
    as long: the decoder doesn't give up the interpreter's lock before it is done.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return decode(text)
    finally:
        if was_enabled:
            gc.enable()


def encode_frame(payload: bytes) -> bytes:
    """The frame around a message that is already JSON."""
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def encode(message: dict[str, Any]) -> bytes:
    """The frame that carries `message`."""
    return encode_frame(encode_value(message))


def decode_message(payload: bytes) -> dict[str, Any]:
    """The message in the payload of one frame."""
    try:
        message = (decode if len(payload) < LARGE_BYTES else _decode_large)(payload.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolBroken(f"a frame is not JSON: {error}") from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise ProtocolBroken("a frame is not a JSON-RPC 2.0 message")
    return message


class Decoder:
    """Turns a byte stream, however it is split, back into messages."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes + ENVELOPE_BYTES
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes."""
        if not self._buffer and len(data) >= HEADER_BYTES and self._length(data) == len(data) - HEADER_BYTES:
            return [decode_message(data[HEADER_BYTES:])]
        buffer = self._buffer
        buffer += data
        messages = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            end = start + HEADER_BYTES + self._length(buffer[start : start + HEADER_BYTES])
            if len(buffer) < end:
                break
            messages.append(decode_message(bytes(buffer[start + HEADER_BYTES : end])))
            start = end
        del buffer[:start]
        return messages

    def _length(self, data: bytes | bytearray) -> int:
        length = int.from_bytes(data[:HEADER_BYTES], "big")
        if length > self.limit_bytes:
            raise ProtocolBroken(
                f"a frame of {length} bytes was announced, and {self.limit_bytes} are allowed"
            )
        return length
