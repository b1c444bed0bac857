"""`fullsend plan`."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from services.cli import output
from services.cli.cloud.modal_settings import modal_options
from services.cli.output import AsJson, CommandError
from services.cli.plans import metrics_table, plan_output, run_plan
from services.cli.plans.cost_options import (
    CASE_COLUMNS,
    BudgetOption,
    EstimateOnly,
    Pilot,
    RunSeconds,
    case_rows,
    usage_json,
    with_budget,
)
from services.cli.plans.estimating import Basis, print_estimate
from services.cli.plans.plan_checks import Target
from services.cli.plans.run_plan import PlanRun
from services.planner.backends import BACKENDS, DEFAULT_BACKEND, backend_class
from services.planner.documents import read_manifest
from services.planner.models import RunManifest
from services.planner.plan import PLANS, Plan, plans_in
from services.planner.plan.plan_usage import PlanUsage, plan_usage
from services.planner.plan.status import PlanState, PlanStatus
from services.planner.report import code_warning
from services.planner.scheduling.budget import member_to_raise
from shared.errors import PlanError

LOOK_SECONDS: Final = 0.1

PlanId = Annotated[
    str, typer.Argument(metavar="ID", help="A plan's id, the beginning of its id, or its directory.")
]


def known_backend(name: str | None) -> str | None:
    """Accept the name of a backend of the planner's table.

    Raises:
        typer.BadParameter: there is no such backend.
    """
    if name is not None and name not in BACKENDS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, BACKENDS))}.")
    return name


BACKEND_NAMES: Final = f"[{'|'.join(BACKENDS)}]"
BACKENDS_IN_WORDS: Final = "; ".join(f"{name}: {entry.help}" for name, entry in BACKENDS.items())
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar=BACKEND_NAMES,
        callback=known_backend,
        help=f"Where the cases run. {BACKENDS_IN_WORDS}.",
    ),
]
DaskScheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="With `dask`: the scheduler, such as tcp://host:8786, or `local` for a cluster of this machine; "
        "by default what Dask itself is configured for (DASK_SCHEDULER_ADDRESS).",
    ),
]
Concurrency = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Run this many cases at once, instead of the plan's number."),
]
Directory = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="The plan's directory; by default a new one in .fullsend/plans."),
]

app = typer.Typer()


@app.callback(invoke_without_command=True)
def plan(context: typer.Context) -> None:
    """Run many cases of one tool from a manifest.

    Each plan keeps its state and its results in a directory, so that it can be resumed.
    """
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The manifest: YAML or JSON.")],
    backend: BackendOption = DEFAULT_BACKEND,
    dask_scheduler: DaskScheduler = None,
    concurrency: Concurrency = None,
    directory: Directory = None,
    budget: BudgetOption = None,
    estimate: EstimateOnly = False,
    pilot: Pilot = None,
    run_seconds: RunSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Run a plan and write its report.

    Ctrl-C ends running cases and keeps the results of ended ones; a second Ctrl-C exits at once. After
    either, and after a crash, `fullsend plan resume` continues the plan.
    """
    basis = Basis(pilot, run_seconds)
    basis.check(estimate)
    manifest = with_budget(_with_concurrency(read_manifest(file), concurrency), budget)
    target = target_of(backend, dask_scheduler)
    if estimate:
        print_estimate(manifest, target, directory, basis, as_json)
    else:
        check_reachable(target)
        finish(run_plan.execute(Plan.create(manifest, directory), target), as_json)


@app.command()
def resume(
    plan_id: PlanId,
    failed: Annotated[bool, typer.Option(help="Also run again the cases that did not succeed.")] = True,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar=BACKEND_NAMES,
            callback=known_backend,
            help="Where the cases run; by default, where they ran before.",
        ),
    ] = None,
    dask_scheduler: DaskScheduler = None,
    concurrency: Concurrency = None,
    budget: BudgetOption = None,
    as_json: AsJson = False,
) -> None:
    """Continue a plan that was interrupted.

    Runs the cases that have not ended and those that did not succeed. Each case keeps its seed. The
    results of earlier runs are kept.
    """
    found = find_plan(plan_id)
    if budget:
        found = found.with_budget(with_budget(found.manifest, budget).budget)
    found = Plan(found.directory, _with_concurrency(found.manifest, concurrency))
    target = target_of(backend or _backend_before(found), dask_scheduler)
    check_reachable(target)
    finish(run_plan.execute(found, target, failed=failed), as_json)


