"""`fullsend sweep`."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Final

import typer

from services.cli import output
from services.cli.output import AsJson, Column, CommandError
from services.cli.plans import plan, run_plan
from services.cli.plans.plan import Directory, Estimated, Where
from services.cli.plans.run_plan import BackendName
from services.planner.documents import manifest_of
from services.planner.evaluation import grouped
from services.planner.plan import Plan
from services.planner.results import at_hand
from services.planner.tasks import TaskResult, TaskStatus

TOOL: Final = "ring_simulation"
FOUND: Final = [
    Column("RUNS", right=True), Column("SETTLED", right=True), Column("DEFAULTS", right=True),
    Column("PAID", right=True),
]  # fmt: skip

app = typer.Typer()


@app.callback(invoke_without_command=True)
def sweep(context: typer.Context) -> None:
    """Run a tool over every combination of some values, as a plan."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def ring(
    kappa: Annotated[str, typer.Option(metavar="A,B,...", help="Money per debt.")] = "0.25,0.5,1,2",
    concentration: Annotated[str, typer.Option(metavar="A,B,...", help="How equal debts are.")] = "0.2,1,5",
    replicates: Annotated[int, typer.Option(min=1, metavar="N", help="Runs of each, seeds apart.")] = 5,
    mu: Annotated[str | None, typer.Option(metavar="A,B,...", help="How late debts are due.")] = None,
    n_agents: Annotated[str | None, typer.Option(metavar="A,B,...", help="How many agents.")] = None,
    days: Annotated[str | None, typer.Option(metavar="A,B,...", help="Until the last debt is due.")] = None,
    default_handling: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="`fail-fast` or `expel-agent`.")
    ] = None,
    backend: Where = BackendName.LOCAL,
    concurrency: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Runs at once; by default one for each CPU.")
    ] = None,
    directory: Directory = None,
    estimate: Estimated = False,
    as_json: AsJson = False,
) -> None:
    """Simulate rings of debtors over a grid: how much money, how unequal the debts, how late.

    See `tools/ring_simulation.py` for what the parameters mean. What is not given is left to the tool.
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
            "execution_policy": {"concurrency": concurrency or plan.places_at_once(backend)},
        },
    )
    if estimate:
        plan.tell_estimate(manifest, backend, directory, as_json)
        return
    carried = run_plan.carry_out(Plan.create(manifest, directory), backend)
    if carried.results and not as_json:
        _show(list(dimensions), carried.results)
    plan.finish(carried, as_json)


def _values(name: str, text: str) -> list[Any]:
    """A list as a manifest would have it: numbers are numbers, and whatever isn't is a text."""
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        raise CommandError(f"--{name.replace('_', '-')} {text!r} has no values; they are like 0.5,1,2")
    return [_value(part) for part in values]


def _value(text: str) -> Any:
    try:
        number = json.loads(text)
    except ValueError:
        return text
    return number if isinstance(number, int | float) and math.isfinite(number) else text


# -- what was found -------------------------------------------------------------------


def _show(names: Sequence[str], results: Sequence[TaskResult]) -> None:
    """A line for each combination: how many rings settled, and what their debtors paid."""
    shown = [name for name in names if len({str(one.case.parameters[name]) for one in results}) > 1]
    rows = [_row(shown, group) for group in grouped(results)]
    columns = [Column(name.upper(), right=True) for name in shown]
    output.table([*columns, *FOUND], rows, output.console())
    print()


def _row(names: Sequence[str], group: Sequence[TaskResult]) -> list[output.Cell]:
    """Of one combination: its values, and shares and means over the runs that succeeded."""
    found = [at_hand(one) for one in group if one.task_status is TaskStatus.SUCCEEDED]
    rings: list[Mapping[str, Any]] = [one for one in found if isinstance(one, Mapping)]
    means = ["", "", ""]
    if rings:
        settled = fmean(one["status"] == "settled" for one in rings)
        paid = fmean(
            (one["settled_cents"] + one["partially_settled_cents"]) / one["debt_cents"] for one in rings
        )
        means = [f"{settled:.0%}", f"{fmean(one['agents_defaulted'] for one in rings):.1f}", f"{paid:.0%}"]
    values = [str(group[0].case.parameters[name]) for name in names]
    return [*values, f"{len(rings)}/{len(group)}", *means]
