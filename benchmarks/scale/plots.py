"""One picture for each curve, both axes logarithmic."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.peers.plots import OTHERS_COLOUR, OURS_COLOUR, chart, save
from benchmarks.scale.curve import Curve
from benchmarks.scale.report import Raw, points


def draw(curves: Sequence[Curve], raw: Mapping[str, Raw], folder: Path) -> dict[str, str]:
    """Write the pictures of those that were measured into `folder`; their names by the curves'."""
    drawn = {}
    for curve in (one for one in curves if one.name in raw):
        drawn[curve.name] = f"scale-{curve.name}.svg"
        _draw(curve, raw[curve.name], folder / drawn[curve.name])
    return drawn


def _draw(curve: Curve, raw: Raw, path: Path) -> None:
    """The medians as a line; a dot for each round."""
    figure, axes = chart(curve.unit)
    costs = {size: figures[curve.cost.figure] for size, figures in points(curve, raw).items()}
    axes.plot(list(costs), list(costs.values()), color=OURS_COLOUR, marker="o")
    for size, found in raw["rounds"].items():
        values = [one[curve.cost.figure] for one in found]
        axes.plot([int(size)] * len(values), values, ".", color=OTHERS_COLOUR)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylabel(curve.cost.title)
    save(figure, path)
