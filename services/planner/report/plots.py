"""The plots of a report as SVG: maps, distributions and the timeline; equal values make equal bytes."""

import heapq
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from services.planner.metrics.outputs import drawing, svg_element
from services.planner.report.findings import (
    MAX_DRAWN,
    METRIC,
    Group,
    is_number,
    key_of,
    label,
    ordered,
    sample_of,
)
from services.planner.report.paired import PairedDifference, mean_interval
from services.planner.tasks import TaskResult, TaskStatus

MAX_TICKS: Final = 25
MAX_GROUPS: Final = 40
MAX_LINES: Final = 8
MAX_LABELLED_CELLS: Final = 100
SPARSE: Final = 4
"""A map with more than so many cells for each point is drawn as points."""


def findings_svg(groups: Sequence[Group], axes: Sequence[str], values: Sequence[str]) -> str:
    """Draw for each value a map over the parameters and its distribution in each group.

    Returns:
        An `<svg>` element; "" without values.
    """
    if not values:
        return ""
    with drawing():
        figure = Figure(figsize=(11, 3.6 * len(values)), layout="constrained")
        for (left, right), name in zip(figure.subplots(len(values), 2, squeeze=False), values, strict=True):
            _draw_map(figure, left, groups, axes, name)
            if axes and name.startswith(METRIC):
                _draw_intervals(right, groups, axes, name)
            else:
                _draw_distribution(right, groups, name)
        return svg_element(figure)


def differences_svg(differences: Sequence[PairedDifference]) -> str:
    """Draw for each value the mean differences of the pairs and their intervals, combination by combination.

    Returns:
        An `<svg>` element; "" without differences that have an interval.
    """
    shown: dict[str, list[PairedDifference]] = {}
    for one in differences:
        if one.low is not None and abs(one.difference) <= MAX_DRAWN:
            shown.setdefault(one.value, []).append(one)
    if not shown:
        return ""
    with drawing():
        rows = min(MAX_TICKS, max(map(len, shown.values())))
        figure = Figure(figsize=(11, 1.6 + 0.3 * rows), layout="constrained")
        figure.suptitle("treatment minus control: mean difference of the pairs, 95% interval")
        columns, varying = figure.subplots(1, len(shown), squeeze=False)[0], _varying(differences)
        for axes, (value, several) in zip(columns, shown.items(), strict=True):
            _draw_differences(axes, several[-MAX_TICKS:], varying)
            axes.set_title(label(value.removeprefix(METRIC)))
        return svg_element(figure)


def _varying(differences: Sequence[PairedDifference]) -> list[str]:
    """Return the names of the parameters in which combinations differ."""
    known = [one.parameters for one in differences if one.parameters is not None]
    names = dict.fromkeys(name for parameters in known for name in parameters)
    return [name for name in names if len({key_of(one.get(name)) for one in known}) > 1]


def _draw_differences(axes: Axes, several: Sequence[PairedDifference], varying: Sequence[str]) -> None:
    places = [-place for place in range(len(several))]
    margins = [one.difference - (one.low or 0.0) for one in several]
    axes.errorbar([one.difference for one in several], places, xerr=margins, fmt="o", markersize=4, capsize=3)
    axes.axvline(0, color="grey", linewidth=0.8)
    names = [
        "all pairs"
        if one.parameters is None
        else ", ".join(label(one.parameters.get(name)) for name in varying)
        for one in several
    ]
    axes.set_yticks(places, names)


def _interval(sample: Sequence[float]) -> tuple[float, float]:
    """Return the mean, and how far its interval extends to either side: nowhere for a single number."""
    mean, _, margin = mean_interval(sample)
    return mean, margin or 0.0


# -- over parameters ------------------------------------------------------------------


def _draw_map(figure: Figure, axes: Axes, groups: Sequence[Group], names: Sequence[str], value: str) -> None:
    points = [(group, sample) for group in groups if (sample := sample_of(group, value))]
    points = [one for one in points if all(name in one[0].parameters for name in names)]
    axes.set_title(f"mean of {label(value)}")
    match list(names):
        case [] if points:
            axes.set_title(f"{label(value)}: no parameter varies")
            axes.axis("off")
        case [name] if points:
            _draw_line(axes, points, name)
        case [x, y] if points:
            means = [
                (group.parameters[x], group.parameters[y], float(np.mean(sample))) for group, sample in points
            ]
            _draw_plane(figure, axes, means)
            axes.set_ylabel(label(y))
            axes.set_xlabel(label(x))
        case _:
            axes.axis("off")


