"""The definition of a curve, and arithmetic on its points.  Pure."""

import itertools
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is measured at each point: runs of a burst, single runs, and seconds of observation."""

    server: Path
    runs: int
    asked: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, and the format of its figure."""

    title: str
    figure: str
    decimals: int = 0

    def cell(self, figures: Mapping[str, float]) -> str:
        """The figure as text; empty if it was not measured."""
        value = figures.get(self.figure)
        return "" if value is None else f"{value:,.{self.decimals}f}"


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity that grows, and its costs.

    `cost` is the column whose slope is shown.  `faults` are the figures that must be zero.
    `reason` explains the growth, from a profile.
    """

    name: str
    title: str
    unit: str
    sizes: Sequence[int]
    quick: Sequence[int]
    measure: Callable[[int, Amounts], Awaitable[Figures]]
    columns: Sequence[Column]
    cost: Column
    faults: Sequence[str]
    reason: str


def medians(rounds: Sequence[Mapping[str, float]], faults: Sequence[str]) -> Figures:
    """The median of each figure over the rounds; of faults the sum, because none is allowed."""
    names = dict.fromkeys(name for one in rounds for name in one)
    found = {name: [one[name] for one in rounds if name in one] for name in names}
    return {name: sum(all_) if name in faults else statistics.median(all_) for name, all_ in found.items()}


def slopes(sizes: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    """The slope from each point to the next on logarithmic axes: 0 is constant, 1 is proportional."""
    steps: list[float | None] = [None]
    points = list(zip(sizes, costs, strict=True))
    for (size, cost), (larger, dearer) in itertools.pairwise(points):
        is_known = cost > 0 and dearer > 0 and larger != size
        steps.append(math.log(dearer / cost) / math.log(larger / size) if is_known else None)
    return steps
