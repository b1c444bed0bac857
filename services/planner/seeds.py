"""Which seed a case gets: one that follows from what the case is, wherever and whenever it runs.  Pure.

A reordered plan, a longer one and a resumed one give each case the seed it had.
"""

import hashlib
from typing import Any, Final

from services.executor.identity import canonical_json
from services.planner.models import TestCase
from shared.errors import PlanError

SEED_BITS: Final = 63
"""So that a seed fits in a signed 64-bit integer, as databases and Parquet have them."""

_DIGEST_BYTES: Final = 8


def seed_of(tool: str, case: TestCase) -> int:
    """The seed of a case: its own, or else 63 bits of the BLAKE2b digest of its content.

    The content is the tool's name, dataset, scenario, parameters and replicate, as canonical
    JSON: the order of the parameters doesn't matter, and `1`, `1.0` and `true` differ.

    Args:
        tool: its name or a bundle reference, of which only the name counts.
        case: one run.

    Raises:
        PlanError: a parameter is no value that JSON can hold.
    """
    return case.seed if case.seed is not None else seed_of_content(content_of(tool, case))


def seed_of_content(content: bytes) -> int:
    """The first 63 bits of a digest of all this."""
    digest = hashlib.blake2b(content, digest_size=_DIGEST_BYTES).digest()
    return int.from_bytes(digest) >> (8 * _DIGEST_BYTES - SEED_BITS)


def replicate_seed(seed: int, replicate: int) -> int:
    """The seed of a replicate of a case that has one of its own: the first keeps it."""
    if replicate == 0:
        return seed
    return seed_of_content(canonical_json({"replicate": replicate, "seed": seed}))


def content_of(tool: str, case: TestCase) -> bytes:
    """All that tells one case from another but its seed, as canonical JSON.  Raises `PlanError`."""
    content: dict[str, Any] = {
        "tool": tool.partition("@")[0],
        "dataset": case.dataset,
        "scenario": case.scenario,
        "parameters": case.parameters,
        "replicate": case.replicate,
    }
    try:
        return canonical_json(content)
    except (ValueError, TypeError) as exc:
        raise PlanError(f"a case of {tool} has parameters that JSON can't hold: {exc}") from None