def _draw_line(axes: Axes, points: Sequence[tuple[Group, list[float]]], name: str) -> None:
    """Draw mean, minimum and maximum for each value of one parameter."""
    values = ordered([group.parameters[name] for group, _ in points])
    samples: dict[bytes, list[float]] = {key_of(one): [] for one in values}
    for group, sample in points:
        samples[key_of(group.parameters[name])] += sample
    places = values if all(map(is_number, values)) else list(range(len(values)))
    found = [samples[key_of(one)] for one in values]
    means = [float(np.mean(one)) for one in found]
    axes.fill_between(
        places, [min(one) for one in found], [max(one) for one in found], alpha=0.2, linewidth=0
    )
    axes.plot(places, means, "o-")
    axes.set_xlabel(label(name))
    if places is not values:
        _ticks(axes.set_xticks, values, 0.0)


def _draw_plane(figure: Figure, axes: Axes, points: Sequence[tuple[Any, Any, float]]) -> None:
    xs, ys = ordered([x for x, _, _ in points]), ordered([y for _, y, _ in points])
    is_sparse = len(xs) * len(ys) > SPARSE * len(points)
    if is_sparse and all(map(is_number, [*xs, *ys])):
        found_x, found_y, found_z = zip(*points, strict=True)
        dots = axes.scatter(found_x, found_y, c=found_z, s=14)
        figure.colorbar(dots, ax=axes)
        return
    cells = _cells(points, xs, ys)
    mesh = axes.pcolormesh(cells, edgecolors="white", linewidth=0.5, rasterized=cells.size > 2_500)
    figure.colorbar(mesh, ax=axes)
    _ticks(axes.set_xticks, xs, 0.5)
    _ticks(axes.set_yticks, ys, 0.5)
    if cells.size <= MAX_LABELLED_CELLS:
        _write(axes, cells)


def _cells(points: Sequence[tuple[Any, Any, float]], xs: Sequence[Any], ys: Sequence[Any]) -> Any:
    """Return the mean in each cell, masked where there is no point."""
    columns = {key_of(x): number for number, x in enumerate(xs)}
    rows = {key_of(y): number for number, y in enumerate(ys)}
    found: dict[tuple[int, int], list[float]] = {}
    for x, y, z in points:
        found.setdefault((rows[key_of(y)], columns[key_of(x)]), []).append(z)
    cells = np.full((len(ys), len(xs)), np.nan)
    for place, sample in found.items():
        cells[place] = np.mean(sample)
    return np.ma.masked_invalid(cells)


def _write(axes: Axes, cells: Any) -> None:
    middle = (float(cells.min()) + float(cells.max())) / 2
    for (row, column), cell in np.ndenumerate(cells):
        if cell is not np.ma.masked:
            color = "black" if cell > middle else "white"
            axes.text(
                column + 0.5, row + 0.5, f"{cell:.3g}", ha="center", va="center", color=color, fontsize=8
            )


