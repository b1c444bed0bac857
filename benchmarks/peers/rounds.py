"""Each round measures each system once, so that changes of the machine's load affect all systems alike."""

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers import measures, mishaps
from benchmarks.peers.measures import Figures, Sizes
from benchmarks.peers.stage import StageError
from benchmarks.peers.system import Case, System

ROUND_MEASURES: Mapping[str, tuple[Case, Callable[[System, Path, Sizes], Awaitable[Figures]]]] = {
    "throughput": (Case.BUSY, measures.throughput),
    "idle": (Case.BUSY, measures.idle),
    "wide": (Case.WIDE, measures.wide),
}
ONCE = ("hung", "killed", "cron")
MEASURES = (*ROUND_MEASURES, *ONCE)

Say = Callable[[str], None]


async def one_round(
    systems: Sequence[System], names: Sequence[str], server: Path, sizes: Sizes, say: Say
) -> dict[str, Figures]:
    """The figures of each system.  A measurement that fails is reported and left out."""
    found: dict[str, Figures] = {system.name: {} for system in systems}
    for name in (one for one in ROUND_MEASURES if one in names):
        case, measure = ROUND_MEASURES[name]
        for system in random.sample(systems, len(systems)):
            if case in system.commands:
                found[system.name] |= await tried(system, name, measure(system, server, sizes), say)
    return found


async def hung(systems: Sequence[System], server: Path, say: Say) -> dict[str, dict[str, Figures]]:
    """The figures of each system and each kind of hanging job."""
    found: dict[str, dict[str, Figures]] = {}
    for system in (one for one in systems if Case.SINGLE in one.commands):
        kinds = {
            kind: await tried(system, f"hung, {kind}", mishaps.hung(system, kind, server), say)
            for kind in mishaps.KINDS
        }
        found[system.name] = {kind: one for kind, one in kinds.items() if one}
    return found


async def killed(
    systems: Sequence[System], server: Path, patience_seconds: float, say: Say
) -> dict[str, Figures]:
    """The figures of all systems, measured at the same time: most of it is waiting."""
    known = [one for one in systems if Case.DEFAULT in one.commands]
    async with asyncio.TaskGroup() as tasks:
        running = {
            one.name: tasks.create_task(
                tried(one, "killed", mishaps.killed(one, server, patience_seconds), say)
            )
            for one in known
        }
    return {name: task.result() for name, task in running.items() if task.result()}


async def cron(systems: Sequence[System], server: Path, seconds: float, say: Say) -> dict[str, Figures]:
    """The figures of one system after the other, because their due times are the same."""
    known = [one for one in systems if Case.CRON in one.commands]
    return {one.name: await tried(one, "cron", mishaps.cron(one, server, seconds), say) for one in known}


async def tried(system: System, name: str, figures: Awaitable[Figures], say: Say) -> dict[str, Any]:
    """The figures, or none if the measurement fails, so that hours of other measurements are not lost."""
    try:
        found = await figures
    except (StageError, AssertionError, OSError, RuntimeError, ValueError):
        say(f"{system.name}: {name}: failed\n{traceback.format_exc()}")
        return {}
    say(f"{system.name}: {name}: {shown(found)}")
    return found


def shown(figures: Figures) -> str:
    """The figures on one line."""
    cells = (
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in figures.items()
    )
    return ", ".join(cells)
