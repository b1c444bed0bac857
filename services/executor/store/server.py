"""What kind of Redis it is, as far as that matters for keeping runs safe."""

import statistics
import time
from dataclasses import dataclass

import redis.exceptions

from services.executor.store.scripts import Scripts, asking

PINGS = 5


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


class Server:
    """Asks the server about itself."""

    def __init__(self, scripts: Scripts) -> None:
        self._client = scripts.client

    async def look(self) -> Facts:
        """The facts, and how long an answer takes (the median of a few)."""
        async with asking("info"):
            info = await self._client.info()
            latency_ms = statistics.median([await self._ping_ms() for _ in range(PINGS)])
        evicts = int(info.get("maxmemory", 0)) > 0 and info.get("maxmemory_policy") != "noeviction"
        return Facts(
            version=_version(info),
            latency_ms=latency_ms,
            persistence="append-only file" if info.get("aof_enabled") else await self._snapshots(),
            eviction=str(info["maxmemory_policy"]) if evicts else None,
            memory_bytes=int(info.get("used_memory", 0)),
        )

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
