"""`fullsend plan`."""

import asyncio
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from services.cli import connection, output
from services.cli.output import AsJson, CommandError
from services.cli.plans import plan_output, run_plan
from services.cli.plans.plan_output import (
    case_counts,
    exit_now,
    plan_json,
    plan_row,
    report_paths,
    show_failures,
    show_plan,
    show_report,
)
from services.cli.plans.run_plan import BackendName, Carried, local_capacity, store_of
from services.planner.backends.fleet import Crew
from services.planner.documents import read_manifest
from services.planner.models import RunManifest
from services.planner.plan import PLANS, Plan, plans_in
from services.planner.plan.estimate import Estimate, Recorded, estimate, in_plans, in_redis
from services.planner.plan.status import PlanState, Standing
from services.planner.report import code_warning
from shared import log
from shared.errors import PlanError

LOOK_SECONDS: Final = 0.1

PlanId = Annotated[str, typer.Argument(metavar="ID", help="A plan's id, or how it begins, or its directory.")]
Where = Annotated[BackendName, typer.Option("--backend", help="Where the cases run.")]
Concurrency = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Cases at once, in place of the plan's own number.")
]
Directory = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The plan's directory; by default a new one in .fullsend/plans."),
]
Estimated = Annotated[bool, typer.Option("--estimate", help="Say what it will take, and run nothing.")]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def plan(context: typer.Context) -> None:
    """Run many cases of one tool from one file, and go on where it stopped.

    A plan keeps what becomes of it in a directory of its own, from which it is resumed and reported.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The manifest: YAML or JSON.")],
    backend: Where = BackendName.LOCAL,
    concurrency: Concurrency = None,
    directory: Directory = None,
    estimate: Estimated = False,
    as_json: AsJson = False,
) -> None:
    """Run a plan to its end, and write its report.

    Ctrl-C ends what runs and keeps what has ended; a second one ends at once. `fullsend plan resume`
    goes on from there in either case, also after a crash.
    """
    manifest = _with_concurrency(read_manifest(file), concurrency)
    if estimate:
        tell_estimate(manifest, backend, directory, as_json)
    else:
        finish(run_plan.carry_out(Plan.create(manifest, directory), backend), as_json)


@app.command()
def resume(
    plan_id: PlanId,
    failed: Annotated[bool, typer.Option(help="Run cases again that did not succeed.")] = True,
    backend: Annotated[
        BackendName | None, typer.Option(help="Where the cases run; by default where they ran before.")
    ] = None,
    concurrency: Concurrency = None,
    as_json: AsJson = False,
) -> None:
    """Run what is left of a plan: cases that have not ended, and those that did not succeed.

    Each gets the seed it had. What came before is kept.
    """
    found = find_plan(plan_id)
    found = Plan(found.directory, _with_concurrency(found.manifest, concurrency))
    finish(run_plan.carry_out(found, backend or _backend_before(found), failed=failed), as_json)


@app.command()
def status(
    plan_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="One plan; without it, all of this directory.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show how far a plan is, or all plans are."""
    standings = list(_all_standings()) if plan_id is None else [_standing(find_plan(plan_id))]
    if as_json:
        members = [plan_json(*one) for one in standings]
        output.print_json(members if plan_id is None else members[0])
    elif plan_id is not None:
        show_plan(*standings[0])
    else:
        output.table(plan_output.COLUMNS, [plan_row(*one) for one in standings], output.console())


@app.command()
def cancel(
    plan_id: PlanId,
    wait: Annotated[bool, typer.Option(help="Wait until it has ended.")] = True,
) -> None:
    """Have a plan end that another process executes; what has ended is kept."""
    found = find_plan(plan_id)
    if not found.cancel("cancelled by `fullsend plan cancel`"):
        raise CommandError(f"nobody executes {found.plan_id}; it is {found.standing().state}")
    standing = found.standing()
    while wait and standing.state is PlanState.RUNNING:
        time.sleep(LOOK_SECONDS)
        standing = found.standing()
    what = "being ended" if standing.state is PlanState.RUNNING else standing.state
    output.console().print(f"{found.plan_id} is {what}: {case_counts(standing)}")


