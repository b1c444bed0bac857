"""What kind of content a name promises, the same on every machine."""

import mimetypes
from functools import cache
from pathlib import PurePosixPath
from typing import Final

UNKNOWN: Final = "application/octet-stream"

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
    ending, types = PurePosixPath(name).suffix, _types()
    if encoding := types.encodings_map.get(ending):
        return _COMPRESSED.get(encoding, UNKNOWN)
    ending = ending.lower()
    return _OTHERS.get(ending) or types.types_map[True].get(ending, UNKNOWN)


@cache
def _types() -> mimetypes.MimeTypes:
    # Not mimetypes.guess_type: that reads the machine's own tables, and takes a name for a URL.
    return mimetypes.MimeTypes()
