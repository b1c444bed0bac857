"""References to content: by address, inline, or relative to a base.  Pure, except that `within` reads links.

cas://<64 lower-case hex digits>         a blob, by the SHA-256 of its content
data:<media type>;base64,<content>       the content itself, RFC 2397
results/metrics.csv                      a path below the base of the reader
"""

import base64
import binascii
import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from shared.errors import ArtifactCorruptError, ArtifactReferenceError

QUOTED_CHARS: Final = 80
_CAS: Final = "cas://"
_DATA: Final = "data:"
_BASE64: Final = ";base64"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_ADDRESS: Final = re.compile(r"cas://([0-9a-f]{64})(?![0-9a-f])")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_TOKEN: Final = r"[A-Za-z0-9!#$&^_.+-]+"  # noqa: S105, the grammar's word (RFC 6838, section 4.2)
_MEDIA_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}(;{_TOKEN}={_TOKEN})*")


@dataclass(frozen=True, slots=True)
class CasReference:
    """A reference to a blob by the SHA-256 of its content."""

    sha256: str

    def __post_init__(self) -> None:
        check_sha256(self.sha256)

    def __str__(self) -> str:
        return f"{_CAS}{self.sha256}"


@dataclass(frozen=True, slots=True)
class InlineReference:
    """A reference that contains the content.  The content is checked when it is decoded."""

    media_type: str
    encoded: str

    def __post_init__(self) -> None:
        check_media_type(self.media_type)

    def __str__(self) -> str:
        return f"{_DATA}{self.media_type}{_BASE64},{self.encoded}"

    @classmethod
    def of(cls, content: bytes, media_type: str) -> "InlineReference":
        """Return the reference that contains `content`."""
        return cls(media_type, base64.b64encode(content).decode("ascii"))

    def decode(self) -> bytes:
        """Return the content; raise `ArtifactCorruptError` if it is not base64."""
        try:
            return base64.b64decode(self.encoded.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError) as exc:
            raise ArtifactCorruptError(f"the content of {quoted(str(self))} is not base64: {exc}") from exc


@dataclass(frozen=True, slots=True)
class RelativeReference:
    """A reference to a file or an object below the base of the reader."""

    path: str

    def __post_init__(self) -> None:
        check_relative(self.path)

    def __str__(self) -> str:
        return self.path


Reference = CasReference | InlineReference | RelativeReference


def parse_reference(text: str) -> Reference:
    """Return the reference in `text`; `str()` of it is `text` again.

    Raises:
        ArtifactReferenceError: the text can't be read; quotes its start.
    """
    if text.startswith(_CAS):
        return CasReference(text.removeprefix(_CAS))
    if text.startswith(_DATA):
        return _parse_inline(text)
    return RelativeReference(text)


def _parse_inline(text: str) -> InlineReference:
    head, comma, encoded = text.removeprefix(_DATA).partition(",")
    if not comma or not head.endswith(_BASE64):
        raise ArtifactReferenceError(
            f"{quoted(text)} can't be read; expected data:<media type>;base64,<content>"
        )
    return InlineReference(head.removesuffix(_BASE64), encoded)


def addresses_in(text: str) -> frozenset[str]:
    """Return the SHA-256 of every `cas://` reference in `text`, which may have any format."""
    return frozenset(_ADDRESS.findall(text))


def check_sha256(text: str) -> None:
    """Raise `ArtifactReferenceError` unless `text` is a SHA-256 in 64 lower-case hexadecimal digits."""
    if not _SHA256.fullmatch(text):
        raise ArtifactReferenceError(
            f"{quoted(text)} is not a SHA-256; expected 64 lower-case hexadecimal digits"
        )


def check_media_type(text: str) -> None:
    """Raise `ArtifactReferenceError` unless `text` is `type/subtype`, with `;name=value` or without."""
    if not _MEDIA_TYPE.fullmatch(text):
        raise ArtifactReferenceError(f"{quoted(text)} is not a media type, such as text/csv or image/png")


def check_relative(path: str) -> None:
    """Raise `ArtifactReferenceError` unless `path` is a relative path that stays below its base."""
    if reason := _why_not_relative(path):
        raise ArtifactReferenceError(f"{quoted(path)} is not a path below a base: {reason}")


def _why_not_relative(path: str) -> str:
    segments = path.split("/")
    if not path:
        return "it is empty"
    if path.startswith("/"):
        return "it is absolute"
    if ".." in segments:
        return "'..' leads out of the base"
    if "\\" in path or "\0" in path:
        return "it contains a backslash or a NUL"
    if match := _SCHEME.match(segments[0]):
        return f"'{match.group()}' is a scheme or a drive"
    if "" in segments or "." in segments:
        return "one of its parts is empty or '.'"
    if not path.isascii() and not _is_utf8(path):
        return "it is not UTF-8"
    return ""


def within(base: str, relative: str) -> str:
    """Return the full place of `relative` below `base`, an absolute directory or a URL.

    Raises:
        ArtifactReferenceError: the place is outside the base, also by the links in a directory.
    """
    check_relative(relative)
    if "://" in base:
        return f"{base.rstrip('/')}/{relative}"
    # realpath leaves a loop of links or a name that is too long as it is; opening it raises the error.
    inside = os.path.realpath(base)
    place = os.path.realpath(os.path.join(inside, relative))  # noqa: PTH118, Path.resolve raises on a loop
    if not place.startswith(inside.rstrip("/") + "/"):
        raise ArtifactReferenceError(f"{quoted(relative)} leads out of {base} by a link, to {place}")
    return place


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL; raise `ArtifactReferenceError` if it can't be read."""
    try:
        return urlsplit(url)
    except ValueError as exc:
        # Not quoted: the credentials in a URL that can't be read can't be found and hidden.
        raise ArtifactReferenceError(f"a URL can't be read: {exc}") from exc


def quoted(text: str) -> str:
    """Return `text` for a message: one printable line, cut to a readable length."""
    shown = ascii(text[:QUOTED_CHARS])
    return shown if len(text) <= QUOTED_CHARS >= len(shown) - 2 else f"{shown[: QUOTED_CHARS + 1]}..."


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
