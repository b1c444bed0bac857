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
        if value is None:
            continue
        if not isinstance(value, str):
            value = json_text(value)
        elif not value.isascii():  # a tool may print half surrogate pairs, which Redis can't hold
            value = value.encode(errors="replace").decode()
        parts += (name, value)
    return parts


def mark_of(texts: Iterable[str]) -> str:
    """What tells a batch from the one before it, and not from itself when it is sent again."""
    return hashlib.blake2b("\n".join(texts).encode(), digest_size=12).hexdigest()
