"""What the commands of plans have in common: which plan is meant, and what one will take."""

import asyncio
import os
from pathlib import Path
from typing import Final

from services.cli import connection
from services.cli.output import CommandError
from services.cli.plans.plan_backends import BackendName, local_capacity, store_of
from services.planner.backends.crew import Crew
from services.planner.estimate import Estimate, estimate
from services.planner.models import RunManifest
from services.planner.plan import PLANS, Plan, plans_in
from services.planner.recorded import Recorded, in_plans, in_redis
from shared import log

ALL_AT_ONCE: Final = 1_000
"""On the fleet: what the executors can take is the limit."""


def estimated(manifest: RunManifest, backend: BackendName, directory: Path | None = None) -> Estimate:
    """What a plan will take there, by what earlier runs of its tool took.

    Args:
        manifest: the plan.
        backend: where its cases are going to run; of the fleet, Redis knows runs too.
        directory: of the plan; those beside it are looked at.
    """
    log.configure(level="error")
    beside = directory.absolute().parent if directory is not None else PLANS.absolute()
    places = [PLANS] if beside == PLANS.absolute() else [PLANS, beside]
    recorded = [in_plans(manifest.tool, place) for place in places]
    concurrency, notes = manifest.execution_policy.concurrency, list[str]()
    if backend is BackendName.LOCAL:
        capacity = local_capacity(concurrency, notes.append)
    else:
        known = frozenset().union(*(one.experiments for one in recorded))
        capacity, in_records = asyncio.run(_asked(manifest.tool, known, notes))
        recorded.append(in_records)
    seconds = {one.place: one.seconds for one in recorded}
    return estimate(manifest, seconds, backend, capacity, notes)


def places_at_once(backend: BackendName) -> int:
    """Cases at once where nobody says how many: one for each CPU here, and all that the executors take."""
    return len(os.sched_getaffinity(0)) if backend is BackendName.LOCAL else ALL_AT_ONCE


def found(name: str) -> Plan:
    """The plan of this id, or of an id that begins so and no other does, or in this directory."""
    known = {directory.name: directory for directory in plans_in()}
    if name in known:
        return Plan.open(known[name])
    if Path(name).is_dir():
        return Plan.open(Path(name))
    matching = [directory for plan_id, directory in known.items() if plan_id.startswith(name)]
    if len(matching) == 1:
        return Plan.open(matching[0])
    if matching:
        raise CommandError(f"{name!r} may be {', '.join(one.name for one in matching)}")
    raise CommandError(f"there is no plan {name!r} in {PLANS}; `fullsend plan status` lists those there are")


async def _asked(tool: str, known: frozenset[str], notes: list[str]) -> tuple[int, Recorded]:
    """How many cases at once the executors take, and what they have recorded of a tool."""
    async with store_of(connection.settings()) as store:
        crew = Crew(store, notes.append)
        await crew.count()
        return crew.places, await in_redis(store, tool, known)
