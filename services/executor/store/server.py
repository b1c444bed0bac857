"""What kind of Redis it is, as far as that matters for keeping runs safe."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import redis.exceptions

from services.executor.store.queue import QUEUES
from services.executor.store.scripts import Scripts, asking
from shared import keys

PINGS = 5
TYPES = {
    **dict.fromkeys(QUEUES, "stream"),
    keys.journal(): "stream",
    keys.retries(): "zset",
    keys.nudges(): "zset",
    keys.due_times(): "zset",
    keys.noted_schedules(): "hash",
    keys.turns(): "zset",
    keys.cycle(): "string",
    keys.workers(): "zset",
    keys.listeners(): "zset",
    keys.ears(): "set",
}


@dataclass(frozen=True, slots=True)
class Facts:
    """A server as it is now.

    `persistence` says in words what survives a restart, None when nothing does.
    `eviction` is the policy under which keys may be dropped, None when none are.
    """

    version: str
    latency_ms: float
    persistence: str | None
    eviction: str | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Misfit:
    """A key of ours that somebody has made another Redis type of."""

    key: str
    found: str
    expected: str


class Server:
    """Asks the server about itself."""

    def __init__(self, scripts: Scripts) -> None:
        self._client = scripts.client

    async def look(self) -> Facts:
        """The facts, and how long an answer takes (the median of a few)."""
        async with asking("info"):
            info = await self._client.info()
            latency_ms = sorted([await self._ping_ms() for _ in range(PINGS)])[PINGS // 2]
        evicts = int(info.get("maxmemory", 0)) > 0 and info.get("maxmemory_policy") != "noeviction"
        return Facts(
            version=_version(info),
            latency_ms=latency_ms,
            persistence="append-only file" if info.get("aof_enabled") else await self._snapshots(),
            eviction=str(info["maxmemory_policy"]) if evicts else None,
            memory_bytes=int(info.get("used_memory", 0)),
        )

    async def misfits(self, experiment_ids: Sequence[str] = ()) -> list[Misfit]:
        """The executor's own keys of the wrong type; those of single runs are not looked at."""
        expected = TYPES | {keys.open_runs(one): "zset" for one in experiment_ids}
        expected |= {keys.metrics(one): "list" for one in experiment_ids}
        async with asking("types"), self._client.pipeline(transaction=False) as pipe:
            for key in expected:
                pipe.type(key)
            found = await pipe.execute()
        return [
            Misfit(key, kind, wanted)
            for (key, wanted), kind in zip(expected.items(), found, strict=True)
            if kind not in (wanted, "none")
        ]

    async def _ping_ms(self) -> float:
        started = time.perf_counter()
        await self._client.ping()
        return (time.perf_counter() - started) * 1_000

    async def _snapshots(self) -> str | None:
        try:
            points = (await self._client.config_get("save")).get("save")
        except redis.exceptions.ResponseError:
            return "unknown: the server does not tell"  # managed servers refuse CONFIG
        return f"snapshots only ({points}): the last minutes can be lost" if points else None


def _version(info: dict[str, str]) -> str:
    if "valkey_version" in info:
        return f"Valkey {info['valkey_version']}"
    return f"Redis {info.get('redis_version', 'of unknown version')}"
