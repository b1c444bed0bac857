"""`fullsend artifacts pull`."""

import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli import output
from services.cli.output import AsJson
from services.cli.plans.plan import PlanId, find_plan
from services.cli.records.artifacts_admin import counted
from services.operations import words
from services.planner.plan.artifact_pull import AT_ONCE, Pulled, problems_in, pull, wanted_of
from shared.errors import ArtifactError

PROBLEMS_SHOWN: Final = 5


def pull_plan(
    plan_id: PlanId,
    directory: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Where to; by default `artifacts` in the plan's directory."
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
    at_once: Annotated[int, typer.Option(min=1, metavar="N", help="Bring this many at once.")] = AT_ONCE,
    as_json: AsJson = False,
) -> None:
    """Bring all artifacts of a plan to this machine.

    DIR/cases/INDEX/NAME are the artifacts; `fullsend plan metrics --store DIR` reads them too. What is
    there is verified by its digest and not brought again: after an interruption, run the command again.
    The exit code is 1 if an artifact is missing.
    """
    found = find_plan(plan_id)
    directory = found.artifacts if directory is None else directory
    wanted = wanted_of(found.results(), store)
    pulled: list[Pulled] = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=output.console(stderr=True, soft_wrap=False), disable=not sys.stderr.isatty(),
    ) as bar:  # fmt: skip
        task = bar.add_task(found.plan_id, total=len(wanted))

        def advance(one: Pulled) -> None:
            pulled.append(one)
            bar.advance(task)

        try:
            pull(wanted, directory, at_once, advance)
        except ArtifactError as exc:
            raise output.CommandError(
                f"{len(pulled):,} of {counted(len(wanted), 'artifact')} are in {directory}; {exc}; "
                "run the command again to go on"
            ) from None
    _show(pulled, directory, as_json)


def _show(pulled: list[Pulled], directory: Path, as_json: bool) -> None:
    problems = problems_in(pulled)
    there = sum(one.was_there for one in pulled)
    size_bytes = sum(one.size_bytes for one in pulled)
    if as_json:
        fresh = len(pulled) - there - len(problems)
        members = {"directory": str(directory), "fetched": fresh, "there": there, "bytes": size_bytes}
        output.print_json({**members, "problems": problems})
    else:
        whole = counted(len(pulled) - len(problems), "artifact")
        output.say(output.one_line(f"{directory}: {whole}, {words.size(size_bytes)}, {there:,} were there"))
    for path, problem in list(problems.items())[:PROBLEMS_SHOWN]:
        output.print_error(f"{path}: {problem}")
    if problems:
        output.print_error(f"{counted(len(problems), 'artifact')} could not be brought")
        raise typer.Exit(1)
