"""Prices of a second of a core, of memory and of GPUs, and what one run holds of them.  Pure."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from services.planner.cost.usage import GIB, Usage
from shared.errors import PlanError

HOUR_SECONDS: Final = 3_600
_GPU: Final = re.compile(r"([A-Za-z][\w-]*)[!+]?(?::(\d+))?")


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices per second.

    Attributes:
        core: of one core.
        gib: of one GiB of memory.
        gpus: of one GPU, by `gpu_key` of its type.
        currency: as ISO 4217 has it, such as `USD`.
        source: where the prices are from, and of when, for the reader.
    """

    core: float
    gib: float = 0.0
    gpus: Mapping[str, float] = field(default_factory=dict)
    currency: str = "USD"
    source: str = ""

    def of_gpu(self, kind: str) -> float:
        """Return the price of a type of GPU.  Raises `PlanError` if it has none."""
        key = gpu_key(kind)
        if key not in self.gpus:
            known = ", ".join(self.gpus) or "none"
            raise PlanError(f"there is no price for the GPU {kind!r} in {self.source}; known are {known}")
        return self.gpus[key]


def gpu_key(kind: str) -> str:
    """Return a type of GPU as prices have it: `A100-80GB` is `a100_80gb`; variants of one price are one."""
    key = kind.strip().rstrip("!+").lower().replace("-", "_")
    return {"a10": "a10g", "a100": "a100_40gb", "rtx_pro_6000": "rtx6000"}.get(key, key)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one run holds as long as it runs, whether it uses it or not.

    Attributes:
        cores: a place of an executor counts as one.
        gib: of memory; 0 if none is reserved.
        gpu: the type of GPU; empty for none.
        gpus: how many; a part if several runs share one.
    """

    cores: float = 1.0
    gib: float = 0.0
    gpu: str = ""
    gpus: float = 0.0

    @classmethod
    def of(cls, cores: float, gib: float, gpu: str | None = None) -> Self:
        """Return resources; `gpu` as Modal writes it, such as `H100` or `A100-80GB:2`.

        Raises:
            PlanError: `gpu` can't be read.
        """
        if not gpu:
            return cls(cores, gib)
        found = _GPU.fullmatch(gpu.strip())
        if found is None:
            raise PlanError(f"the GPU {gpu!r} can't be read; expected a type such as H100, or H100:2 for two")
        return cls(cores, gib, found[1], float(found[2] or 1))

    def shared_by(self, runs: int) -> "Resources":
        """Return the part of each if so many runs share these resources."""
        return Resources(self.cores / runs, self.gib / runs, self.gpu, self.gpus / runs)


@dataclass(frozen=True, slots=True)
class Tariff:
    """What a run on a backend holds, and what that costs.

    Attributes:
        resources: of one run.
        rates: the prices; None if none are known.
        overhead_seconds: how long each place is paid besides its runs: while it starts, and while it waits
            before it is given up.
        missing: why no prices are known, and what to do; empty if they are.
    """

    resources: Resources = Resources()
    rates: Rates | None = None
    overhead_seconds: float = 0.0
    missing: str = ""

    @property
    def per_second(self) -> float | None:
        """What a second of one run costs at least; None without prices."""
        held = self.resources
        return self._money(held.cores, held.gib, held.gpus)

    def overhead(self, places: int) -> float | None:
        """Return what so many places cost besides their runs; None without prices."""
        return None if self.per_second is None else places * self.overhead_seconds * self.per_second

    def usage(self, seconds: float, cpu_seconds: float | None = None, peak_bytes: int | None = None) -> Usage:
        """Return what an attempt has used.

        Platforms charge for what is reserved, or for what is used, if that is more.

        Args:
            seconds: its duration.
            cpu_seconds, peak_bytes: of its processes, as far as it was measured.
        """
        held = self.resources
        core_seconds = max(held.cores * seconds, cpu_seconds or 0.0)
        gib_seconds = max(held.gib, (peak_bytes or 0) / GIB) * seconds
        gpu_seconds = held.gpus * seconds
        return Usage(
            attempts=1,
            seconds=seconds,
            core_seconds=core_seconds,
            gib_seconds=gib_seconds,
            gpu_seconds=gpu_seconds,
            peak_bytes=peak_bytes,
            money=self._money(core_seconds, gib_seconds, gpu_seconds),
        )

    def _money(self, core_seconds: float, gib_seconds: float, gpu_seconds: float) -> float | None:
        if self.rates is None:
            return None
        of_gpus = gpu_seconds * self.rates.of_gpu(self.resources.gpu) if gpu_seconds else 0.0
        return core_seconds * self.rates.core + gib_seconds * self.rates.gib + of_gpus

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, members: Mapping[str, Any]) -> Self:
        """Return the tariff in the members of `to_json`."""
        rates = members["rates"]
        return cls(
            **{
                **members,
                "resources": Resources(**members["resources"]),
                "rates": None if rates is None else Rates(**rates),
            }
        )


UNPRICED: Final = Tariff()
"""One core for each run, and no prices."""


def money_text(money: float, currency: str) -> str:
    """Return an amount with as many digits as say something: `12.30 USD`, `0.0041 USD`."""
    if money >= 1 or money == 0:
        return f"{money:,.2f} {currency}"
    return f"{money:.{max(2, _leading_zeros(money) + 2)}f} {currency}"


def _leading_zeros(money: float) -> int:
    """Return how many zeros follow the point, 12 at most."""
    zeros = 0
    while money < 0.1 and zeros < 12:
        money, zeros = money * 10, zeros + 1
    return zeros
