"""The plots of a page as one SVG, the same bytes for the same values."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from services.planner.metrics.bundle import DayMetrics, Ratio, Step

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "fullsend",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
}
STYLES = ("o-", "s--", "^-.", "d:")
"""Different, so that curves which coincide can both be seen."""
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def plots(days: Sequence[DayMetrics], steps: Sequence[Step]) -> str:
    """An `<svg>` element: money by day, ratios by day, concentration by day, money in use by payment."""
    with mpl.rc_context():
        mpl.rcdefaults()  # or the reader's own matplotlibrc would show
        mpl.rcParams.update(SETTINGS)
        figure = Figure(figsize=(11, 7), layout="constrained")
        (money, ratios), (concentration, use) = figure.subplots(2, 2)
        _draw_money(money, days)
        _draw_ratios(ratios, "Ratios", days, {"alpha": "alpha", "phi": "phi", "delta": "delta"})
        indexes = {"HHI+ of claims": "hhi_plus", "HHI of shortfalls": "hhi_debtors"}
        _draw_ratios(concentration, "Concentration", days, indexes)
        _draw_use(use, steps)
        return _svg(figure)


def _draw_money(axes: Axes, days: Sequence[DayMetrics]) -> None:
    curves = {"S": "s_cents", "Mbar": "mbar_cents", "M": "m_cents", "Mpeak": "mpeak_cents"}
    for (label, name), style in zip(curves.items(), STYLES, strict=False):
        axes.plot([day.day for day in days], [getattr(day, name) / 100 for day in days], style, label=label)
    _finish(axes, "Money", "day")


def _draw_ratios(axes: Axes, title: str, days: Sequence[DayMetrics], curves: Mapping[str, str]) -> None:
    for (label, name), style in zip(curves.items(), STYLES, strict=False):
        axes.plot(
            [day.day for day in days], [_number(getattr(day, name)) for day in days], style, label=label
        )
    axes.set_ylim(-0.05, 1.05)
    _finish(axes, title, "day")


def _draw_use(axes: Axes, steps: Sequence[Step]) -> None:
    axes.plot(range(1, len(steps) + 1), [step.in_use_cents / 100 for step in steps], "-", label="in use")
    _finish(axes, "Money in use within the days", "payment")


def _finish(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8)


def _number(value: Ratio) -> float:
    """Not a number where there is none: the curve has a gap there."""
    return float("nan") if value is None else float(value)


def _svg(figure: Figure) -> str:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=NO_METADATA)
    # What is before the element belongs to a file of its own, not into a page.
    text = file.getvalue().decode()
    return text[text.index("<svg") :]
