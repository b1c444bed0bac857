"""What a curve is, and the arithmetic on its points.  Pure."""

import itertools
import math
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is measured at each point: runs of a burst, runs asked for one by one, seconds of watching."""

    server: Path
    runs: int
    asked: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Column:
    """One figure in a table, and how it is shown."""

    title: str
    figure: str
    decimals: int = 0

    def cell(self, figures: Mapping[str, float]) -> str:
        """As it is shown; empty where it was not measured."""
        value = figures.get(self.figure)
        return "" if value is None else f"{value:,.{self.decimals}f}"


@dataclass(frozen=True, slots=True)
class Curve:
    """One quantity that grows, and what that costs.

    `cost` is the column whose slope is shown.  `faults` names figures that must be zero.
    `bent_by` says why it grows where it grows, as a profile showed.
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
    bent_by: str


def medians(rounds: Sequence[Mapping[str, float]], faults: Sequence[str]) -> Figures:
    """Of each figure over the rounds; of faults the sum, for one is too many."""
    names = dict.fromkeys(name for one in rounds for name in one)
    found = {name: [one[name] for one in rounds if name in one] for name in names}
    return {name: sum(all_) if name in faults else statistics.median(all_) for name, all_ in found.items()}


def slopes(sizes: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    """Between each point and the one before, both axes logarithmic: 0 is flat, 1 is in proportion."""
    steps: list[float | None] = [None]
    points = list(zip(sizes, costs, strict=True))
    for (size, cost), (larger, dearer) in itertools.pairwise(points):
        is_known = cost > 0 and dearer > 0 and larger != size
        steps.append(math.log(dearer / cost) / math.log(larger / size) if is_known else None)
    return steps
