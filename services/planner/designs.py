"""Which points of a sweep's dimensions are run: all, some that cover every pair, or chosen evenly."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Final

from services.planner.models import Dimension, Parameters, Range, Sweep

SIGNIFICANT_DIGITS: Final = 12
"""Of a chosen number, which a person can then still read, and in which machines agree."""


def points(sweep: Sweep) -> Iterator[Parameters]:
    """The points of a sweep, each a value for every dimension, in the order in which they run.

    `latin_hypercube` and `sobol` may choose the same point more than once.
    """
    names = list(sweep.dimensions)
    for values in _rows(sweep):
        yield dict(zip(names, values, strict=True))


def _rows(sweep: Sweep) -> Iterator[Sequence[Any]]:
    match sweep.method:
        case "grid":
            return product(*_lists(sweep))
        case "zip":
            return zip(*_lists(sweep), strict=True)
        case "pairwise":
            return _pairwise(_lists(sweep))
        case "latin_hypercube" | "sobol":
            return _chosen(sweep)


def _lists(sweep: Sweep) -> list[list[Any]]:
    return [one for one in sweep.dimensions.values() if not isinstance(one, Range)]


def _pairwise(lists: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """Rows in which every value of one list meets every value of every other."""
    if len(lists) <= 2:
        yield from product(*lists)
        return
    from allpairspy import AllPairs

    # Of indexes, since it asks for values that can be compared and hashed.
    for row in AllPairs([range(len(one)) for one in lists]):
        yield [one[index] for one, index in zip(lists, row, strict=True)]


# -- points in ranges -----------------------------------------------------------------


def _chosen(sweep: Sweep) -> Iterator[Sequence[Any]]:
    places = [_place(one) for one in sweep.dimensions.values()]
    for row in _units(sweep):
        yield [place(unit) for place, unit in zip(places, row, strict=True)]


def _units(sweep: Sweep) -> Iterator[list[float]]:
    """Points of the unit cube, each coordinate from 0 to just below 1."""
    from scipy.stats import qmc  # here: it takes a second to import

    count, dimensions, seed = sweep.samples or 0, len(sweep.dimensions), sweep.seed or 0
    if sweep.method == "latin_hypercube":
        table = qmc.LatinHypercube(dimensions, rng=seed).random(count)
    else:
        table = qmc.Sobol(dimensions, rng=seed).random_base2((count - 1).bit_length())
    for row in table[:count]:
        yield row.tolist()


def _place(dimension: Dimension) -> Callable[[float], Any]:
    """The function from 0..1 to the dimension's values."""
    match dimension:
        case Range(integer=True):
            return _whole(dimension)
        case Range():
            return _real(dimension)
        case list():
            return lambda unit: dimension[_part(unit, len(dimension))]


def _part(unit: float, parts: int) -> int:
    """Which of so many equal parts of 0..1 it is in."""
    return min(math.floor(unit * parts), parts - 1)


def _whole(one: Range) -> Callable[[float], int]:
    """Each whole number k stands for k to k + 1, so that both ends are as likely as the rest."""
    low, high = int(one.low), int(one.high)
    if not one.log:
        return lambda unit: low + _part(unit, high - low + 1)
    ratio = math.log((high + 1) / low)
    return lambda unit: min(max(math.floor(low * math.exp(unit * ratio)), low), high)


def _real(one: Range) -> Callable[[float], float]:
    def place(unit: float) -> float:
        if one.log:
            value = math.exp(math.log(one.low) * (1 - unit) + math.log(one.high) * unit)
        else:
            value = one.low * (1 - unit) + one.high * unit  # high - low may be more than a float holds
        rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        return min(max(rounded, one.low), one.high)

    return place
