"""Estimates plans for the commands: from records, a declared duration, or a pilot that is run and kept."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from services.cli import connection, output
from services.cli.output import CommandError
from services.cli.plans import plan_output
from services.cli.plans.plan_checks import Target, check_parameters
from services.cli.plans.run_plan import PlanRun, plan_context, run_pilot, store_of
from services.planner.backends import BACKENDS, backend_class
from services.planner.cost import Tariff, tariff_of
from services.planner.models import RunManifest
from services.planner.plan import PLANS, Plan
from services.planner.plan.estimate import Estimate, estimate
from services.planner.plan.recorded_runs import (
    RecordedRuns,
    recorded_in_plan,
    recorded_in_plans,
    recorded_in_redis,
)
from shared import log


@dataclass(frozen=True, slots=True)
class Basis:
    """What an estimate is made from; with neither, recorded runs.

    Attributes:
        pilot: how many cases are run first, and kept.
        run_seconds: the declared duration of a run.
    """

    pilot: int | None = None
    run_seconds: float | None = None

    def check(self, is_estimate: bool) -> None:
        """Raise `CommandError` if it makes no sense."""
        if self.pilot is not None and self.run_seconds is not None:
            raise CommandError("--pilot and --run-seconds exclude each other: both say how long a run takes")
        for name, value in (("--pilot", self.pilot), ("--run-seconds", self.run_seconds)):
            if value is not None and not is_estimate:
                raise CommandError(f"{name} is for estimates; add `--estimate`")


def print_estimate(
    manifest: RunManifest, target: Target, directory: Path | None, basis: Basis, as_json: bool
) -> None:
    """Print how many runs a plan has, how long it will take and what it will cost; end if interrupted."""
    expected, pilot = estimate_plan(manifest, target, directory, basis)
    members = expected.to_json()
    if pilot is not None:
        members |= {"plan_id": pilot.plan.plan_id, "directory": str(pilot.plan.directory)}
    if as_json:
        output.print_json(members)
    else:
        output.say("\n".join(expected.lines()))
    if pilot is None:
        return
    if not as_json:
        plan_output.show_failures(pilot.results)
        output.say(f"run the other cases with: fullsend plan resume {pilot.plan.place}")
    if pilot.is_cut_short:
        plan_output.exit_now(1 if pilot.signal is None else 128 + pilot.signal)


def estimate_plan(
    manifest: RunManifest, target: Target, directory: Path | None = None, basis: Basis | None = None
) -> tuple[Estimate, PlanRun | None]:
    """Estimate a plan; returns the pilot as well, if there was one.

    Args:
        manifest: the plan.
        target: where its cases will run; if it uses Redis, runs in Redis count as well.
        directory: of the plan; the plans beside it count as well.
        basis: what the estimate is made from.

    Raises:
        FullsendError: the backend can't be asked, or the pilot can't be run.
    """
    log.configure(level="error")
    basis = basis or Basis()
    run: PlanRun | None = None
    if basis.run_seconds is not None:
        source, recorded = "declared", [RecordedRuns("what you say", (basis.run_seconds,))]
    elif basis.pilot is not None:
        run = run_pilot(Plan.create(manifest, directory), target, basis.pilot)
        source, recorded = "pilot", [recorded_in_plan(run.plan.registry, "the pilot")]
    else:
        beside = directory.absolute().parent if directory is not None else PLANS.absolute()
        places = [PLANS] if beside == PLANS.absolute() else [PLANS, beside]
        source, recorded = "recorded", [recorded_in_plans(manifest.tool, place) for place in places]
    notes: list[str] = []
    capacity, tariff, in_redis = asyncio.run(_ask_backend(manifest, target, recorded, notes, source))
    found = estimate(
        manifest, [*recorded, *in_redis], target.backend, capacity, notes, tariff=tariff, source=source
    )
    return found, run


async def _ask_backend(
    manifest: RunManifest,
    target: Target,
    recorded: Sequence[RecordedRuns],
    notes: list[str],
    source: str,
) -> tuple[int, Tariff, Sequence[RecordedRuns]]:
    """Return how many cases run at once on a backend, its tariff, and what its Redis has recorded."""
    chosen = connection.settings()
    await check_parameters(manifest, target, chosen)
    context = plan_context(manifest, target, chosen, notes.append)
    capacity = await backend_class(target.backend).plan_capacity(context)
    tariff = await tariff_of(target.backend, context, manifest.tool)
    if source != "recorded" or not BACKENDS[target.backend].uses_redis:
        return capacity, tariff, ()
    known = frozenset[str]().union(*(one.experiments for one in recorded))
    async with store_of(chosen) as store:
        return capacity, tariff, [await recorded_in_redis(store, manifest.tool, known)]
