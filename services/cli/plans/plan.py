"""`fullsend plan`."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from services.cli import output
from services.cli.output import Column, CommandError
from services.cli.plans import planning, run_plan
from services.cli.plans.interrupting import leave
from services.cli.plans.plan_backends import BackendName
from services.cli.plans.progress_display import rate
from services.cli.plans.run_plan import Carried
from services.planner.documents import read_manifest
from services.planner.models import RunManifest
from services.planner.plan import Plan, plans_in
from services.planner.report import code_warning
from services.planner.standing import PlanState, Standing
from services.planner.tasks import TaskResult
from shared.errors import PlanError

LOOK_SECONDS: Final = 0.1
FAILURES_TOLD: Final = 5

COLUMNS: Final = [
    Column("PLAN"), Column("STATE"), Column("DONE", right=True), Column("FAILED", right=True),
    Column("RUNNING", right=True), Column("LEFT", right=True), Column("RATE", drop=1),
    Column("TO GO", drop=3), Column("BEGUN", drop=2),
]  # fmt: skip

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
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for another program.")]

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
    found = planning.found(plan_id)
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
    standings = list(_all_standings()) if plan_id is None else [_standing(planning.found(plan_id))]
    if as_json:
        members = [_members(*one) for one in standings]
        output.print_json(members if plan_id is None else members[0])
    elif plan_id is not None:
        _show(*standings[0])
    else:
        output.table(COLUMNS, [_row(*one) for one in standings], output.console())


@app.command()
def cancel(
    plan_id: PlanId,
    wait: Annotated[bool, typer.Option(help="Wait until it has ended.")] = True,
) -> None:
    """Have a plan end that another process executes; what has ended is kept."""
    found = planning.found(plan_id)
    if not found.cancel("cancelled by `fullsend plan cancel`"):
        raise CommandError(f"nobody executes {found.plan_id}; it is {found.standing().state}")
    standing = found.standing()
    while wait and standing.state is PlanState.RUNNING:
        time.sleep(LOOK_SECONDS)
        standing = found.standing()
    what = "being ended" if standing.state is PlanState.RUNNING else standing.state
    output.console().print(f"{found.plan_id} is {what}: {_counted(standing)}")


@app.command()
def report(plan_id: PlanId, as_json: AsJson = False) -> None:
    """Write a plan's report again, from what its runs have left behind."""
    _tell_report(run_plan.reported(planning.found(plan_id)), as_json)


# -- running --------------------------------------------------------------------------


def tell_estimate(manifest: RunManifest, backend: BackendName, directory: Path | None, as_json: bool) -> None:
    """Say what a plan will take."""
    expected = planning.estimated(manifest, backend, directory)
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
        output.print_json({**_members(carried.plan, standing), "report": _paths(carried.report)})
    else:
        _tell_end(carried, standing)
    code = _exit_code(carried, standing)
    if carried.is_cut_short:
        leave(code)  # a thread may still be reading or drawing
    if code:
        raise typer.Exit(code)


def _tell_end(carried: Carried, standing: Standing) -> None:
    changed = code_warning(carried.results)
    for warning in (*([changed] if changed else []), *carried.notes):
        print(f"warning: {output.one_line(warning)}", file=sys.stderr)
    _show_failures(carried.results)
    _show(carried.plan, standing)
    if carried.report:
        _tell_report(carried.report, as_json=False)
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
            output.error(str(exc))


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


# -- words ----------------------------------------------------------------------------


def _counted(standing: Standing) -> str:
    parts = [f"{standing.done} of {standing.total} done", f"{standing.failed} failed"]
    if standing.running:
        parts.append(f"{standing.running} running")
    if standing.stale:
        parts.append(f"{standing.stale} noted as running by a process that is gone")
    return ", ".join(parts)


def _show(found: Plan, standing: Standing) -> None:
    sitting = standing.sitting
    lines = {
        "plan": found.plan_id,
        "state": standing.state.value,
        "cases": _counted(standing),
        "left": str(standing.left) if standing.left else "",
        "rate": rate(standing.rate_per_second) if standing.rate_per_second else "",
        "to go": output.duration(standing.eta_seconds),
        "stopped": (sitting.stopped or "") if sitting else "",
        "tool": found.manifest.tool,
        "directory": _near(found.directory),
    }
    out = output.console()
    for name, text in lines.items():
        if text:
            out.print(f"{name:<11}{output.one_line(text)}")


def _show_failures(results: Sequence[TaskResult]) -> None:
    failed = [one for one in results if one.error_type and one.task_status != "cancelled"]
    for one in failed[:FAILURES_TOLD]:
        print(output.short(f"case {one.index} {one.task_status}: {one.error_type}: {one.error_message}", 200))
    if len(failed) > FAILURES_TOLD:
        print(f"and {len(failed) - FAILURES_TOLD} more that did not succeed")


def _row(found: Plan, standing: Standing) -> list[output.Cell]:
    sitting = standing.sitting
    return [
        found.plan_id,
        output.styled(standing.state),
        f"{standing.done}/{standing.total}",
        str(standing.failed),
        str(standing.running),
        str(standing.left),
        rate(standing.rate_per_second) if standing.rate_per_second else "",
        output.duration(standing.eta_seconds),
        output.ago(sitting.began_at.isoformat()) if sitting else "",
    ]


def _members(found: Plan, standing: Standing) -> dict[str, Any]:
    counted = {"plan_id": found.plan_id, "directory": str(found.directory), "tool": found.manifest.tool}
    members: dict[str, Any] = json.loads(json.dumps(asdict(standing), default=str))
    sitting = members.pop("sitting")
    return {**counted, **members, "sitting": sitting}


def _tell_report(files: dict[str, Path], as_json: bool) -> None:
    if as_json:
        output.print_json(_paths(files))
    elif page := files.get("report.html"):
        others = ", ".join(path.name for path in files.values() if path.name != page.name)
        print(f"{'report':<11}{_near(page)}, and beside it {others}")


def _paths(files: dict[str, Path]) -> dict[str, str]:
    return {kind: str(path) for kind, path in files.items()}


def _near(path: Path) -> str:
    """A path as one would write it here."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
