"""The one JSON text of a value, and its digest: the same on any machine and in any version of Python.

It imports only the standard library.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

DIGEST_BYTES = 32


def digest_of(value: Any) -> str:
    """Return BLAKE2b-256 over the canonical JSON of `value`, in hexadecimal.

    Raises:
        ValueError, TypeError: as `canonical_json`.
    """
    return hashlib.blake2b(canonical_json(value), digest_size=DIGEST_BYTES).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one JSON text of `value`: in ASCII, its keys sorted, without spaces.

    `1`, `1.0` and `true` differ; `-0.0` is written as `0.0`.  Floats are written as Python writes
    them: the shortest text that is exact.

    Raises:
        ValueError: infinity, or not a number; a key that is not a text.
        TypeError: a value that JSON can't hold.
    """
    return _encode(value if _is_plain(value) else _plain(value)).encode()


_encode = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode
_MAX_VALUES = 10_000_000
_SCALARS = frozenset((str, int, bool, type(None)))
_NAMES = frozenset((str,))


def _is_plain(value: Any) -> bool:
    """Whether `value` is encoded as it is; nearly all are.  Copying 500,000 values takes a second."""
    pending = [value]
    for one in pending:  # which grows meanwhile
        kind = type(one)
        if kind is list:
            pending += one
        elif kind is dict:
            if not _NAMES.issuperset(map(type, one)):
                return False
            pending += one.values()
        elif kind not in _SCALARS and (kind is not float or one == 0 or not math.isfinite(one)):
            return False
        if len(pending) > _MAX_VALUES:  # it may contain itself
            return False
    return True


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, (dict, Mapping)):  # nearly all are dicts, and that check is the fast one
        if not all(isinstance(name, str) for name in value):
            raise ValueError(f"{value!r:.80} has a key that is not a text")
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number that JSON can hold")
        return value + 0.0
    return value
