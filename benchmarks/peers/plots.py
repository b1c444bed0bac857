"""Draws two pictures as SVG; the same figures give the same bytes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.peers.figures import Spread, spread

OURS_COLOUR, OTHERS_COLOUR = "#c2410c", "#64748b"
SIZE_INCHES = (8.0, 4.2)

Rounds = Mapping[str, Sequence[Mapping[str, Any]]]


def draw(rounds: Rounds, folder: Path) -> list[str]:
    """Write the pictures into `folder`; returns their names."""
    throughput, latency = "benchmarks-throughput.svg", "benchmarks-latency.svg"
    save(_bars(_found(rounds, "jobs_per_second"), "jobs per second, results stored"), folder / throughput)
    save(_latencies(rounds), folder / latency)
    return [throughput, latency]


def _found(rounds: Rounds, name: str) -> dict[str, Spread]:
    spreads = {system: spread(found, name) for system, found in rounds.items()}
    known = {system: one for system, one in spreads.items() if one is not None}
    return dict(sorted(known.items(), key=lambda item: item[1].median))


def _bars(found: Mapping[str, Spread], label: str) -> Figure:
    """A bar for each median, with a line from the minimum to the maximum of the rounds."""
    figure, axes = chart(label)
    medians = [one.median for one in found.values()]
    reach = [
        [one.median - one.least for one in found.values()],
        [one.most - one.median for one in found.values()],
    ]
    axes.barh(list(found), medians, xerr=reach, color=[_colour(name) for name in found], ecolor="#0f172a")
    return figure


def _latencies(rounds: Rounds) -> Figure:
    """A dot for the median, a line to the 99th percentile."""
    figure, axes = chart(
        "ms from the request to the start of a job on an idle service: p50 to p99, logarithmic"
    )
    middle, high = _found(rounds, "to_start_p50_ms"), _found(rounds, "to_start_p99_ms")
    for row, (system, one) in enumerate(reversed(middle.items())):
        axes.plot([one.median, high[system].median], [row, row], color=_colour(system), linewidth=2)
        axes.plot([one.median], [row], "o", color=_colour(system))
    axes.set_yticks(range(len(middle)), list(reversed(middle)))
    axes.set_xscale("log")
    return figure


def chart(label: str) -> tuple[Figure, Any]:
    """An empty chart with a label on its horizontal axis."""
    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    return figure, axes


def _colour(system: str) -> str:
    return OURS_COLOUR if system.startswith("fullsend") else OTHERS_COLOUR


def save(figure: Figure, path: Path) -> None:
    """Write a chart as SVG; the same figures give the same bytes."""
    mpl.rcParams["svg.hashsalt"] = "peers"
    figure.savefig(path, format="svg", metadata={"Date": None})
