"""The options of commands that estimate plans and limit what they use, and the words for what they used."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final

import typer
from pydantic import ValidationError

from services.cli.output import Cell, Column, CommandError
from services.operations import words
from services.planner.cost import Usage
from services.planner.cost.rates import money_text
from services.planner.models import Budget, RunManifest
from services.planner.plan.plan_usage import PlanUsage

EstimateOnly = Annotated[
    bool, typer.Option("--estimate", help="Print an estimate of runs, time and money; run nothing.")
]
Pilot = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="With `--estimate`: run N of the cases first, keep their results, and estimate by them; "
        "`fullsend plan resume` runs the others.",
    ),
]
RunSeconds = Annotated[
    float | None,
    typer.Option(
        min=0, metavar="SECONDS", help="With `--estimate`: how long a run takes, if you know it already."
    ),
]
BudgetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="NAME=NUMBER",
        help=f"Limit what the plan uses, instead of its own limit: {', '.join(Budget.model_fields)}. "
        "Can be repeated.",
    ),
]

CASE_COLUMNS: Final = [
    Column("CASE", right=True), Column("ATTEMPTS", right=True), Column("SECONDS", right=True),
    Column("CORE SECONDS", right=True), Column("MEMORY", right=True),
    Column("GPU SECONDS", right=True, drop=1), Column("MONEY", right=True),
    Column("TOOL'S COST", right=True, drop=2),
]  # fmt: skip


def with_budget(manifest: RunManifest, texts: Sequence[str] | None) -> RunManifest:
    """Return the manifest with these limits, each as `max_money=5`, in place of its own ones.

    Raises:
        CommandError: there is no such limit, or it is no number that makes sense.
    """
    limits: dict[str, Any] = manifest.budget.model_dump(exclude_defaults=True)
    for text in texts or ():
        name, sign, number = text.partition("=")
        name = name.strip()
        if not sign or name not in Budget.model_fields:
            known = ", ".join(Budget.model_fields)
            raise CommandError(f"--budget {text!r:.80}: expected NAME=NUMBER; the names are {known}")
        limits[name] = _number(text, number.strip().replace("_", ""))
    try:
        return manifest.model_copy(update={"budget": Budget.model_validate(limits)})
    except ValidationError as exc:
        first = exc.errors()[0]
        member = str(first["loc"][0])
        raise CommandError(f"--budget {member}={limits[member]}: {first['msg'].lower()}") from None


def _number(option: str, text: str) -> float:
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise CommandError(f"--budget {option!r:.80}: {text!r:.40} is not a number") from None


def usage_lines(used: PlanUsage) -> Iterator[tuple[str, str]]:
    """Yield what a plan has used: a name and a text for each line; nothing if nothing has begun."""
    total = used.total
    if not total.attempts:
        return
    parts = [
        f"{total.attempts:,} {'attempt' if total.attempts == 1 else 'attempts'}",
        f"{total.core_seconds:,.1f} core seconds",
    ]
    if total.peak_bytes is not None:
        parts.append(f"{words.size(total.peak_bytes)} of memory at most")
    if total.gpu_seconds:
        parts.append(f"{total.gpu_seconds:,.1f} GPU seconds")
    yield "used", ", ".join(parts)
    if total.money is not None and used.currency:
        around = f", {money_text(total.overhead_money, used.currency)} of it around runs"
        paid = money_text(total.money, used.currency) + (around if total.overhead_money else "")
        yield "cost", f"{paid}, by {'; '.join(used.sources)}"
    elif total.money is not None:
        yield "cost", "in several currencies, which are not added"
    if used.missing:
        yield "cost" if total.money is None else "no price", used.missing
    if used.tool_cost:
        yield "tool cost", f"{used.tool_cost:g}, in the unit of the tool"


def usage_json(used: PlanUsage) -> dict[str, Any]:
    """Return what a plan has used as JSON for other programs."""
    members = {
        "total": used.total.to_json(),
        "currency": used.currency or None,
        "prices": list(used.sources),
        "no_price": used.missing or None,
        "tool_cost": used.tool_cost,
    }
    if used.cases:
        members["cases"] = {
            str(index): {**one.to_json(), "tool_cost": used.tool_costs.get(index, 0.0)}
            for index, one in used.cases.items()
        }
    return members


def case_rows(used: PlanUsage) -> list[list[Cell]]:
    """Return a row for each case that has run, under `CASE_COLUMNS`."""
    return [_row(index, one, used) for index, one in used.cases.items()]


def _row(index: int, one: Usage, used: PlanUsage) -> list[Cell]:
    cost = used.tool_costs.get(index, 0.0)
    return [
        str(index),
        str(one.attempts),
        f"{one.seconds:.3f}",
        f"{one.core_seconds:.3f}",
        words.size(one.peak_bytes) if one.peak_bytes is not None else "",
        f"{one.gpu_seconds:.3f}" if one.gpu_seconds else "",
        money_text(one.money, used.currency) if one.money is not None and used.currency else "",
        f"{cost:g}" if cost else "",
    ]
