"""The measurements of a system in each round.  Times of events are Unix nanoseconds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers import processes
from benchmarks.peers.figures import percentile, rate
from benchmarks.peers.inside.asked import FAILED
from benchmarks.peers.stage import Stage, StageError, stage
from benchmarks.peers.system import Case, System

START_PATIENCE_SECONDS = 30.0
DRAIN_PATIENCE_SECONDS = 300.0
COARSE_SECONDS = 0.05
FINE_SECONDS = 0.002
APART_SECONDS = 0.1
WARM_UP = 20
LARGE_BYTES = 1_000_000
NAP_SECONDS = 0.05

Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Numbers of jobs."""

    jobs: int
    asked: int
    burst: int
    large: int
    naps: int


async def throughput(system: System, server: Path, sizes: Sizes) -> Figures:
    """Jobs per second between the first and the last start, of jobs queued before the service starts."""
    async with stage(system, Case.BUSY, server) as on:
        filled = await on.say("fill", job="stamp", arguments={}, count=sizes.jobs)
        begun = on.start()
        drained = await on.say("drain", patience_seconds=DRAIN_PATIENCE_SECONDS, apart_seconds=COARSE_SECONDS)
        results = _complete(system, drained["results"])
    stamps = [one for one in results if one != FAILED]
    return {
        "jobs_per_second": rate(stamps),
        "failed_jobs": len(results) - len(stamps),
        "enqueued_per_second": sizes.jobs / filled["seconds"],
        "seconds_with_start": (drained["seen_ns"] - begun) / 1e9,
    }


async def idle(system: System, server: Path, sizes: Sizes) -> Figures:
    """Start-up time, then latency of single jobs, memory, CPU time, and the time for large results."""
    async with stage(system, Case.BUSY, server) as on:
        figures = await _first_result(on)
        await on.still()
        await _ask(on, WARM_UP)
        asked = await _ask(on, sizes.asked)
        figures |= latencies(asked)
        await on.still()
        figures["pss_bytes"] = processes.pss_bytes(on.tree())
        figures["cpu_ms_per_job"] = await _cpu_ms_per_job(on, sizes.burst)
        large = await _ask(on, sizes.large, "large", {"size": LARGE_BYTES})
        figures["large_ms"] = percentile([(seen - begun) / 1e6 for begun, _, seen in large], 50)
    return figures


async def _first_result(on: Stage) -> Figures:
    await on.say("fill", job="stamp", arguments={}, count=1)
    begun = on.start()
    drained = await on.say("drain", patience_seconds=START_PATIENCE_SECONDS, apart_seconds=FINE_SECONDS)
    [first] = _complete(on.system, drained["results"])
    if first == FAILED:
        return {"failed_first": 1}
    return {
        "first_start_seconds": (first - begun) / 1e9,
        "first_result_seconds": (drained["seen_ns"] - begun) / 1e9,
    }


async def _cpu_ms_per_job(on: Stage, count: int) -> float:
    """CPU time of the service per job, for many jobs queued at once; it varies less than a duration."""
    before = on.cpu_seconds()
    await on.say("fill", job="stamp", arguments={}, count=count)
    await on.say("drain", patience_seconds=DRAIN_PATIENCE_SECONDS, apart_seconds=COARSE_SECONDS)
    await on.still()
    return (on.cpu_seconds() - before) * 1_000 / count


async def _ask(
    on: Stage, count: int, job: str = "stamp", arguments: Mapping[str, Any] | None = None
) -> Sequence[tuple[int, int, int]]:
    answer = await on.say(
        "ask", job=job, arguments=dict(arguments or {}), count=count, apart_seconds=APART_SECONDS
    )
    asked: Sequence[tuple[int, int, int]] = answer["asked"]
    return asked


def latencies(asked: Sequence[tuple[int, int, int]]) -> Figures:
    """Times from the request to the start and to the result, in ms; each job returns its start."""
    to_start = [(start - begun) / 1e6 for begun, start, _ in asked]
    to_result = [(seen - begun) / 1e6 for begun, _, seen in asked]
    return {
        "to_start_p50_ms": percentile(to_start, 50),
        "to_start_p99_ms": percentile(to_start, 99),
        "to_result_p50_ms": percentile(to_result, 50),
        "to_result_p99_ms": percentile(to_result, 99),
    }


async def wide(system: System, server: Path, sizes: Sizes) -> Figures:
    """Seconds from the first start to the last end of jobs that only wait, fifty at the same time.

    This is done twice, and the second time counts, when systems that start processes on demand have them.
    """
    async with stage(system, Case.WIDE, server) as on:
        on.start()
        for _ in range(2):
            await on.say("fill", job="nap", arguments={"seconds": NAP_SECONDS}, count=sizes.naps)
            drained = await on.say(
                "drain", patience_seconds=DRAIN_PATIENCE_SECONDS, apart_seconds=COARSE_SECONDS
            )
            await on.still()
        spans = [tuple(map(int, one.split())) for one in _complete(system, drained["results"])]
    return {"naps_seconds": (max(end for _, end in spans) - min(begun for begun, _ in spans)) / 1e9}


def _complete(system: System, results: Sequence[Any]) -> Sequence[Any]:
    missing = sum(one is None for one in results)
    if missing:
        raise StageError(f"{system.name}: {missing} of {len(results)} results are missing")
    return results
