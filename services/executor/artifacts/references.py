"""The three forms of a reference: by content address, inline, or relative to a base.  Pure, but for links.

cas://<64 lower-case hex digits>         a blob, by the SHA-256 of its content
data:<media type>;base64,<content>       the content itself, RFC 2397
results/metrics.csv                      a path below whatever base the reader has
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
    """A blob, named by the SHA-256 of its content."""

    sha256: str

    def __post_init__(self) -> None:
        check_sha256(self.sha256)

    def __str__(self) -> str:
        return f"{_CAS}{self.sha256}"


@dataclass(frozen=True, slots=True)
class InlineReference:
    """The content itself.  Whether it is sound shows when it is decoded, as with a blob."""

    media_type: str
    encoded: str

    def __post_init__(self) -> None:
        check_media_type(self.media_type)

    def __str__(self) -> str:
        return f"{_DATA}{self.media_type}{_BASE64},{self.encoded}"

    @classmethod
    def of(cls, content: bytes, media_type: str) -> "InlineReference":
        """The reference that holds `content`."""
        return cls(media_type, base64.b64encode(content).decode("ascii"))

    def decode(self) -> bytes:
        """The content; ArtifactCorruptError when it isn't base64."""
        try:
            return base64.b64decode(self.encoded.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError) as exc:
            raise ArtifactCorruptError(f"the content of {quoted(str(self))} is not base64: {exc}") from exc


@dataclass(frozen=True, slots=True)
class RelativeReference:
    """A file or an object below a base that the reader knows."""

    path: str

    def __post_init__(self) -> None:
        check_relative(self.path)

    def __str__(self) -> str:
        return self.path


Reference = CasReference | InlineReference | RelativeReference


def parse_reference(text: str) -> Reference:
    """The reference that `text` is; `str()` of it gives `text` back.

    Raises ArtifactReferenceError, which quotes the start of the text.
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
            f"{quoted(text)} can't be read: inline content is written data:<media type>;base64,<content>"
        )
    return InlineReference(head.removesuffix(_BASE64), encoded)


def addresses_in(text: str) -> frozenset[str]:
    """Every SHA-256 that a `cas://` reference somewhere in `text` names; `text` may be JSON or anything."""
    return frozenset(_ADDRESS.findall(text))


def check_sha256(text: str) -> None:
    """Raises ArtifactReferenceError unless `text` is a SHA-256 as addresses have it."""
    if not _SHA256.fullmatch(text):
        raise ArtifactReferenceError(
            f"{quoted(text)} is not a SHA-256: 64 lower-case hex digits are expected"
        )


def check_media_type(text: str) -> None:
    """Raises ArtifactReferenceError unless `text` is `type/subtype`, maybe with `;name=value`."""
    if not _MEDIA_TYPE.fullmatch(text):
        raise ArtifactReferenceError(f"{quoted(text)} is not a media type, such as text/csv or image/png")


def check_relative(path: str) -> None:
    """Raises ArtifactReferenceError unless `path` is a plain path that stays below its base."""
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
        return "it has a backslash or a NUL in it"
    if match := _SCHEME.match(segments[0]):
        return f"'{match.group()}' is a scheme or a drive"
    if "" in segments or "." in segments:
        return "one of its parts is empty or '.'"
    if not path.isascii() and not _is_utf8(path):
        return "it is not UTF-8"
    return ""


def within(base: str, relative: str) -> str:
    """The full place of `relative` below `base`, an absolute directory or a URL.

    Raises ArtifactReferenceError when it would lie elsewhere; in a directory
    that takes links into account, as they are now.
    """
    check_relative(relative)
    if "://" in base:
        return f"{base.rstrip('/')}/{relative}"
    # A loop of links or a name that is too long ends up as it is written, and opening it says what is wrong.
    inside = os.path.realpath(base)
    place = os.path.realpath(os.path.join(inside, relative))  # noqa: PTH118, Path.resolve raises on a loop
    if not place.startswith(inside.rstrip("/") + "/"):
        raise ArtifactReferenceError(f"{quoted(relative)} leads out of {base} over a link, to {place}")
    return place


def split_url(url: str) -> SplitResult:
    """The parts of a URL; ArtifactReferenceError when it has none."""
    try:
        return urlsplit(url)
    except ValueError as exc:
        # Not quoted: where credentials end shows only in a URL that can be read.
        raise ArtifactReferenceError(f"a URL can't be read: {exc}") from exc


def quoted(text: str) -> str:
    """`text` as a message shows it: one printable line, cut to a readable length."""
    shown = ascii(text[:QUOTED_CHARS])
    return shown if len(text) <= QUOTED_CHARS >= len(shown) - 2 else f"{shown[: QUOTED_CHARS + 1]}..."


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
