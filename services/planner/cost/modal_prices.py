"""Modal's prices: asked of Modal, or else of a dated table."""

import asyncio
import importlib.util
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from services.planner.cost.rates import HOUR_SECONDS, Rates, Resources, Tariff

ASK_SECONDS: Final = 10.0
"""How long Modal may take to answer."""

TABLE_DATE: Final = "2026-07"
TABLE: Final = Rates(
    core=0.0000131,
    gib=0.00000222,
    gpus={
        "t4": 0.000164,
        "l4": 0.000222,
        "a10g": 0.000306,
        "l40s": 0.000542,
        "a100_40gb": 0.000583,
        "a100_80gb": 0.000694,
        "h100": 0.001097,
        "h200": 0.001261,
        "b200": 0.001736,
    },
    source=f"the table of Modal's prices of {TABLE_DATE} in this package",
)
"""The prices of https://modal.com/pricing, per second in USD, for when Modal can't be asked."""

IDLE_SECONDS: Final = 60.0
"""How long a container waits for further work, and is paid, before Modal ends it; Modal's default."""

START_SECONDS: Final = 5.0
"""How long a container starts, about, with an image that is built."""

LEAST_CORES: Final = 0.125
"""What Modal charges for at least."""

_CPU, _MEMORY, _GPU = "cpu_hour_cost", "mem_gib_hour_cost", "gpu_hour_cost_"
"""The names of the prices per hour for functions, or how they begin; those of sandboxes have a suffix."""


async def rates() -> Rates:
    """Return the current prices of this workspace, or the table's if Modal doesn't tell them.

    It is asked if its package is installed and there is a token.  The source of the prices says which
    they are, and why Modal did not tell any.
    """
    if importlib.util.find_spec("modal") is None:
        return _table("the package `modal` is not installed")
    try:
        async with asyncio.timeout(ASK_SECONDS):
            told = await _asked()
        return rates_of(told)
    except Exception as exc:  # a price that isn't told must not keep anybody from an estimate
        reason = str(exc).partition(". ")[0].splitlines() or [type(exc).__name__]
        return _table(f"Modal did not tell its own: {reason[0]}")


async def modal_tariff(cores: float, memory_mib: float, gpu: str = "", slots: int = 1) -> Tariff:
    """Return what a run in a container holds, and what that costs by the current prices.

    The arguments and errors are those of `container_tariff`.
    """
    return container_tariff(await rates(), cores, memory_mib, gpu, slots)


def container_tariff(
    current: Rates, cores: float, memory_mib: float, gpu: str = "", slots: int = 1
) -> Tariff:
    """Return what a run in a container holds, and what that costs.

    Args:
        current: the prices.
        cores, memory_mib: of a container.
        gpu: of a container, as Modal writes it, such as `H100` or `A100-80GB:2`; empty for none.
        slots: how many runs share a container.

    Raises:
        PlanError: the GPU can't be read, or has no price.
    """
    held = Resources.of(max(LEAST_CORES, cores), memory_mib / 1024, gpu).shared_by(slots)
    if held.gpu:
        current.of_gpu(held.gpu)
    return Tariff(held, current, overhead_seconds=START_SECONDS + IDLE_SECONDS)


async def _asked() -> Mapping[str, Any]:
    import modal

    told: Mapping[str, Any] = await modal.Workspace.from_context().billing.rates.aio()
    return told


def rates_of(told: Mapping[str, Any]) -> Rates:
    """Return the prices in what Modal tells: names and decimals, in USD per hour.

    Raises:
        KeyError: the price of cores or of memory is not among them.
    """
    return Rates(
        core=float(told[_CPU]) / HOUR_SECONDS,
        gib=float(told[_MEMORY]) / HOUR_SECONDS,
        gpus={
            name.removeprefix(_GPU): float(price) / HOUR_SECONDS
            for name, price in told.items()
            if name.startswith(_GPU)
        },
        source=f"Modal, asked on {datetime.now(UTC):%Y-%m-%d}",
    )


def _table(why: str) -> Rates:
    return Rates(TABLE.core, TABLE.gib, TABLE.gpus, TABLE.currency, f"{TABLE.source} ({why})")
