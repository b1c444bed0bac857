"""What kind of content a name promises, the same on every machine."""

import mimetypes
from pathlib import PurePosixPath
from typing import Final

UNKNOWN: Final = "application/octet-stream"

# Not mimetypes.guess_type: that reads the machine's own tables, and takes a name for a URL.
_TYPES: Final = mimetypes.MimeTypes()
_COMPRESSED: Final = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
}


def guess(name: str) -> str:
    """The media type that the name's ending stands for, else `application/octet-stream`."""
    ending = PurePosixPath(name).suffix
    if encoding := _TYPES.encodings_map.get(ending):
        return _COMPRESSED.get(encoding, UNKNOWN)
    return _TYPES.types_map[True].get(ending.lower(), UNKNOWN)
