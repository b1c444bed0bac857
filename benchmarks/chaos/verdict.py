"""The promises, and the figures that show whether they were kept."""

import asyncio
import contextlib
import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.exceptions import RedisError

from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.producers import queued
from benchmarks.chaos.world import MAX_ATTEMPTS, Fleet, children
from services.executor.store.orders import PRIORITIES
from shared import keys

PATIENCE_SECONDS = 120.0
AT_ONCE = 1_000
LAST = "last"

Record = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Evidence:
    """The content of Redis after everything has ended."""

    records: Sequence[Record]
    results: Counter[str]
    leaked: Sequence[str]

    def by_token(self) -> Mapping[str, list[Record]]:
        """The run records of each token."""
        found = defaultdict(list)
        for record in self.records:
            if record["trigger"] != "cron":
                found[json.loads(record["params"])["token"]].append(record)
        return found

    def due_times(self) -> Mapping[str, Counter[int]]:
        """The number of runs of each due time (Unix seconds) of each schedule."""
        found: dict[str, Counter[int]] = defaultdict(Counter)
        for record in self.records:
            if record["trigger"] == "cron":
                at = datetime.fromisoformat(record["scheduled_for"]).timestamp()
                found[record["run_id"].rpartition(":")[0]][round(at)] += 1
        return found


# -- waiting for the end --------------------------------------------------------------


async def settled(redis: Any, fleet: Fleet, ledger: Ledger) -> bool:
    """Wait until messages are admitted, runs have ended, and dead workers are removed; whether in time."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not await redis.publish(keys.EXECUTE_NOW, _last()):
                await asyncio.sleep(0.05)
            while not await redis.exists(keys.request("exp_0", LAST)) or ledger.on_few_shoulders():
                await asyncio.sleep(
                    0.05
                )  # a worker that received the last message has admitted all before it
            while not await _is_still(redis, fleet):
                await asyncio.sleep(0.1)
    except TimeoutError:
        return False
    return True


def _last() -> str:
    params = {"token": LAST, "behaviour": "ok"}
    return json.dumps({"experiment_id": "exp_0", "request_id": LAST, "params": params})


async def _is_still(redis: Any, fleet: Fleet) -> bool:
    with contextlib.suppress(RedisError, OSError):
        is_open = await queued(redis) + await redis.zcard(keys.retries())
        known = {int(name.split("-")[-2]) for name in await redis.zrange(keys.workers(), 0, -1)}
        return not is_open and known == {member.pid for member in fleet.members}
    return False


async def left_behind(ours: int) -> int:
    """Processes that the ended executors have left; `ours` is the server."""
    until = time.monotonic() + PATIENCE_SECONDS / 10
    while (orphans := children() - {ours}) and time.monotonic() < until:
        await asyncio.sleep(0.05)
    return len(orphans)


# -- reading --------------------------------------------------------------------------


async def gather(redis: Any) -> Evidence:
    """Read all records and messages."""
    records: list[Record] = []
    names = [name async for name in redis.scan_iter("experiment_runs:*", count=AT_ONCE)]
    for start in range(0, len(names), AT_ONCE):
        async with redis.pipeline(transaction=False) as pipe:
            for name in names[start : start + AT_ONCE]:
                pipe.hgetall(name)
            records += await pipe.execute()
    results: Counter[str] = Counter()
    cursor = "-"
    while entries := await redis.xrange(keys.journal(), min=cursor, count=AT_ONCE):
        results.update(json.loads(one["data"])["run_id"] for _, one in entries if one["kind"] == "result")
        cursor = f"({entries[-1][0]}"
    return Evidence(records, results, await _leaked(redis))


async def _leaked(redis: Any) -> list[str]:
    """Keys of the executor that should be deleted, or should expire and do not."""
    lasting = {
        keys.ears(),
        *map(keys.queue, PRIORITIES),
        keys.journal(),
        keys.due_times(),
        keys.noted_schedules(),
        keys.turns(),
        keys.dataset(),
        keys.registered(),
    }
    index = "fullsend:executor:runs"
    names = redis.scan_iter("fullsend:executor:*", count=AT_ONCE)
    return [
        name
        async for name in names
        if name not in lasting and not name.startswith(index) and await redis.ttl(name) == -1
    ]


# -- figures --------------------------------------------------------------------------


def promises(evidence: Evidence, ledger: Ledger) -> dict[str, int]:
    """The number of violations of each promise."""
    runs, due_times, starts = evidence.by_token(), evidence.due_times(), ledger.notes.starts()
    statuses = Counter(record["status"] for record in evidence.records)
    return {
        "lost": len(lost(evidence, ledger)) + statuses["running"],
        "counted twice": _twice(map(len, runs.values()))
        + _twice(evidence.results.values())
        + sum(_twice(count.values()) for count in due_times.values()),
        "due times missed": sum(max(count) - min(count) + 1 - len(count) for count in due_times.values()),
        "without a result message": sum(one["run_id"] not in evidence.results for one in evidence.records),
        "cancelled, but by nobody": statuses["cancelled"],
        "started too often": _started_too_often(evidence.records, starts),
        "leaked keys": len(evidence.leaked),
    }


def lost(evidence: Evidence, ledger: Ledger) -> set[str]:
    """The tokens that Redis had acknowledged and that have no run."""
    return ledger.certain - evidence.by_token().keys()


def _twice(counts: Iterable[int]) -> int:
    return sum(count > 1 for count in counts)


def _started_too_often(records: Sequence[Record], starts: Mapping[tuple[str, int], int]) -> int:
    """Attempts beyond the limit, or whose tool started more than once plus once for each worker's death."""
    allowed: Counter[tuple[str, int]] = Counter()
    for record in records:
        allowed.update((record["run_id"], int(one["attempt"])) for one in _deaths(record))
    return sum(
        attempt > MAX_ATTEMPTS or count > 1 + allowed[run_id, attempt]
        for (run_id, attempt), count in starts.items()
    )


