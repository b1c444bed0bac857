"""What makes two runs the same: one digest over all that a result may depend on.

Pure.  Two runs with the same digest are the same computation, on any machine.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DIGEST_BYTES = 32
REMEMBERED = 1_000
REMEMBERED_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class Identity:
    """All that the result of a run may depend on.

    Attributes:
        tool_digest: SHA-256 of the tool's code.
        entry_point: the function that is called.
        parameters: as the tool gets them.
        seed: of the random generators, None when the run has none.
        environment_digest: of the tool's own environment, empty for the executor's interpreter.
        inputs: digests of what the run reads besides, by name.
    """

    tool_digest: str
    entry_point: str
    parameters: Mapping[str, Any]
    seed: int | None = None
    environment_digest: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """BLAKE2b-256 over the canonical JSON of the members, hexadecimal.

        Raises:
            ValueError: a number that JSON can't hold.
        """
        text = repr(self)  # which tells apart whatever has different digests, and is much cheaper
        known = _digests.get(text)
        if known is None:
            known = digest_of({name: getattr(self, name) for name in self.__slots__})
            if len(text) <= REMEMBERED_CHARACTERS:
                _remember(text, known)
        return known


_digests: dict[str, str] = {}
"""Of computations that are done again and again, as schedules do."""


def _remember(text: str, digest: str) -> None:
    if len(_digests) >= REMEMBERED:
        _digests.clear()
    _digests[text] = digest


def digest_of(value: Any) -> str:
    """BLAKE2b-256 over the canonical JSON of `value`, hexadecimal."""
    return hashlib.blake2b(canonical_json(value), digest_size=DIGEST_BYTES).hexdigest()


def canonical_json(value: Any) -> bytes:
    """The one JSON text of `value`, in ASCII, its keys sorted and without spaces.

    `1`, `1.0` and `true` differ; `-0.0` is `0.0`.

    Raises:
        ValueError: infinity, or not a number; a key that is no text.
        TypeError: a value that JSON can't hold.
    """
    return _encode(_plain(value)).encode()


_encode = json.JSONEncoder(sort_keys=True, allow_nan=False, separators=(",", ":")).encode


def _plain(value: Any) -> Any:
    """The same with the two zeros made one; floats are written as Python does, the shortest that is exact."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, (dict, Mapping)):  # nearly all are dicts, which is found out at once
        if not all(isinstance(name, str) for name in value):
            raise ValueError(f"{value!r:.80} has a key that is no text")
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number that JSON can hold")
        return value + 0.0
    return value
