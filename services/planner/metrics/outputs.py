"""The files of a bundle.  The same bundle makes the same bytes, whatever the clock, locale or process."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

from services.planner.metrics.bundle import DayMetrics, DebtorShare, MetricsBundle, Step

TEMPLATE = "metrics.html.j2"


def write_outputs(bundle: MetricsBundle, directory: Path) -> dict[str, Path]:
    """Write `metrics.csv`, `metrics.json`, `debtor_shares.csv`, `intraday.csv` and `metrics.html`.

    The directory is made if it isn't there, files in it are replaced.  In all of them money is
    in whole cents, and what couldn't be measured is empty (in JSON, null).
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
    """CSV with a column for each field of the dataclass `kind`."""
    names = [one.name for one in fields(kind)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_plain(getattr(row, name)) for name in names] for row in rows)
    return text.getvalue()


def document(bundle: MetricsBundle) -> str:
    """The days and the totals as JSON."""
    days = [_members(day) for day in bundle.day_metrics]
    return json.dumps({"totals": _members(bundle.totals), "days": days}, indent=2, allow_nan=False) + "\n"


def page(bundle: MetricsBundle) -> str:
    """The metrics as one HTML page with plots that needs nothing else."""
    # Here, as both are slow to import and computing alone needs neither.
    import jinja2

    from services.planner.metrics.plots import plots

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"money": _money, "ratio": _ratio}
    text = resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    svg = plots(bundle.day_metrics, bundle.intraday)
    return environment.from_string(text).render(bundle=bundle, plots=svg) + "\n"


def _members(one: Any) -> dict[str, Any]:
    return {name: _plain(value) for name, value in asdict(one).items()}


def _plain(value: Any) -> Any:
    """A ratio as the nearest float, whose shortest notation is the same everywhere."""
    return float(value) if isinstance(value, Fraction) else value


def _money(cents: int) -> str:
    return f"{cents // 100:,}.{cents % 100:02}"


def _ratio(value: Fraction | None) -> str:
    return "\u2013" if value is None else f"{float(value):.3f}"