def _deaths(record: Record) -> list[dict[str, Any]]:
    """The attempts of a run over which a worker died."""
    attempts = json.loads(record.get("attempts", "[]"))
    return [one for one in attempts if one["error_type"] == "WorkerDiedError"]


def figures(evidence: Evidence, ledger: Ledger) -> dict[str, Any]:
    """Further figures."""
    return {
        "submitted by PUBLISH": len(ledger.published),
        "submitted to the queue": len(ledger.enqueued),
        "submitted by cron": sum(len(count) for count in evidence.due_times().values()),
        "unsure, as the connection broke": len(ledger.unsure),
        "tools that were to": dict(ledger.behaviours),
        "finished": sum(record["status"] != "running" for record in evidence.records),
        "by status": dict(Counter(record["status"] for record in evidence.records)),
        "deeds": dict(ledger.done),
    }


def recovery_seconds(records: Sequence[Record], killed_at: Mapping[int, float]) -> list[float]:
    """Seconds from each SIGKILL until another worker took over the run, sorted."""
    seconds = []
    for one in (one for record in records for one in _deaths(record)):
        words = one["error"].split(" ")  # worker HOST-PID-NONCE died
        killed = killed_at.get(int(words[1].split("-")[-2])) if words[0] == "worker" else None
        if killed is not None:
            seconds.append(datetime.fromisoformat(one["at"]).timestamp() - killed)
    return sorted(seconds)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum of sorted values; 0 if there are none."""
    if not seconds:
        return {"p50": 0.0, "p99": 0.0, "max": 0.0}
    p99 = seconds[min(len(seconds) - 1, int(len(seconds) * 0.99))]
    values = {"p50": statistics.median(seconds), "p99": p99, "max": seconds[-1]}
    return {name: round(value, 2) for name, value in values.items()}
