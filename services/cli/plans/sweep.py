"""`fullsend sweep`: `ring`, and its two arms in `comparison` and `balanced`."""

import inspect
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Annotated, Any, Final

import typer

from services.cli import output
from services.cli.cloud.modal_settings import modal_options
from services.cli.output import AsJson, Column, CommandError
from services.cli.plans import metrics_table, plan, run_plan
from services.cli.plans.cost_options import BudgetOption, EstimateOnly, Pilot, RunSeconds, with_budget
from services.cli.plans.estimating import Basis, print_estimate
from services.cli.plans.plan import BackendOption, DaskScheduler, Directory
from services.cli.plans.run_plan import MODAL, PlanRun
from services.planner.backends import BACKENDS, DEFAULT_BACKEND
from services.planner.documents import manifest_of
from services.planner.evaluation import group_replicates
from services.planner.models import RunManifest
from services.planner.plan import Plan
from services.planner.report import PairedComparison
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

DIFFERENCE_COLUMNS: Final = [
    Column("VALUE"), Column("PAIRS", right=True), Column("CONTROL", right=True),
    Column("TREATMENT", right=True), Column("DIFFERENCE", right=True), Column("95% INTERVAL", right=True),
]  # fmt: skip
RING_VALUES: Final = ("agents_defaulted",)
"""What is shown of each pair besides the metrics."""

app = typer.Typer()


@app.callback(invoke_without_command=True)
def sweep(context: typer.Context) -> None:
    """Run a tool for every combination of parameter values."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _listed(help_text: str) -> Any:
    return typer.Option(metavar="A,B,...", help=help_text)


def _options(
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
    budget: BudgetOption = None,
    estimate: EstimateOnly = False,
    pilot: Pilot = None,
    run_seconds: RunSeconds = None,
    as_json: AsJson = False,
) -> None:
    """Declare the options of all commands here."""


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of all commands here, besides its own; it gets them by name."""
    own = inspect.signature(command).parameters.values()
    parameters = [one for one in own if one.kind is not inspect.Parameter.VAR_KEYWORD]
    parameters += inspect.signature(_options).parameters.values()
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    return command


@app.command()
@_with_options
def ring(**given: Any) -> None:
    """Simulate rings of debtors, as a plan.

    `tools/ring_simulation.py` explains the parameters. The tool's defaults apply to parameters that are
    not given.
    """
    _run("ring", given)


Parameter = Annotated[
    str, typer.Option(metavar="NAME", help="The parameter in which the two runs of a pair differ.")
]
Control = Annotated[str, typer.Option(metavar="VALUE", help="Its value in the control arm.")]
Treatment = Annotated[str, typer.Option(metavar="VALUE", help="Its value in the treatment arm.")]


@app.command()
@_with_options
def comparison(
    parameter: Parameter = "default_handling",
    control: Control = "fail-fast",
    treatment: Treatment = "expel-agent",
    **given: Any,
) -> None:
    """Compare rings in pairs that differ in one parameter.

    The rings of a pair share their random numbers.

    Prints, for each combination of the other parameters, the mean difference (treatment minus control) of the
    pairs with its 95% interval.
    """
    _run("comparison", given, _compared(parameter, control, treatment))


@app.command()
@_with_options
def balanced(
    parameter: Parameter = "default_handling",
    control: Control = "fail-fast",
    treatment: Treatment = "expel-agent",
    **given: Any,
) -> None:
    """Compare pairs of rings with equal balance sheets.

    As `comparison`, but a pair counts only if both runs begin with the same cash and the same debts, so that
    the difference is that of what happens afterwards.
    """
    _run("balanced", given, {**_compared(parameter, control, treatment), "balanced": True})


def _compared(parameter: str, control: str, treatment: str) -> Mapping[str, Any]:
    """Return the member `comparison` of a manifest."""
    return {"parameter": parameter, "control": _value(control), "treatment": _value(treatment)}


LISTED: Final = (
    "kappa", "concentration", "default_handling", "mu", "n_agents", "days", "total_debt_cents", "liquidity",
    "liquidity_agent", "quiet_days", "max_days", "check_invariants", "show_events",
)  # fmt: skip
"""The options that give a list of values to take in turn."""

