"""Designs: the points of a sweep, by grid, zip, pairwise, Latin hypercube or Sobol sequence.  Pure."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Final

from services.planner.models import Dimension, Parameters, Range, Sweep

SIGNIFICANT_DIGITS: Final = 12
"""To which chosen numbers are rounded, so that people can read them and all machines agree."""


def points(sweep: Sweep) -> Iterator[Parameters]:
    """Yield the points of a sweep, each with a value for every dimension, in the order in which they run.

    `grid` is the product of the lists, `zip` their n-th values, `pairwise` a greedy covering array of
    strength 2 (allpairspy).  `latin_hypercube` and `sobol` come from `scipy.stats.qmc` (McKay et al.
    1979; Sobol sequences with the direction numbers of Joe and Kuo 2008, scrambled by a random
    linear matrix and a digital shift); they may choose a point twice.
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
    """Yield rows in which each value of each list meets each value of every other list."""
    if len(lists) <= 2:
        yield from product(*lists)
        return
    from allpairspy import AllPairs

    # Over indexes, since AllPairs needs values that can be compared and hashed.
    for row in AllPairs([range(len(one)) for one in lists]):
        yield [one[index] for one, index in zip(lists, row, strict=True)]


# -- points in ranges -----------------------------------------------------------------


def _chosen(sweep: Sweep) -> Iterator[Sequence[Any]]:
    places = [_place(one) for one in sweep.dimensions.values()]
    for row in _units(sweep):
        yield [place(unit) for place, unit in zip(places, row, strict=True)]


def _units(sweep: Sweep) -> Iterator[list[float]]:
    """Yield points of the unit cube, as lists of coordinates from 0 to below 1."""
    from scipy.stats import qmc  # imported here, as that takes a second

    count, dimensions, seed = sweep.samples or 0, len(sweep.dimensions), sweep.seed or 0
    if sweep.method == "latin_hypercube":
        table = qmc.LatinHypercube(dimensions, rng=seed).random(count)
    else:
        table = qmc.Sobol(dimensions, rng=seed).random_base2((count - 1).bit_length())
    for row in table[:count]:
        yield row.tolist()


def _place(dimension: Dimension) -> Callable[[float], Any]:
    """Return the function from a coordinate, 0 to below 1, to a value of the dimension."""
    match dimension:
        case Range(integer=True):
            return _whole(dimension)
        case Range():
            return _real(dimension)
        case list():
            return lambda unit: dimension[_part(unit, len(dimension))]


def _part(unit: float, parts: int) -> int:
    """Return in which of `parts` equal parts of the unit interval a coordinate is, from 0."""
    return min(math.floor(unit * parts), parts - 1)


def _whole(one: Range) -> Callable[[float], int]:
    """Each whole number k takes the interval from k to k + 1, so that both ends are as likely as the rest."""
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
            value = one.low * (1 - unit) + one.high * unit  # high - low may overflow
        rounded = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
        return min(max(rounded, one.low), one.high)

    return place
