"""References of all three forms, and that none leads out of its base."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.artifacts.references import (
    QUOTED_CHARS,
    CasReference,
    InlineReference,
    RelativeReference,
    addresses_in,
    parse_reference,
    within,
)
from shared.errors import ArtifactCorruptError, ArtifactReferenceError

steady = settings(deadline=None, derandomize=True, max_examples=200)
SHA256 = "0123456789abcdef" * 4
NASTY = st.text(st.sampled_from("ab.:/\\\0~%C \ud800é"), max_size=12)
ANY_TEXT = (
    st.text()
    | NASTY
    | st.builds(lambda start, rest: start + rest, st.sampled_from(["cas://", "data:", "../", "C:"]), NASTY)
)


def test_an_address_is_a_blobs_reference() -> None:
    reference = parse_reference(f"cas://{SHA256}")

    assert reference == CasReference(SHA256)


def test_a_data_url_is_an_inline_reference() -> None:
    reference = parse_reference("data:text/plain;charset=utf-8;base64,aGVsbG8=")

    assert reference == InlineReference("text/plain;charset=utf-8", "aGVsbG8=")
    assert reference.decode() == b"hello"


def test_a_plain_path_is_a_relative_reference() -> None:
    reference = parse_reference("results/day 1/metrics.csv")

    assert reference == RelativeReference("results/day 1/metrics.csv")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/etc/passwd",
        "..",
        "../secret",
        "a/../../secret",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\..\\b",
        "C:\\secret",
        "C:/secret",
        "c:secret",
        "nul\0byte",
        "\ud800",
        "file:///etc/passwd",
        "s3://bucket/key",
        "cas:0123",
        "cas://",
        f"cas://{SHA256[:-1]}",
        f"cas://{SHA256}0",
        f"cas://{SHA256.upper()}",
        f"cas://{SHA256}\n",
        "data:",
        "data:,hello",
        "data:text/plain,hello",
        "data:;base64,aGVsbG8=",
        "data:text;base64,aGVsbG8=",
        "data:text/pl ain;base64,aGVsbG8=",
        "data:text/plain;base64",
    ],
)
def test_a_bad_reference_is_refused(text: str) -> None:
    with pytest.raises(ArtifactReferenceError):
        parse_reference(text)


def test_a_refusal_quotes_the_start_of_a_long_reference() -> None:
    with pytest.raises(ArtifactReferenceError) as caught:
        parse_reference("/" + "é" * 1_000_000)

    assert ascii("/ééé").strip("'") in str(caught.value)
    assert len(str(caught.value)) < QUOTED_CHARS + 100


def test_inline_content_that_is_not_base64_is_corrupt() -> None:
    for encoded in ("aGVsbG8", "aGVs bG8=", "aGVs\nbG8=", "é", "a"):
        reference = parse_reference(f"data:text/plain;base64,{encoded}")

        assert isinstance(reference, InlineReference)
        with pytest.raises(ArtifactCorruptError):
            reference.decode()


def test_addresses_are_found_in_any_text() -> None:
    other = "f" * 64

    found = addresses_in(
        f'{{"a": "cas://{SHA256}", "b": ["cas://{other}"], "c": "cas://{SHA256}0 cas://abc"}}'
    )

    assert found == {SHA256, other}


@steady
@given(st.binary(), st.sampled_from(["text/csv", "application/x-tar", "text/plain;charset=utf-8"]))
def test_inline_content_comes_back_from_its_reference(content: bytes, media_type: str) -> None:
    reference = InlineReference.of(content, media_type)

    assert parse_reference(str(reference)) == reference
    assert reference.decode() == content


@steady
@given(ANY_TEXT)
def test_any_text_is_a_reference_that_reads_the_same_or_is_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except ArtifactReferenceError:
        return

    assert str(reference) == text


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with links in it that lead out of it, and one that does not."""
    base = tmp_path_factory.mktemp("outside") / "base"
    (base / "ab").mkdir(parents=True)
    (base.parent / "secret").write_text("secret")
    (base / "a").symlink_to("..")
    (base / "b").symlink_to("/")
    (base / "inner").symlink_to("ab")
    (base / "loop").symlink_to("loop")
    return base


@steady
@given(text=ANY_TEXT)
def test_no_relative_reference_escapes_a_directory(base: Path, text: str) -> None:
    try:
        place = within(str(base), text)
    except ArtifactReferenceError:
        return

    assert os.path.realpath(place).startswith(f"{os.path.realpath(base)}/")


@steady
@given(text=ANY_TEXT)
def test_no_relative_reference_escapes_a_bucket(text: str) -> None:
    try:
        place = within("s3://bucket/prefix/", text)
    except ArtifactReferenceError:
        return

    assert place == f"s3://bucket/prefix/{text}"
    assert ".." not in place.split("/")


def test_a_link_that_leads_out_is_refused(base: Path) -> None:
    with pytest.raises(ArtifactReferenceError, match="by a link"):
        within(str(base), "a/secret")
    with pytest.raises(ArtifactReferenceError, match="by a link"):
        within(str(base), "b")


def test_a_link_that_stays_inside_is_followed(base: Path) -> None:
    assert within(str(base), "inner/file") == str(base.resolve() / "ab" / "file")


def test_a_loop_and_a_long_name_do_not_crash(base: Path) -> None:
    assert within(str(base), "loop/x").endswith("/loop/x")
    assert within(str(base), "x" * 10_000).endswith("x")