WHOLE: Final = ("liquidity_vector", "show_balances")
"""The options that give a list which is one value."""


def _run(name: str, given: Mapping[str, Any], compared: Mapping[str, Any] | None = None) -> None:
    """Run or estimate the plan that the options describe, and print its results."""
    backend, concurrency = _cloud(
        *(given[one] for one in ("backend", "concurrency", "cloud", "cloud_parallel"))
    )
    given = {**given, "backend": backend, "concurrency": concurrency}
    basis = Basis(given["pilot"], given["run_seconds"])
    basis.check(given["estimate"])
    manifest = with_budget(_manifest(name, given, compared), given["budget"])
    target = plan.target_of(given["backend"], given["dask_scheduler"])
    if given["estimate"]:
        print_estimate(manifest, target, given["directory"], basis, given["as_json"])
        return
    assert manifest.sweep is not None, "the commands here are sweeps"
    plan.check_reachable(target)
    done = run_plan.execute(Plan.create(manifest, given["directory"]), target)
    if done.results and not given["as_json"]:
        if done.paired is None:
            _show(list(manifest.sweep.dimensions), done)
        elif done.paired.differences:
            _show_differences(done.paired, done.metrics.main)
    plan.finish(done, given["as_json"])


def _manifest(name: str, given: Mapping[str, Any], compared: Mapping[str, Any] | None) -> RunManifest:
    dimensions = {one: _values(one, given[one]) for one in LISTED if given[one] is not None}
    parameters: dict[str, Any] = {one: _values(one, given[one]) for one in WHOLE if given[one] is not None}
    if given["t_account"]:
        parameters["t_account"] = True
    named = given["common_random_numbers"]
    common = [] if named is None else _values("common_random_numbers", named)
    if compared is not None:
        _check_compared(compared["parameter"], given)
        dimensions.pop(compared["parameter"], None)
        dimensions[compared["parameter"]] = [compared["control"], compared["treatment"]]
        common = [*common, compared["parameter"]]
    sweep = {
        "dimensions": dimensions,
        "parameters": parameters,
        "replicates": given["replicates"],
        "seeds": {"base": given["seed"], "common": common},
    }
    concurrency = given["concurrency"] or _default_concurrency(given["backend"])
    return manifest_of(
        "the sweep",
        {
            "workflow_id": name,
            "tool": TOOL,
            "sweep": sweep,
            "metrics": None if given["metrics"] == "none" else given["metrics"],
            "comparison": compared,
            "execution_policy": {"concurrency": concurrency},
        },
    )


def _check_compared(name: str, given: Mapping[str, Any]) -> None:
    """Raise `CommandError` if the parameter is none of the tool, or also has values of its own."""
    if name not in LISTED:
        raise CommandError(f"--parameter {name!r:.80} is not one of {', '.join(LISTED)}")
    if given[name] not in (None, inspect.signature(_options).parameters[name].default):
        raise CommandError(
            f"--{name.replace('_', '-')} is compared: its values are those of --control and --treatment"
        )


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


def _show_differences(found: PairedComparison, main: Sequence[str]) -> None:
    """Print a row for each combination and value: the arms, and the difference with its interval."""
    values = [f"metric.{name}" for name in main] or ["settled_cents", "written_off_cents"]
    shown = [one for one in found.differences if one.value in (*values, *RING_VALUES)]
    known = [one.parameters for one in shown if one.parameters is not None]
    names = list(dict.fromkeys(name for parameters in known for name in parameters))
    varying = [name for name in names if len({str(one.get(name)) for one in known}) > 1]
    rows = [
        [
            *("all" if one.parameters is None else str(one.parameters.get(name, "")) for name in varying),
            one.value.removeprefix("metric."),
            str(one.pairs),
            f"{one.control:.4g}",
            f"{one.treatment:.4g}",
            f"{one.difference:.4g}",
            "" if one.low is None else f"{one.low:.4g} to {one.high:.4g}",
        ]
        for one in shown
    ]
    columns = [*(Column(name.upper(), right=True) for name in varying), *DIFFERENCE_COLUMNS]
    output.table(columns, rows, output.console())
    output.say()
