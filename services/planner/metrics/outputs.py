"""Writes the metrics of a run as files: CSV, JSON and one HTML page with plots.

The same metrics make the same bytes, whatever the clock, locale or process.
"""

import csv
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, Final

import jinja2
import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from services.planner.metrics.computer import (
    DayMetrics,
    DebtorShare,
    MetricsBundle,
    Ratio,
    Step,
    members,
    plain,
)

TEMPLATE = "metrics.html.j2"


def write_outputs(bundle: MetricsBundle, directory: Path) -> dict[str, Path]:
    """Write `metrics.csv`, `metrics.json`, `debtor_shares.csv`, `intraday.csv` and `metrics.html`.

    Creates the directory if it is missing, and replaces the files in it.  In the CSV and JSON files,
    money is in whole cents, and an undefined ratio is empty (in JSON, null).

    Returns:
        The paths by file name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    texts = {
        "metrics.csv": table(DayMetrics, bundle.day_metrics),
        "metrics.json": document(bundle),
        "debtor_shares.csv": table(DebtorShare, bundle.debtor_shares),
        "intraday.csv": table(Step, bundle.intraday),
        "metrics.html": page(bundle),
    }
    paths = {name: directory / name for name in texts}
    for name, text in texts.items():
        paths[name].write_bytes(text.encode())
    return paths


def table(kind: type[Any], rows: Sequence[Any]) -> str:
    """Return CSV with a column for each field of the dataclass `kind`."""
    names = [one.name for one in fields(kind)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([plain(getattr(row, name)) for name in names] for row in rows)
    return text.getvalue()


def document(bundle: MetricsBundle) -> str:
    """Return the days and the totals as JSON."""
    days = [members(day) for day in bundle.day_metrics]
    return json.dumps({"totals": members(bundle.totals), "days": days}, indent=2, allow_nan=False) + "\n"


def page(bundle: MetricsBundle) -> str:
    """Return the metrics as one self-contained HTML page with plots."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"money": _money, "ratio": _ratio}
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    svg = plots(bundle.day_metrics, bundle.intraday)
    return environment.from_string(text).render(bundle=bundle, plots=svg) + "\n"


def _money(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02}"


def _ratio(value: Fraction | None) -> str:
    return "\u2013" if value is None else f"{float(value):.3f}"


STYLES = ("o-", "s--", "^-.", "d:")
"""Different line styles, so that coinciding curves can both be seen."""


def plots(days: Sequence[DayMetrics], steps: Sequence[Step]) -> str:
    """Return an `<svg>` element: money, ratios and concentration by day, money in use by payment."""
    with drawing(grid=True):
        figure = Figure(figsize=(11, 7), layout="constrained")
        (money, ratios), (concentration, use) = figure.subplots(2, 2)
        _draw_money(money, days)
        _draw_ratios(ratios, "Ratios", days, {"alpha": "alpha", "phi": "phi", "delta": "delta"})
        indexes = {"HHI+ of claims": "hhi_plus", "HHI of shortfalls": "hhi_debtors"}
        _draw_ratios(concentration, "Concentration", days, indexes)
        _draw_use(use, steps)
        return svg_element(figure)


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
    """Return NaN for None, which leaves a gap in the curve."""
    return float("nan") if value is None else float(value)


SETTINGS: Final[dict[Any, Any]] = {
    "svg.hashsalt": "fullsend",
    "svg.fonttype": "none",
    "font.size": 9,
    "image.cmap": "viridis",
    "text.parse_math": False,  # names may contain a dollar sign
}
NO_METADATA: Final = dict.fromkeys(("Date", "Creator", "Format", "Type"))


@contextmanager
def drawing(*, grid: bool = False) -> Iterator[None]:
    """Make figures that are drawn inside the block look the same on all machines.

    Args:
        grid: whether axes have a grid.
    """
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()  # ignores the user's matplotlibrc
        mpl.rcParams.update({**SETTINGS, "axes.grid": grid})
        # The browser draws the glyphs that the font lacks here.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def svg_element(figure: Figure) -> str:
    """Return a figure as an `<svg>` element."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata=NO_METADATA)
    text = file.getvalue().decode()
    # Without the XML declaration, which doesn't belong into HTML, and the ids that all figures share.
    return re.sub(r'<g id="\w+_\d+">', "<g>", text[text.index("<svg") :])
