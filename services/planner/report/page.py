"""The HTML page of a report, self-contained."""

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any, Final

import jinja2

from services.planner.cost.rates import money_text
from services.planner.report.findings import (
    Findings,
    Group,
    Summary,
    choose_axes,
    choose_values,
    label,
    sample_of,
    times,
)
from services.planner.report.paired import PairedDifference
from services.planner.report.plots import differences_svg, findings_svg, timeline_svg
from shared.documents import printable

TEMPLATE: Final = "report.html.j2"
MAX_GROUPS: Final = 500
MAX_FAILURES: Final = 200
MAX_MESSAGE: Final = 500


def page(found: Findings, axes: tuple[str, str] | None = None, values: Sequence[str] = ()) -> str:
    """Return the HTML page.

    Args:
        found: the findings.
        axes, values: what is drawn, as in `write_report`.

    Raises:
        PlanError: there is no such parameter or value.
    """
    over, shown = choose_axes(found.groups, axes), choose_values(found.groups, values, found.metrics.main)
    differences = _differences(found, shown)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "message": _message, "parameters": _parameters}
    environment.filters |= {"money": money_text, "label": label}
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    rendered = environment.from_string(text).render(
        found=found,
        over=over,
        values=shown,
        plots=findings_svg(found.groups, over, shown),
        timeline=timeline_svg(found.results),
        times=times(found),
        differences=differences,
        differences_plot=differences_svg(differences),
        rows=[_row(group, shown) for group in found.groups[:MAX_GROUPS]],
        failures=found.failures[:MAX_FAILURES],
        kinds=_kinds(found),
        datasets=any(group.case.dataset for group in found.groups),
        scenarios=any(group.case.scenario for group in found.groups),
    )
    # UTF-8 can't hold half a surrogate pair in a name or a message.
    return rendered.encode(errors="backslashreplace").decode() + "\n"


def _differences(found: Findings, values: Sequence[str]) -> list[PairedDifference]:
    """Return the differences of the values that are shown."""
    known = [] if found.paired is None else found.paired.differences
    return [one for one in known if one.value in values][:MAX_GROUPS]


def _row(group: Group, values: Sequence[str]) -> Mapping[str, Any]:
    samples = [sample_of(group, name) for name in values]
    return {"group": group, "summaries": [Summary.of(one) if one else None for one in samples]}


def _kinds(found: Findings) -> list[tuple[str, int]]:
    """Count the failures by type of error, the most frequent first."""
    counts: dict[str, int] = {}
    for one in found.failures:
        kind = one.error_type or str(one.task_status)
        counts[kind] = counts.get(kind, 0) + 1
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _number(value: float | None) -> str:
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def _message(text: str | None) -> str:
    text = text or ""
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 3] + "..."


def _parameters(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{printable(name)}={label(one)}" for name, one in values.items())