@app.command()
def status(
    plan_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Show this plan; by default, all in .fullsend/plans.")
    ] = None,
    cases: Annotated[
        bool, typer.Option("--cases", help="With ID: also show what each case has used and what it cost.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state and the progress of plans, and what one has used."""
    if plan_id is not None:
        _show_one(find_plan(plan_id), cases, as_json)
        return
    if cases:
        raise CommandError("--cases needs the ID of a plan")
    statuses = list(_all_statuses())
    if as_json:
        output.print_json([plan_output.plan_json(*one) for one in statuses])
    else:
        output.table(plan_output.COLUMNS, [plan_output.plan_row(*one) for one in statuses], output.console())


def _show_one(found: Plan, by_case: bool, as_json: bool) -> None:
    status, used = found.status(), plan_usage(found.registry, by_case=by_case)
    if as_json:
        output.print_json({**plan_output.plan_json(found, status), "usage": usage_json(used)})
        return
    plan_output.show_plan(found, status, used)
    if by_case:
        output.say()
        output.table(CASE_COLUMNS, case_rows(used), output.console())


@app.command()
def cancel(
    plan_id: PlanId,
    wait: Annotated[bool, typer.Option(help="Wait until the plan has stopped.")] = True,
) -> None:
    """Stop a plan that runs in another process.

    The results of ended cases are kept.
    """
    found = find_plan(plan_id)
    if not found.cancel("cancelled by `fullsend plan cancel`"):
        raise CommandError(f"{found.plan_id} is not running; its state is {found.status().state}")
    status = found.status()
    while wait and status.state is PlanState.RUNNING:
        time.sleep(LOOK_SECONDS)
        status = found.status()
    state = "stopping" if status.state is PlanState.RUNNING else status.state
    output.console().print(f"{found.plan_id} is {state}: {plan_output.case_counts(status)}")


@app.command()
def report(plan_id: PlanId, as_json: AsJson = False) -> None:
    """Write a plan's report again from its results.

    Runs no case.
    """
    plan_output.show_report(run_plan.write_report_again(find_plan(plan_id)), as_json)


@app.command()
def metrics(
    plan_id: PlanId,
    name: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="NAME",
            help="Which metrics: `ring` or `module:Class`; by default the plan's.",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Where the artifacts are now: a directory or the URL of an object store; by default where "
            "the runs have stored them.",
        ),
    ] = None,
    directory: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; by default the plan's report.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute a plan's metrics again and write their tables.

    Reads the artifacts of the cases and runs none. The files are the same to the byte if the artifacts are.
    """
    found = find_plan(plan_id)
    results, computed = run_plan.write_metrics_again(found, name, store, directory)
    if as_json:
        files = plan_output.report_paths(dict(computed.files))
        output.print_json({**metrics_table.metrics_json(results, computed), "files": files})
    else:
        output.table(*metrics_table.metrics_rows(results, computed), output.console())
        output.say()
        plan_output.show_files("metrics", dict(computed.files))
    if computed.warning:
        output.print_error(computed.warning)
        raise typer.Exit(1)


# -- running --------------------------------------------------------------------------


def target_of(backend: str, dask_scheduler: str | None) -> Target:
    """Return where cases run; what can't be right is told before a plan is created.

    Raises:
        CommandError: the options contradict each other.
        PlanError: a package is missing, or nothing says which Dask cluster.
    """
    if dask_scheduler is not None and backend != "dask":
        raise CommandError(f"--dask-scheduler is for `--backend dask`, not for {backend}")
    backend_class(backend)
    if backend == "dask":
        from services.planner.backends.dask_local import scheduler_address  # needs the package

        dask_scheduler = scheduler_address(dask_scheduler)
    return Target(backend, dask_scheduler)


def check_reachable(target: Target) -> None:
    """Raise `PlanError` if the target can't be used, before a plan is created."""
    if target.backend == run_plan.MODAL:
        from services.planner.backends.modal_connection import require_app  # needs the package

        require_app(modal_options().app)


def finish(run: PlanRun, as_json: bool) -> None:
    """Print the result of running a plan, and exit.

    Raises:
        typer.Exit: a case did not succeed or was not run, and the success criteria do not hold.
    """
    status, used = run.plan.status(), plan_usage(run.plan.registry)
    if as_json:
        made, failed = run.evaluations or (0, 0)
        output.print_json(
            {
                **plan_output.plan_json(run.plan, status),
                "usage": usage_json(used),
                "evaluations": made,
                "failed_evaluations": failed,
                "report": plan_output.report_paths(run.report),
            }
        )
    else:
        _print_end(run, status, used)
    code = _exit_code(run, status)
    if run.is_cut_short:
        plan_output.exit_now(code)  # a thread may still read results or draw the report
    if code:
        raise typer.Exit(code)


def _print_end(run: PlanRun, status: PlanStatus, used: PlanUsage) -> None:
    changed = code_warning(run.results)
    incomplete = run.metrics.warning
    compared = run.paired.warnings if run.paired else ()
    for warning in (*filter(None, (changed, incomplete)), *compared, *run.notes):
        output.say(f"warning: {output.one_line(warning)}", file=sys.stderr)
    plan_output.show_failures(run.results)
    plan_output.show_plan(run.plan, status, used, run.evaluations)
    if run.report:
        plan_output.show_report(run.report, as_json=False)
    member = member_to_raise(status.session.stopped if status.session else None)
    if member is not None:
        output.say(
            f"continue with: fullsend plan resume {run.plan.place} --budget {member}=N, for a larger N"
        )
    elif status.left:
        output.say(f"continue with: fullsend plan resume {run.plan.place}")
    elif run.is_cut_short:
        output.say(f"write the report with: fullsend plan report {run.plan.place}")


def _exit_code(run: PlanRun, status: PlanStatus) -> int:
    if run.signal is not None:
        return 128 + run.signal
    if run.is_cut_short:
        return 1
    return 0 if run.is_accomplished or not (status.failed or status.left) else 1


def _all_statuses() -> Iterator[tuple[Plan, PlanStatus]]:
    """Yield all plans that can be read; print an error for each other one."""
    for directory in plans_in():
        try:
            yield _status(Plan.open(directory))
        except PlanError as exc:
            output.print_error(str(exc))


def _status(found: Plan) -> tuple[Plan, PlanStatus]:
    return found, found.status()


def _backend_before(found: Plan) -> str:
    session = found.status().session
    return session.backend if session and session.backend in BACKENDS else DEFAULT_BACKEND


def _with_concurrency(manifest: RunManifest, concurrency: int | None) -> RunManifest:
    if concurrency is None:
        return manifest
    policy = manifest.execution_policy.model_copy(update={"concurrency": concurrency})
    return manifest.model_copy(update={"execution_policy": policy})


def find_plan(name: str) -> Plan:
    """Return a plan by its id, by an unambiguous beginning of its id, or by its directory.

    Raises:
        CommandError: there is no such plan, or there are several.
    """
    known = {directory.name: directory for directory in plans_in()}
    if name in known:
        return Plan.open(known[name])
    if Path(name).is_dir():
        return Plan.open(Path(name))
    matching = [directory for plan_id, directory in known.items() if plan_id.startswith(name)]
    if len(matching) == 1:
        return Plan.open(matching[0])
    if matching:
        raise CommandError(f"{name!r} is ambiguous: {', '.join(one.name for one in matching)}")
    raise CommandError(f"there is no plan {name!r} in {PLANS}; `fullsend plan status` lists the plans")
