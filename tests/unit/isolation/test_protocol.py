"""Frames: any split of the bytes, any JSON value, and hostile bytes."""

import contextlib
import gc
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from services.executor.isolation import connection
from services.executor.isolation.common import protocol

LIMIT = 10_000

text = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=20,
)


def message(value: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 1, "result": value}


@given(st.lists(values, max_size=5), st.lists(st.integers(0, 400)))
def test_any_split_of_the_stream_gives_the_same_messages(sent: list[Any], cuts: list[int]) -> None:
    stream = b"".join(connection.encode(message(value)) for value in sent)
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    decoder = connection.Decoder(LIMIT)

    received = [
        one
        for start, end in itertools.pairwise(edges)
        for one in decoder.feed(stream[start:end])
    ]  # fmt: skip

    assert received == [message(value) for value in sent]


@given(values)
def test_any_json_value_survives_byte_by_byte(value: Any) -> None:
    decoder = connection.Decoder(LIMIT)

    received = [one for byte in connection.encode(message(value)) for one in decoder.feed(bytes([byte]))]

    assert received == [message(value)]


@given(st.lists(st.binary(max_size=300)))
@example([b"\xff\xff\xff\xff"])
@example([b"\x00\x00\x00\x00"])
@example([b"\x00\x00\x00\x02[]"])
@example([b"\x00\x00\x00\x03NaN"])
def test_hostile_bytes_break_the_protocol_and_nothing_else(chunks: list[bytes]) -> None:
    decoder = connection.Decoder(LIMIT)

    try:
        for chunk in chunks:
            for one in decoder.feed(chunk):
                assert one["jsonrpc"] == "2.0"
    except protocol.ProtocolBroken:
        pass


@given(st.binary(max_size=300))
def test_hostile_payloads_in_proper_frames_break_the_protocol_and_nothing_else(payload: bytes) -> None:
    with contextlib.suppress(protocol.ProtocolBroken):
        connection.Decoder(LIMIT).feed(protocol.encode_frame(payload))


def test_deep_nesting_breaks_the_protocol_and_not_the_service() -> None:
    with pytest.raises(protocol.ProtocolBroken):
        connection.decode_message(b"[" * 100_000)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have_are_refused(constant: str) -> None:
    with pytest.raises(protocol.ProtocolBroken):
        connection.decode_message(json.dumps(message(0)).replace("0}", constant + "}").encode())


def test_a_number_of_too_many_digits_breaks_the_protocol() -> None:
    with pytest.raises(protocol.ProtocolBroken):
        connection.decode_message(b'{"jsonrpc":"2.0","id":1,"result":' + b"9" * 100_000 + b"}")


def test_a_frame_is_four_bytes_of_length_and_json() -> None:
    assert connection.encode({"a": "\u00e4"}) == b'\x00\x00\x00\x0a{"a":"\xc3\xa4"}'


def test_a_lone_surrogate_is_an_escape() -> None:
    assert protocol.encode_value("a\ud800b") == b'"a\\ud800b"'


@pytest.mark.parametrize("payload", [b'{"jsonrpc":"2.0","result":[%b]}', b'{"jsonrpc":"2.0",[%b]'])
def test_the_search_for_garbage_goes_on_after_a_large_message(payload: bytes) -> None:
    assert gc.isenabled()

    with contextlib.suppress(protocol.ProtocolBroken):
        connection.decode_message(payload % b",".join([b"{}"] * connection.LARGE_BYTES))

    assert gc.isenabled()
