"""What kind of content a name promises, the same on every machine."""

import mimetypes
from pathlib import PurePosixPath
from typing import Final

UNKNOWN: Final = "application/octet-stream"

# Not mimetypes.guess_type: that reads the machine's own tables, and takes a name for a URL.
_TYPES: Final = mimetypes.MimeTypes()
_OTHERS: Final = {
    ".ipynb": "application/x-ipynb+json",
    ".jsonl": "application/jsonl",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".parquet": "application/vnd.apache.parquet",
    ".toml": "application/toml",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
}
"""What Python's table lacks, or has only in some versions."""

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
    ending = ending.lower()
    return _OTHERS.get(ending) or _TYPES.types_map[True].get(ending, UNKNOWN)
