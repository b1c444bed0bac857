"""The encoder returns what `json.dumps` returns."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.executor.isolation.common import protocol

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers() | st.booleans(), inner),
    max_leaves=20,
)


@pytest.fixture(name="encode", params=["in C", "in Python"])
def _encode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    if request.param == "in Python":
        monkeypatch.setattr("json.encoder.c_make_encoder", None)
    return protocol.encoder()


@given(values)
def test_a_value_is_encoded_as_the_standard_library_does(value: Any) -> None:
    plain = json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    assert protocol.encoder()(value) == plain
    assert protocol.encode_value(value) == plain.encode("utf-8", "replace")


def test_what_failed_to_be_encoded_does_no_harm_to_what_comes_next(encode: Callable[[Any], str]) -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    for value in ([float("nan")], [object()], circle):
        for _ in range(2):
            with pytest.raises((ValueError, TypeError, RecursionError)):
                encode(value)
    circle.pop()

    assert encode(circle) == "[1]"


def test_what_json_does_not_know_is_asked_for() -> None:
    assert protocol.encoder(lambda value: sorted(value))({"a": {2, 1}}) == '{"a":[1,2]}'
