"""The cases of a plan, listed ones and those of its sweep, each with its seed.  Pure.

A seed follows from the content of its case, wherever and whenever the case runs: a plan that is
reordered, extended or resumed gives each case the seed that it had.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from services.planner.designs import points
from services.planner.models import MAX_CASES, RunManifest, Sweep, TestCase
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
        yield from _replicates(case)


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
