"""What runs have used of machines.  Pure."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Usage:
    """What runs have used.

    Attributes:
        attempts: that have begun.
        seconds: the sum of their durations.
        core_seconds: the cores that each held, times its duration; or the CPU seconds that it used, if
            these are more.
        gib_seconds: the memory that each held, or that its process had at most, if that is more, in GiB
            times its duration.
        gpu_seconds: the GPUs that each held, times its duration.
        peak_bytes: the most memory that one process had; None if none was measured.
        money: what that costs by the prices of the platform; None if there are none.
        overhead_money: the part of `money` for the time in which machines are paid and run nothing.
    """

    attempts: int = 0
    seconds: float = 0.0
    core_seconds: float = 0.0
    gib_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_bytes: int | None = None
    money: float | None = None
    overhead_money: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        """Return what both have used together."""
        return Usage.total((self, other))

    @classmethod
    def total(cls, parts: Iterable["Usage"]) -> Self:
        """Return what all parts have used together; the memory is that of the one that had most."""
        known = list(parts)
        money = [one.money for one in known if one.money is not None]
        return cls(
            attempts=sum(one.attempts for one in known),
            seconds=math.fsum(one.seconds for one in known),
            core_seconds=math.fsum(one.core_seconds for one in known),
            gib_seconds=math.fsum(one.gib_seconds for one in known),
            gpu_seconds=math.fsum(one.gpu_seconds for one in known),
            peak_bytes=max((one.peak_bytes for one in known if one.peak_bytes is not None), default=None),
            money=math.fsum(money) if money else None,
            overhead_money=math.fsum(one.overhead_money for one in known),
        )

    def with_overhead(self, money: float | None) -> "Usage":
        """Return it with money for time in which machines are paid and run nothing."""
        if money is None:
            return self
        total = (self.money or 0.0) + money
        return replace(self, money=total, overhead_money=self.overhead_money + money)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, members: dict[str, Any]) -> Self:
        """Return what is in the members of `to_json`."""
        return cls(**members)


NO_USAGE = Usage()
