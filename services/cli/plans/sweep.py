"""`fullsend sweep`."""

import math
import os
import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Final

import typer

from services.cli import output
from services.cli.cloud.modal_settings import modal_options
from services.cli.output import AsJson, Column, CommandError
from services.cli.plans import metrics_table, plan, run_plan
from services.cli.plans.plan import BackendOption, DaskScheduler, Directory, EstimateOnly
from services.cli.plans.run_plan import MODAL, PlanRun
from services.planner.backends import BACKENDS, DEFAULT_BACKEND
from services.planner.documents import manifest_of
from services.planner.evaluation import group_replicates
from services.planner.plan import Plan
from services.planner.results import inline_value
from services.planner.tasks import TaskResult, TaskStatus

TOOL: Final = "ring_simulation"
_WHOLE: Final = re.compile(r"[+-]?(0|[1-9]\d*)", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
"""A number with a leading zero, such as 0123, is a text, as in YAML."""
RESULT_COLUMNS: Final = [
    Column("RUNS", right=True), Column("SETTLED", right=True), Column("DEFAULTS", right=True),
    Column("PAID", right=True),
]  # fmt: skip

app = typer.Typer()


@app.callback(invoke_without_command=True)
def sweep(context: typer.Context) -> None:
    """Run a tool for every combination of parameter values."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _listed(help_text: str) -> Any:
    return typer.Option(metavar="A,B,...", help=help_text)


@app.command()
def ring(
    kappa: Annotated[str, _listed("Money per debt.")] = "0.25,0.5,1,2",
    concentration: Annotated[str, _listed("Equality of debts.")] = "0.2,1,5",
    replicates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of each combination, with different seeds.")
    ] = 5,
    default_handling: Annotated[
        str, _listed("After a default: `expel-agent` goes on without the agent, `fail-fast` ends the run.")
    ] = "expel-agent",
    mu: Annotated[str | None, _listed("Lateness of due dates.")] = None,
    n_agents: Annotated[str | None, _listed("Number of agents.")] = None,
    days: Annotated[str | None, _listed("Days until the last due date.")] = None,
    total_debt_cents: Annotated[str | None, _listed("Sum of all debts.")] = None,
    liquidity: Annotated[str | None, _listed("Who gets the money: `uniform`, `single_at`, `vector`.")] = None,
    liquidity_agent: Annotated[str | None, _listed("The agent with `single_at`, such as H1.")] = None,
    liquidity_vector: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="With `vector`, the share of each agent.")
    ] = None,
    quiet_days: Annotated[str | None, _listed("Days without payments before the end.")] = None,
    max_days: Annotated[str | None, _listed("End of a run in any case.")] = None,
    check_invariants: Annotated[str | None, _listed("Checks of the money: `daily`, `setup`, `none`.")] = None,
    show_events: Annotated[
        str | None, _listed("Events on each run's page: `detailed`, `summary`, `none`.")
    ] = None,
    show_balances: Annotated[
        str | None, typer.Option(metavar="H1,H2,...", help="Agents whose balances are on each run's page.")
    ] = None,
    t_account: Annotated[bool, typer.Option(help="Show final accounts on each run's page.")] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Give all runs other random numbers, by seeds computed from this one."
        ),
    ] = None,
    common_random_numbers: Annotated[
        str | None,
        typer.Option(
            metavar="PARAMETER,...",
            help="Give runs that differ only in these parameters the same seed, for each replicate.",
        ),
    ] = None,
    metrics: Annotated[
        str, typer.Option(metavar="NAME", help="Compute these metrics: `ring`, `module:Class` or `none`.")
    ] = "ring",
    backend: BackendOption = DEFAULT_BACKEND,
    dask_scheduler: DaskScheduler = None,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Runs at once; by default one for each CPU, on fleet and dask 1,000, on modal "
            "MODAL_MAX_PARALLEL or 50.",
        ),
    ] = None,
    cloud: Annotated[bool, typer.Option("--cloud", help="The same as `--backend modal`.")] = False,
    cloud_parallel: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With `--cloud`: the same as `--concurrency N`.")
    ] = None,
    directory: Directory = None,
    estimate: EstimateOnly = False,
    as_json: AsJson = False,
) -> None:
    """Simulate rings of debtors, as a plan.

    `tools/ring_simulation.py` explains the parameters. The tool's defaults apply to parameters that are
    not given.
    """
    backend, concurrency = _cloud(backend, concurrency, cloud, cloud_parallel)
    given = {
        "kappa": kappa,
        "concentration": concentration,
        "default_handling": default_handling,
        "mu": mu,
        "n_agents": n_agents,
        "days": days,
        "total_debt_cents": total_debt_cents,
        "liquidity": liquidity,
        "liquidity_agent": liquidity_agent,
        "quiet_days": quiet_days,
        "max_days": max_days,
        "check_invariants": check_invariants,
        "show_events": show_events,
    }
    lists = {"liquidity_vector": liquidity_vector, "show_balances": show_balances}
    dimensions = {name: _values(name, text) for name, text in given.items() if text is not None}
    parameters = {name: _values(name, text) for name, text in lists.items() if text is not None}
    common = [] if common_random_numbers is None else _values("common_random_numbers", common_random_numbers)
    manifest = manifest_of(
        "the sweep",
        {
            "workflow_id": "ring",
            "tool": TOOL,
            "sweep": {
                "dimensions": dimensions,
                "parameters": {**parameters, **({"t_account": True} if t_account else {})},
                "replicates": replicates,
                "seeds": {"base": seed, "common": common},
            },
            "metrics": None if metrics == "none" else metrics,
            "execution_policy": {"concurrency": concurrency or _default_concurrency(backend)},
        },
    )
    target = plan.target_of(backend, dask_scheduler)
    if estimate:
        plan.print_estimate(manifest, target, directory, as_json)
        return
    plan.check_reachable(target)
    done = run_plan.execute(Plan.create(manifest, directory), target)
    if done.results and not as_json:
        _show(list(dimensions), done)
    plan.finish(done, as_json)


def _cloud(
    backend: str, concurrency: int | None, cloud: bool, cloud_parallel: int | None
) -> tuple[str, int | None]:
    """Return backend and concurrency.  Raises `CommandError` if the options contradict each other."""
    if cloud and backend not in (DEFAULT_BACKEND, MODAL):
        raise CommandError(f"--cloud is `--backend {MODAL}`, not {backend}")
    if cloud_parallel is not None and not (cloud or backend == MODAL):
        raise CommandError("--cloud-parallel is for `--cloud`")
    if cloud_parallel is not None and concurrency is not None:
        raise CommandError("--cloud-parallel is --concurrency; give one of them")
    return MODAL if cloud else backend, concurrency if cloud_parallel is None else cloud_parallel


def _default_concurrency(backend: str) -> int:
    if backend == MODAL and (limit := modal_options().max_parallel):
        return limit
    return BACKENDS[backend].default_concurrency or len(os.sched_getaffinity(0))


def _values(name: str, text: str) -> list[Any]:
    """Parse the values of a dimension: finite numbers, and text."""
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        raise CommandError(f"--{name.replace('_', '-')} {text!r} has no values; expected a list like 0.5,1,2")
    return [_value(part) for part in values]


def _value(text: str) -> Any:
    """Return a finite number as people write it (2, -0.5, .25, 5., 1e-3), true, false, or the text."""
    if not _NUMBER.fullmatch(text):
        return {"true": True, "false": False}.get(text, text)
    number = float(text)
    if _WHOLE.fullmatch(text):
        return int(text)
    return number if math.isfinite(number) else text


# -- results --------------------------------------------------------------------------


def _show(names: Sequence[str], done: PlanRun) -> None:
    """Print a row for each combination: how many rings settled, what share was paid, and the metrics."""
    shown = [name for name in names if name in metrics_table.varying_parameters(done.results)]
    rows = [
        [*_row(shown, group), *metrics_table.metric_cells(group, done.metrics)]
        for group in group_replicates(done.results)
    ]
    columns = [Column(name.upper(), right=True) for name in shown]
    columns += [*RESULT_COLUMNS, *metrics_table.metric_columns(done.metrics)]
    output.table(columns, rows, output.console())
    output.say()


def _row(names: Sequence[str], group: Sequence[TaskResult]) -> list[output.Cell]:
    """Return the values of one combination, and means over its runs that succeeded."""
    found = [inline_value(one) for one in group if one.task_status is TaskStatus.SUCCEEDED]
    rings: list[Mapping[str, Any]] = [one for one in found if isinstance(one, Mapping)]
    means = ["", "", ""]
    if rings:
        settled = fmean(one["status"] == "settled" for one in rings)
        paid = fmean(
            (one["settled_cents"] + one["partially_settled_cents"]) / one["debt_cents"] for one in rings
        )
        means = [f"{settled:.0%}", f"{fmean(one['agents_defaulted'] for one in rings):.1f}", f"{paid:.0%}"]
    return [*metrics_table.parameter_cells(names, group), f"{len(rings)}/{len(group)}", *means]