@app.command()
def report(plan_id: PlanId, as_json: AsJson = False) -> None:
    """Write a plan's report again, from what its runs have left behind."""
    show_report(run_plan.reported(find_plan(plan_id)), as_json)


# -- running --------------------------------------------------------------------------


def tell_estimate(manifest: RunManifest, backend: BackendName, directory: Path | None, as_json: bool) -> None:
    """Say what a plan will take."""
    expected = estimate_plan(manifest, backend, directory)
    if as_json:
        output.print_json(expected.to_json())
    else:
        print("\n".join(expected.lines()))


def finish(carried: Carried, as_json: bool) -> None:
    """Say what carrying out a plan came to.

    Raises:
        typer.Exit: neither all of it succeeded, nor do its success criteria hold.
    """
    standing = carried.plan.standing()
    if as_json:
        output.print_json({**plan_json(carried.plan, standing), "report": report_paths(carried.report)})
    else:
        _tell_end(carried, standing)
    code = _exit_code(carried, standing)
    if carried.is_cut_short:
        exit_now(code)  # a thread may still be reading or drawing
    if code:
        raise typer.Exit(code)


def _tell_end(carried: Carried, standing: Standing) -> None:
    changed = code_warning(carried.results)
    for warning in (*([changed] if changed else []), *carried.notes):
        print(f"warning: {output.one_line(warning)}", file=sys.stderr)
    show_failures(carried.results)
    show_plan(carried.plan, standing)
    if carried.report:
        show_report(carried.report, as_json=False)
    if standing.left:
        print(f"go on with: fullsend plan resume {carried.plan.place}")
    elif carried.is_cut_short:
        print(f"write its report with: fullsend plan report {carried.plan.place}")


def _exit_code(carried: Carried, standing: Standing) -> int:
    if carried.signal is not None:
        return 128 + carried.signal
    if carried.is_cut_short:
        return 1
    return 0 if carried.is_accomplished or not (standing.failed or standing.left) else 1


def _all_standings() -> Iterator[tuple[Plan, Standing]]:
    """Of all plans that can be read; says which can't."""
    for directory in plans_in():
        try:
            yield _standing(Plan.open(directory))
        except PlanError as exc:
            output.print_error(str(exc))


def _standing(found: Plan) -> tuple[Plan, Standing]:
    return found, found.standing()


def _backend_before(found: Plan) -> BackendName:
    sitting = found.standing().sitting
    return next((one for one in BackendName if sitting and sitting.backend == one), BackendName.LOCAL)


def _with_concurrency(manifest: RunManifest, concurrency: int | None) -> RunManifest:
    if concurrency is None:
        return manifest
    policy = manifest.execution_policy.model_copy(update={"concurrency": concurrency})
    return manifest.model_copy(update={"execution_policy": policy})


ALL_AT_ONCE: Final = 1_000
"""On the fleet: what the executors can take is the limit."""


def estimate_plan(manifest: RunManifest, backend: BackendName, directory: Path | None = None) -> Estimate:
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
        capacity, in_records = asyncio.run(_ask_fleet(manifest.tool, known, notes))
        recorded.append(in_records)
    seconds = {one.place: one.seconds for one in recorded}
    return estimate(manifest, seconds, backend, capacity, notes)


def places_at_once(backend: BackendName) -> int:
    """Cases at once where nobody says how many: one for each CPU here, and all that the executors take."""
    return len(os.sched_getaffinity(0)) if backend is BackendName.LOCAL else ALL_AT_ONCE


def find_plan(name: str) -> Plan:
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


async def _ask_fleet(tool: str, known: frozenset[str], notes: list[str]) -> tuple[int, Recorded]:
    """How many cases at once the executors take, and what they have recorded of a tool."""
    async with store_of(connection.settings()) as store:
        crew = Crew(store, notes.append)
        await crew.count()
        return crew.places, await in_redis(store, tool, known)
