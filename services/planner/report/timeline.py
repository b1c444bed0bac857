"""When the cases of a plan ran, as one SVG."""

import heapq
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from services.planner.report.plots import drawing, svg
from services.planner.tasks import TaskResult, TaskStatus

COLORS: Final[Mapping[TaskStatus, str]] = {
    TaskStatus.SUCCEEDED: "tab:green",
    TaskStatus.FAILED: "tab:red",
    TaskStatus.TIMEOUT: "tab:orange",
    TaskStatus.ERROR: "tab:purple",
    TaskStatus.CANCELLED: "tab:gray",
}
MOST_SHAPES: Final = 1_000
"""Beyond it they are drawn as one picture, or the page would be slow."""


def timeline_svg(results: Sequence[TaskResult]) -> str:
    """A bar for the last attempt of each case, in as few rows as there is room; "" when none ran."""
    spans = [(one.started_at, one.finished_at, one.task_status) for one in results]
    ran = sorted(
        (begin, end, status) for begin, end, status in spans if begin is not None and end is not None
    )
    if not ran:
        return ""
    are_many = len(ran) > MOST_SHAPES
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
            # Not `barh`, which takes a millisecond for each bar.
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
        return svg(figure)


def _bar(row: int, begin: float, end: float) -> list[tuple[float, float]]:
    """The corners."""
    return [(begin, row - 0.45), (end, row - 0.45), (end, row + 0.45), (begin, row + 0.45)]


def lanes(spans: Sequence[tuple[datetime, datetime]]) -> list[int]:
    """A row for each span, in order of their beginnings, so that none overlaps another; the fewest rows."""
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
