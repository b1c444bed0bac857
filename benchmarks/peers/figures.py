"""Arithmetic on figures.  Pure."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NS = 1_000_000_000
EARLY_SHARE = 0.05
"""A start within this share of a period before a due time counts as early for it."""

Rounds = Mapping[str, Sequence[Mapping[str, Any]]]
"""The figures of each round, by system."""


def percentile(values: Iterable[float], percent: float) -> float:
    """The smallest of `values` that is not below `percent` percent of them."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("nothing was measured")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


def rate(stamps: Sequence[int]) -> float:
    """Starts per second between the first and the last; stamps are in nanoseconds."""
    first, last = min(stamps), max(stamps)
    return (len(stamps) - 1) * NS / (last - first)


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, minimum and maximum over the rounds."""

    median: float
    least: float
    most: float


def spread(rounds: Sequence[Mapping[str, Any]], name: str) -> Spread | None:
    """The spread of one figure; None if no round has it."""
    found = [one[name] for one in rounds if one.get(name) is not None]
    return Spread(statistics.median(found), min(found), max(found)) if found else None


def lateness_ms(stamps: Sequence[int], period_seconds: int) -> list[float]:
    """How late each start was after its due time by the wall clock; negative if it was early."""
    period = period_seconds * NS
    late = [(stamp % period, period) for stamp in stamps]
    return [(one - whole if one > whole * (1 - EARLY_SHARE) else one) / 1e6 for one, whole in late]


def due_since(stamps: Sequence[int], period_seconds: int, begun: int) -> list[int]:
    """The starts for due times after `begun`.  Some systems run earlier ones when they start."""
    late = lateness_ms(stamps, period_seconds)
    return [stamp for stamp, ms in zip(stamps, late, strict=True) if stamp - ms * 1e6 >= begun]


def missed(stamps: Sequence[int], period_seconds: int) -> int:
    """The number of due times without a start, between the first start and the last."""
    period = period_seconds * NS
    due_times = {int((stamp + period * EARLY_SHARE) // period) for stamp in stamps}
    return max(due_times) - min(due_times) + 1 - len(due_times) if due_times else 0


def ratios(rounds: Rounds, name: str, of: str, to: str) -> list[float]:
    """One system's figure divided by another's, in each round that has both."""
    pairs = zip(rounds[of], rounds[to], strict=True)
    return [one[name] / other[name] for one, other in pairs if one.get(name) and other.get(name)]
