"""How what the store is given becomes arguments of scripts."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from shared.documents import json_text

Fields = Mapping[str, Any]


def flat(fields: Fields) -> list[str]:
    """Names and values in turn, as HSET takes them; None is left out, other values as JSON."""
    parts: list[str] = []
    for name, value in fields.items():
        if value is not None:
            parts += [name, _writable(value)]
    return parts


def mark_of(texts: Iterable[str]) -> str:
    """What tells a batch from the one before it, and not from itself when it is sent again."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=12).hexdigest()


def _writable(value: Any) -> str:
    """Text as it is, without half surrogate pairs, which a tool may print and Redis can't hold; else JSON."""
    if not isinstance(value, str):
        return json_text(value)
    return value if value.isascii() else value.encode(errors="replace").decode()
