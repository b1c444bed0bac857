"""How long earlier runs of a tool took, and where that is recorded."""

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from services.executor.store import Store
from services.planner.plan import PLANS, plans_in, registry_in
from shared.errors import PlanError

NEWEST: Final = 10_000
"""Records in Redis that are looked at; those of all tools are in one heap."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one place knows of the runs of a tool that succeeded.

    Attributes:
        place: in words, such as `plans in .fullsend/plans`.
        seconds: of each run.
        experiments: under which ids of experiments the same runs are recorded elsewhere.
    """

    place: str
    seconds: tuple[float, ...]
    experiments: frozenset[str] = frozenset()


def in_plans(tool: str, directory: Path = PLANS) -> Recorded:
    """The runs in the registries of the plans in a directory, as far as these can be read."""
    seconds: list[float] = []
    experiments: set[str] = set()
    for place in plans_in(directory):
        with contextlib.suppress(PlanError):
            registry = registry_in(place)
            if registry.fact("tool") == tool:
                seconds += registry.durations()
                experiments.add(f"plan:{registry.fact('name')}")
    return Recorded(f"plans in {directory}", tuple(seconds), frozenset(experiments))


async def in_redis(store: Store, tool: str, known: Collection[str] = ()) -> Recorded:
    """The runs that executors have recorded, without those of experiments that are `known` already.

    Raises:
        StoreError: Redis can't be asked.
    """
    records = await store.history.completed(tool, NEWEST)
    seconds = tuple(one.seconds for one in records if one.experiment_id not in known)
    return Recorded("Redis", seconds)
