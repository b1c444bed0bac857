"""`fullsend sweep`."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Final

import typer

from services.cli import output
from services.cli.output import AsJson, Column, CommandError
from services.cli.plans import metrics_table, plan, run_plan
from services.cli.plans.plan import BackendOption, Directory, EstimateOnly
from services.cli.plans.run_plan import PlanRun
from services.planner.backends import BACKENDS, DEFAULT_BACKEND
from services.planner.documents import manifest_of
from services.planner.evaluation import group_replicates
from services.planner.plan import Plan
from services.planner.results import inline_value
from services.planner.tasks import TaskResult, TaskStatus

TOOL: Final = "ring_simulation"
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


@app.command()
def ring(
    kappa: Annotated[str, typer.Option(metavar="A,B,...", help="Money per debt.")] = "0.25,0.5,1,2",
    concentration: Annotated[str, typer.Option(metavar="A,B,...", help="Equality of debts.")] = "0.2,1,5",
    replicates: Annotated[
        int, typer.Option(min=1, metavar="N", help="Runs of each combination, with different seeds.")
    ] = 5,
    mu: Annotated[str | None, typer.Option(metavar="A,B,...", help="Lateness of due dates.")] = None,
    n_agents: Annotated[str | None, typer.Option(metavar="A,B,...", help="Number of agents.")] = None,
    days: Annotated[str | None, typer.Option(metavar="A,B,...", help="Days until the last due date.")] = None,
    default_handling: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="`fail-fast` or `expel-agent`.")
    ] = None,
    metrics: Annotated[
        str, typer.Option(metavar="NAME", help="Compute these metrics: `ring`, `module:Class` or `none`.")
    ] = "ring",
    backend: BackendOption = DEFAULT_BACKEND,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Runs at once; by default one for each CPU, on the fleet 1,000."
        ),
    ] = None,
    directory: Directory = None,
    estimate: EstimateOnly = False,
    as_json: AsJson = False,
) -> None:
    """Simulate rings of debtors, as a plan.

    `tools/ring_simulation.py` explains the parameters. The tool's defaults apply to parameters that are
    not given.
    """
    given = {
        "kappa": kappa,
        "concentration": concentration,
        "mu": mu,
        "n_agents": n_agents,
        "days": days,
        "default_handling": default_handling,
    }
    dimensions = {name: _values(name, text) for name, text in given.items() if text is not None}
    manifest = manifest_of(
        "the sweep",
        {
            "workflow_id": "ring",
            "tool": TOOL,
            "sweep": {"dimensions": dimensions, "replicates": replicates},
            "metrics": None if metrics == "none" else metrics,
            "execution_policy": {"concurrency": concurrency or _default_concurrency(backend)},
        },
    )
    if estimate:
        plan.print_estimate(manifest, backend, directory, as_json)
        return
    done = run_plan.execute(Plan.create(manifest, directory), backend)
    if done.results and not as_json:
        _show(list(dimensions), done)
    plan.finish(done, as_json)


def _default_concurrency(backend: str) -> int:
    return BACKENDS[backend].default_concurrency or len(os.sched_getaffinity(0))


def _values(name: str, text: str) -> list[Any]:
    """Parse the values of a dimension: finite numbers, and text."""
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        raise CommandError(f"--{name.replace('_', '-')} {text!r} has no values; expected a list like 0.5,1,2")
    return [_value(part) for part in values]


def _value(text: str) -> Any:
    try:
        number = json.loads(text)
    except ValueError:
        return text
    return number if isinstance(number, int | float) and math.isfinite(number) else text


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
    print()


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