def _ticks(place: Callable[..., Any], values: Sequence[Any], shift: float) -> None:
    """Label the positions, or every n-th one if there are too many."""
    step = -(-len(values) // MAX_TICKS)
    shown = range(0, len(values), step)
    place([number + shift for number in shown], [label(values[number]) for number in shown])


# -- lines with intervals -------------------------------------------------------------


def _draw_intervals(axes: Axes, groups: Sequence[Group], names: Sequence[str], value: str) -> None:
    """Draw means and 95% intervals over one parameter, a line for each value of the other."""
    name, *others = names
    samples: dict[bytes, dict[bytes, list[float]]] = {}
    known: dict[bytes, Any] = {}
    for group in groups:
        place, line = group.parameters.get(name), group.parameters.get(others[0]) if others else None
        known |= {key_of(place): place, key_of(line): line}
        samples.setdefault(key_of(line), {}).setdefault(key_of(place), []).extend(sample_of(group, value))
    places = ordered([known[place] for found in samples.values() for place in found])
    are_numbers = all(map(is_number, places))
    for line in [key_of(one) for one in ordered([known[key] for key in samples])][:MAX_LINES]:
        found = [(at, samples[line].get(key_of(place), [])) for at, place in enumerate(places)]
        shown = [(places[at] if are_numbers else at, *_interval(one)) for at, one in found if one]
        if shown:
            xs, means, margins = zip(*shown, strict=True)
            axes.errorbar(
                xs, means, yerr=margins, fmt="o-", markersize=4, capsize=3, label=label(known[line])
            )
    axes.set_title(f"{label(value)}: mean, 95% interval")
    axes.set_xlabel(label(name))
    if others:
        axes.legend(title=label(others[0]), fontsize=8)
    if not are_numbers:
        _ticks(axes.set_xticks, places, 0.0)


# -- over replicates ------------------------------------------------------------------


def _draw_distribution(axes: Axes, groups: Sequence[Group], value: str) -> None:
    found = [(group.number, sample) for group in groups if (sample := sample_of(group, value))]
    axes.set_title(f"{label(value)} over replicates")
    if not found:
        axes.axis("off")
    elif 1 < len(found) <= MAX_GROUPS:
        _draw_boxes(axes, found)
        axes.set_xlabel("case, by its number in the table")
        axes.set_ylabel(label(value))
    else:
        axes.hist([one for _, sample in found for one in sample], bins=30)
        axes.set_xlabel(label(value))
        axes.set_ylabel("replicates")


def _draw_boxes(axes: Axes, found: Sequence[tuple[int, list[float]]]) -> None:
    places = range(1, len(found) + 1)
    axes.boxplot([sample for _, sample in found], positions=list(places), widths=0.6, showfliers=False)
    for place, (_, sample) in zip(places, found, strict=True):
        axes.plot([place] * len(sample), sample, ".", color="tab:blue", alpha=0.6, markersize=5)
    _ticks(lambda at, labels: axes.set_xticks(at, labels), [number for number, _ in found], 1.0)


COLORS: Final[Mapping[TaskStatus, str]] = {
    TaskStatus.SUCCEEDED: "tab:green",
    TaskStatus.FAILED: "tab:red",
    TaskStatus.TIMEOUT: "tab:orange",
    TaskStatus.ERROR: "tab:purple",
    TaskStatus.CANCELLED: "tab:gray",
}
MAX_SHAPES: Final = 1_000
"""More bars are drawn as one picture, or the page would be slow."""


def timeline_svg(results: Sequence[TaskResult]) -> str:
    """Draw a bar for the last attempt of each case, in as few rows as possible.

    Returns:
        An `<svg>` element; "" if no case ran.
    """
    spans = [(one.started_at, one.finished_at, one.task_status) for one in results]
    ran = sorted(
        (begin, end, status) for begin, end, status in spans if begin is not None and end is not None
    )
    if not ran:
        return ""
    are_many = len(ran) > MAX_SHAPES
    rows, first = lanes([(begin, end) for begin, end, _ in ran]), ran[0][0]
    with drawing():
        figure = Figure(figsize=(11, min(6.0, 1.4 + 0.2 * (max(rows) + 1))), layout="constrained")
        axes = figure.subplots()
        for status, color in COLORS.items():
            chosen = [
                _bar(row, (begin - first).total_seconds(), (end - first).total_seconds())
                for row, (begin, end, one) in zip(rows, ran, strict=True)
                if one is status
            ]
            # `barh` would take a millisecond for each bar.
            bars = PolyCollection(
                chosen, facecolor=color, edgecolor="white", linewidth=0 if are_many else 0.3
            )
            bars.set_rasterized(are_many)
            axes.add_collection(bars)
        axes.autoscale_view()
        present = {status for _, _, status in ran}
        axes.legend(
            handles=[Patch(color=color, label=str(one)) for one, color in COLORS.items() if one in present],
            loc="upper right",
            fontsize=8,
        )
        axes.set_xlabel("seconds since the first case began")
        axes.set_ylabel("at once")
        axes.set_yticks([])
        return svg_element(figure)


def _bar(row: int, begin: float, end: float) -> list[tuple[float, float]]:
    """Return the corners of a bar."""
    return [(begin, row - 0.45), (end, row - 0.45), (end, row + 0.45), (begin, row + 0.45)]


def lanes(spans: Sequence[tuple[datetime, datetime]]) -> list[int]:
    """Return a row for each span, so that none overlaps another, in the fewest rows.

    Args:
        spans: (begin, end), sorted by begin.
    """
    rows: list[int] = []
    free: list[int] = []
    taken: list[tuple[datetime, int]] = []
    for begin, end in spans:
        while taken and taken[0][0] <= begin:
            heapq.heappush(free, heapq.heappop(taken)[1])
        row = heapq.heappop(free) if free else len(taken)
        heapq.heappush(taken, (end, row))
        rows.append(row)
    return rows
