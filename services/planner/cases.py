"""The cases of a plan, listed ones and those of its sweep, each with its seed.  Pure.

A seed follows from the content of its case, wherever and whenever the case runs: a plan that is
reordered, extended or resumed gives each case the seed that it had.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any, Final

from services.planner.models import (
    MAX_CASES,
    Dimension,
    Parameters,
    Range,
    RunManifest,
    SeedRule,
    Sweep,
    TestCase,
)
from shared.canonical_json import canonical_json
from shared.errors import PlanError

_DIGEST_BYTES: Final = 16


def all_cases(manifest: RunManifest, *, max_cases: int = MAX_CASES) -> tuple[TestCase, ...]:
    """Return one case for each run of a plan, with its seed: listed ones first, then the sweep's.

    A plan that lists these cases and has no sweep has the same cases again.

    Args:
        manifest: the plan.
        max_cases: the most cases that a plan may have.

    Raises:
        PlanError: the plan has too many cases; or two cases are equal, seed included, so that
            their results could not be told apart.  The message names both.
    """
    cases: list[TestCase] = []
    indexes: dict[bytes, int] = {}
    for case in _expanded(manifest):
        if len(cases) == max_cases:
            raise PlanError(f"{manifest.workflow_id} has more than {max_cases:,} cases, the limit of a plan")
        content = content_of(manifest.tool, case)
        seed = seed_of_content(content) if case.seed is None else case.seed
        earlier = indexes.setdefault(_identity(seed, content), len(cases))
        if earlier != len(cases):
            raise _same(manifest, case, earlier, len(cases))
        cases.append(case.model_copy(update={"seed": seed}))
    return tuple(cases)


def _expanded(manifest: RunManifest) -> Iterator[TestCase]:
    for case in manifest.cases:
        yield from _replicates(case)
    if manifest.sweep is not None:
        yield from _swept(manifest.tool, manifest.sweep)


def _replicates(case: TestCase) -> Iterator[TestCase]:
    """Yield the replicates of a case."""
    if case.replicates == 1:
        yield case
        return
    for replicate in range(case.replicate, case.replicate + case.replicates):
        seed = None if case.seed is None else replicate_seed(case.seed, replicate)
        yield case.model_copy(update={"replicate": replicate, "replicates": 1, "seed": seed})


def _swept(tool: str, sweep: Sweep) -> Iterator[TestCase]:
    """Yield the sweep's cases; a point that is chosen again becomes further replicates, not a mistake."""
    chosen: Counter[bytes] = Counter()
    for point in points(sweep):
        case = TestCase(
            dataset=sweep.dataset,
            scenario=sweep.scenario,
            parameters={**sweep.parameters, **point},
            replicates=sweep.replicates,
        )
        if sweep.chooses_points:
            content = content_of(tool, case)
            case = case.model_copy(update={"replicate": chosen[content]})
            chosen[content] += sweep.replicates
        for one in _replicates(case):
            yield one if sweep.seeds is None else _seeded(tool, one, sweep.seeds)


def _seeded(tool: str, case: TestCase, rule: SeedRule) -> TestCase:
    """Return the case with the seed of the rule: of its content without the common dimensions."""
    parameters = {name: one for name, one in case.parameters.items() if name not in rule.common}
    content = content_of(tool, case.model_copy(update={"parameters": parameters}))
    seed = seed_of_content(content if rule.base is None else b"%d:%b" % (rule.base, content))
    return case.model_copy(update={"seed": seed})


def _identity(seed: int, content: bytes) -> bytes:
    return hashlib.blake2b(b"%d%b" % (seed, content), digest_size=_DIGEST_BYTES).digest()


# -- messages -------------------------------------------------------------------------


def _same(manifest: RunManifest, case: TestCase, earlier: int, index: int) -> PlanError:
    """Return the error for the case at `index`, which equals an earlier one."""
    parameters = canonical_json(case.parameters).decode()
    return PlanError(
        f"{manifest.workflow_id}: {_name(manifest, earlier)} and {_name(manifest, index)} are the "
        f"same, with parameters {parameters:.200}; leave one out, or run it twice, with different seeds, "
        "by 'replicates: 2'"
    )


def _name(manifest: RunManifest, index: int) -> str:
    """Return the name of the case at `index` as its author knows it."""
    for number, case in enumerate(manifest.cases):
        if index < case.replicates:
            return f"cases[{number}]" + (
                f" (replicate {case.replicate + index})" if case.replicates > 1 else ""
            )
        index -= case.replicates
    return f"the sweep's case {index}"


SEED_BITS: Final = 63
"""A seed fits in a signed 64-bit integer, as databases and Parquet have them."""

_SEED_DIGEST_BYTES: Final = 8


def seed_of(tool: str, case: TestCase) -> int:
    """Return the seed of a case: its own, or the first 63 bits of the BLAKE2b-64 digest of its content.

    The content is tool name, dataset, scenario, parameters and replicate, as canonical JSON: the
    order of the parameters doesn't matter, and `1`, `1.0` and `true` differ.

    Args:
        tool: the name of the tool, or a bundle reference, of which only the name counts.
        case: one run.

    Raises:
        PlanError: JSON can't hold a parameter.
    """
    return case.seed if case.seed is not None else seed_of_content(content_of(tool, case))


def seed_of_content(content: bytes) -> int:
    """Return the first 63 bits of the BLAKE2b-64 digest of the content."""
    digest = hashlib.blake2b(content, digest_size=_SEED_DIGEST_BYTES).digest()
    return int.from_bytes(digest) >> (8 * _SEED_DIGEST_BYTES - SEED_BITS)


def replicate_seed(seed: int, replicate: int) -> int:
    """Return the seed of a replicate of a case with a seed of its own; replicate 0 keeps that seed."""
    if replicate == 0:
        return seed
    return seed_of_content(canonical_json({"replicate": replicate, "seed": seed}))


def attempt_seed(seed: int, attempt: int) -> int:
    """Return the seed of an attempt, counted from 1, of a case with this seed; the first keeps it."""
    if attempt == 1:
        return seed
    return seed_of_content(canonical_json({"attempt": attempt, "seed": seed}))


def content_of(tool: str, case: TestCase) -> bytes:
    """Return the content of a case as canonical JSON; its seed and metadata are not part of it.

    Raises:
        PlanError: JSON can't hold a parameter.
    """
    content: dict[str, Any] = {
        "tool": tool.partition("@")[0],
        "dataset": case.dataset,
        "scenario": case.scenario,
        "parameters": case.parameters,
        "replicate": case.replicate,
    }
    try:
        return canonical_json(content)
    except (ValueError, TypeError) as exc:
        raise PlanError(f"a case of {tool} has parameters that JSON can't hold: {exc}") from None


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
