"""All cases of a plan, listed ones and those that its sweep makes, each with its seed."""

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
    """One case for each run of a plan, every one with its seed: listed ones first, then the sweep's.

    A plan of these cases and without a sweep has the same cases again.

    Raises:
        PlanError: there are too many; or two are the same in everything, so that their results
            could not be told apart.  Names both.
    """
    cases: list[TestCase] = []
    indexes: dict[bytes, int] = {}
    for case in _expanded(manifest):
        if len(cases) == max_cases:
            raise PlanError(f"{manifest.workflow_id} has more than {max_cases:,} cases; no plan may")
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
    """The case as often as it is to be run, one after the other."""
    if case.replicates == 1:
        yield case
        return
    for replicate in range(case.replicate, case.replicate + case.replicates):
        seed = None if case.seed is None else replicate_seed(case.seed, replicate)
        yield case.model_copy(update={"replicate": replicate, "replicates": 1, "seed": seed})


def _swept(tool: str, sweep: Sweep) -> Iterator[TestCase]:
    """The sweep's cases; a point that is chosen again has further replicates, since it is no mistake."""
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


# -- how a case is called -------------------------------------------------------------


def _same(manifest: RunManifest, case: TestCase, earlier: int, index: int) -> PlanError:
    """The error for the case at `index`, which is as an earlier one."""
    parameters = canonical_json(case.parameters).decode()
    return PlanError(
        f"{manifest.workflow_id}: {_name(manifest, earlier)} and {_name(manifest, index)} are the "
        f"same, with parameters {parameters:.200}; leave one out, or have it run again, with another seed, "
        "by 'replicates: 2'"
    )


def _name(manifest: RunManifest, index: int) -> str:
    """What the author calls the case that is at `index` among all."""
    for number, case in enumerate(manifest.cases):
        if index < case.replicates:
            return f"cases[{number}]" + (
                f" (replicate {case.replicate + index})" if case.replicates > 1 else ""
            )
        index -= case.replicates
    return f"the sweep's case {index}"


SEED_BITS: Final = 63
"""So that a seed fits in a signed 64-bit integer, as databases and Parquet have them."""

_SEED_DIGEST_BYTES: Final = 8


def seed_of(tool: str, case: TestCase) -> int:
    """The seed of a case: its own, or else 63 bits of the BLAKE2b digest of its content.

    The content is the tool's name, dataset, scenario, parameters and replicate, as canonical
    JSON: the order of the parameters doesn't matter, and `1`, `1.0` and `true` differ.

    Args:
        tool: its name or a bundle reference, of which only the name counts.
        case: one run.

    Raises:
        PlanError: a parameter is no value that JSON can hold.
    """
    return case.seed if case.seed is not None else seed_of_content(content_of(tool, case))


def seed_of_content(content: bytes) -> int:
    """The first 63 bits of a digest of all this."""
    digest = hashlib.blake2b(content, digest_size=_SEED_DIGEST_BYTES).digest()
    return int.from_bytes(digest) >> (8 * _SEED_DIGEST_BYTES - SEED_BITS)


def replicate_seed(seed: int, replicate: int) -> int:
    """The seed of a replicate of a case that has one of its own: the first keeps it."""
    if replicate == 0:
        return seed
    return seed_of_content(canonical_json({"replicate": replicate, "seed": seed}))


def content_of(tool: str, case: TestCase) -> bytes:
    """All that tells one case from another but its seed, as canonical JSON.  Raises `PlanError`."""
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
