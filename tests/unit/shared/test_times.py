"""Moments as text."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from shared.documents import iso


@given(st.integers(0, 4_000_000_000_000))
def test_a_millisecond_is_written_as_the_standard_library_does(ms: int) -> None:
    written = datetime.fromtimestamp(ms / 1_000, UTC).isoformat(timespec="milliseconds")

    assert iso(ms / 1_000) == written


def test_what_is_nearly_the_next_second_is_that_second() -> None:
    assert iso(59.9999999) == "1970-01-01T00:01:00.000+00:00"
