"""The promised bounds, compared with the figures: ratios of one run, and what is measured once."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.figures import Rounds, ratios
from benchmarks.peers.systems import DEFAULT, FORK, OURS, SKELETON

NOT_PEERS = frozenset({OURS, FORK, DEFAULT, SKELETON})
KILLERS = ("rq", "celery")
"""Peers that isolate jobs and kill hanging ones."""

Raw = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Promise:
    """A figure with its bound; `found` is None if it was not measured."""

    what: str
    bound: str
    found: float | None
    is_kept: bool


def promises(raw: Raw) -> list[Promise]:
    """All promises of which a figure was measured."""
    return [one for one in (*_of_rounds(raw["rounds"]), *_of_mishaps(raw)) if one.found is not None]


def _of_rounds(rounds: Rounds) -> Iterator[Promise]:
    peers = [name for name in rounds if name not in NOT_PEERS]
    killers = [name for name in peers if name in KILLERS]
    speed, start, tail = "jobs_per_second", "to_start_p50_ms", "to_start_p99_ms"
    yield _at_least("jobs/s, to the fastest peer", 1.2, _against(rounds, OURS, peers, speed, max))
    yield _at_least(
        "jobs/s, to the fastest peer that kills hanging jobs", 4, _against(rounds, OURS, killers, speed, max)
    )
    yield _at_least("jobs/s of `fork`, to rq", 10, _against(rounds, FORK, ["rq"], speed, max))
    yield _at_least("jobs/s, to the bare skeleton", 0.5, _against(rounds, OURS, [SKELETON], speed, max))
    yield _at_most("idle, to start p50, to the quickest peer", 1, _against(rounds, OURS, peers, start, min))
    yield _at_most(
        "idle, to start, p99 to p50", 2, _median(one[tail] / one[start] for one in _with(rounds, tail))
    )
    yield _at_most("memory, to huey", 1, _against(rounds, OURS, ["huey"], "pss_bytes", min))
    first = "first_result_seconds"
    yield _at_most("start to first result, s", 0.3, _median(one[first] for one in _with(rounds, first)))


def _of_mishaps(raw: Raw) -> Iterator[Promise]:
    loop = raw["hung"].get(OURS, {}).get("loop")
    if loop:
        freed = _or_never(loop["slot_free_seconds"])
        is_kept = freed <= 1 and loop["killed"] and not loop["burning"]
        yield Promise(
            "loop in C that ignores signals: slot free after, s", "at most 1, killed", freed, is_kept
        )
    if OURS in raw["killed"]:
        yield _at_most("kill -9: executed again after, s", 5, _or_never(raw["killed"][OURS]["again_seconds"]))
    cron = raw["cron"].get(OURS, {})
    for word in ("second", "minute"):
        yield _at_most(f"cron, every {word}: late, p50 ms", 2.7, cron.get(f"{word}_p50_ms"))
        yield _at_most(f"cron, every {word}: late, p99 ms", 4, cron.get(f"{word}_p99_ms"))
        strays = cron.get(f"{word}_early"), cron.get(f"{word}_missed")
        if None not in strays:
            yield _at_most(f"cron, every {word}: early or missed", 0, sum(strays))


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds


def _with(rounds: Rounds, name: str) -> list[Mapping[str, Any]]:
    return [one for one in rounds.get(OURS, ()) if one.get(name)]


def _against(
    rounds: Rounds, ours: str, peers: Sequence[str], name: str, best: Callable[..., str]
) -> float | None:
    """The median over the rounds of the ratio of our figure to that of the peer with the best median."""
    medians = {
        peer: statistics.median(found)
        for peer in peers
        if (found := [one[name] for one in rounds.get(peer, ()) if one.get(name)])
    }
    if not medians or ours not in rounds:
        return None
    return _median(ratios(rounds, name, ours, best(medians, key=medians.__getitem__)))


def _median(found: Any) -> float | None:
    values = list(found)
    return statistics.median(values) if values else None


def _at_least(what: str, bound: float, found: float | None) -> Promise:
    return Promise(what, f"at least {bound:g}", found, found is not None and found >= bound)


def _at_most(what: str, bound: float, found: float | None) -> Promise:
    return Promise(what, f"at most {bound:g}", found, found is not None and found <= bound)
