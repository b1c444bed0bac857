"""What runs there are on: the workers that are alive, and the Redis server that they share."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import redis.exceptions

from services.executor.store.claims import GROUP, QUEUES
from services.executor.store.queue import ASIDE
from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.errors import StoreError, StoreUnavailableError

PINGS = 5
TYPES = {
    **dict.fromkeys(QUEUES, "stream"),
    keys.journal(): "stream",
    keys.dataset(): "string",
    keys.retries(): "zset",
    keys.nudges(): "zset",
    keys.due_times(): "zset",
    keys.noted_schedules(): "hash",
    keys.turns(): "zset",
    keys.cycle(): "string",
    keys.bell(): "list",
    keys.wanted(): "set",
    keys.workers(): "zset",
    keys.slots(): "hash",
    keys.listeners(): "zset",
    keys.ears(): "set",
}
"""The Redis types of the executor's own keys, except those of single runs and experiments."""

_HEARTBEAT = Script(
    "heartbeat",
    keys=("workers", "listeners", "slots", "silence", "tools"),
    args=("worker", "ttl_ms", "is_listening", "count"),
)
_FORGET = Script(
    "forget", keys=("workers", "listeners", "slots", "tools", "queues[]"), args=("worker", "group")
)


FOUND = "-"
"""Says that a worker has a tool and can't begin it yet."""


class Workers:
    """The workers that share one Redis server."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def heartbeat(
        self, worker: str, ttl_seconds: float, *, listening: bool, slots: int = 1
    ) -> list[str]:
        """Record that `worker` is alive.

        Args:
            worker: its name.
            ttl_seconds: when it counts as dead, unless this is called again.
            listening: whether it listens for triggers.
            slots: how many runs at once it takes.

        Returns:
            The workers that are dead.  A worker whose own heartbeat had expired gets none for `ttl_seconds`:
            when Redis was away, the other workers need time to come back as well.
        """
        answer: Sequence[str] = await self._scripts.call(
            _HEARTBEAT,
            [keys.workers(), keys.listeners(), keys.slots(), keys.silence(worker), keys.tools_of(worker)],
            [worker, round(ttl_seconds * 1_000), int(listening), slots],
        )
        return list(answer)

    async def identify_data(self) -> bool:
        """Look what identifies Redis' data; False if that has changed since the last call: data was lost."""
        known = self._scripts.dataset
        try:
            async with asking("dataset"), self._scripts.client.pipeline(transaction=True) as pipe:
                pipe.set(keys.dataset(), secrets.token_hex(8), nx=True)
                pipe.get(keys.dataset())
                _, found = await pipe.execute()
        except StoreUnavailableError:
            raise
        except StoreError:  # somebody has made another type of the key, so nothing is known
            found = ""
        self._scripts.dataset = str(found)
        return known in ("", found)

    async def strays(self) -> list[str]:
        """Workers that hold claims and are not listed: they were forgotten, came back to life and died."""
        try:
            async with asking("strays"), self._scripts.client.pipeline(transaction=True) as pipe:
                pipe.zrange(keys.workers(), 0, -1)
                for queue in QUEUES:
                    pipe.xinfo_consumers(queue, GROUP)
                known, *groups = await pipe.execute()
        except StoreError as exc:
            if "NOGROUP" not in str(exc) and "no such key" not in str(exc):
                raise
            return []  # Redis has lost its data, and no worker holds a claim
        holding = {one["name"] for consumers in groups for one in consumers if one["pending"]}
        return sorted(name for name in holding - set(known) if not name.startswith(ASIDE))

    async def tell_tools(self, worker: str, tools: Mapping[str, str], ttl_seconds: float) -> None:
        """Record which tools `worker` has.

        Args:
            worker: its name.
            tools: by name the limit of a tool (see `limit_of`) that the worker can begin, or `FOUND`.
            ttl_seconds: until its next heartbeat, at the latest.
        """
        if not tools:
            return
        async with asking("tell_tools"), self._scripts.client.pipeline(transaction=True) as pipe:
            pipe.hset(keys.tools_of(worker), mapping=dict(tools))
            pipe.pexpire(keys.tools_of(worker), round(ttl_seconds * 1_000))
            await pipe.execute()

    async def count_tools(self, worker: str) -> int:
        """How many tools are recorded for `worker`."""
        async with asking("count_tools"):
            return int(await self._scripts.client.hlen(keys.tools_of(worker)))

    async def wanted_tools(self) -> list[str]:
        """The tools that orders wait for."""
        async with asking("wanted_tools"):
            return list(await self._scripts.client.smembers(keys.wanted()))

    async def untell_tool(self, worker: str, tool: str) -> None:
        """Record that `worker` doesn't have a tool any more, or can't begin it."""
        async with asking("untell_tool"):
            await self._scripts.client.hdel(keys.tools_of(worker), tool)

    async def tell_cron(self, worker: str, noticing: str, ttl_seconds: float) -> None:
        """Record that `worker` runs cron, and how it notices schedules that are written in silence."""
        async with asking("tell_cron"):
            await self._scripts.client.set(keys.cron_of(worker), noticing, px=round(ttl_seconds * 1_000))

    async def cron(self) -> dict[str, str]:
        """The workers that are alive and run cron, and how each notices schedules written in silence."""
        alive = await self.alive()
        if not alive:
            return {}
        async with asking("cron"):
            told = await self._scripts.client.mget(map(keys.cron_of, alive))
        return {worker: noticing for worker, noticing in zip(alive, told, strict=True) if noticing}

    async def forget(self, worker: str) -> bool:
        """Remove `worker` from the list; False while it still holds claims."""
        answer = await self._scripts.call(
            _FORGET,
            [keys.workers(), keys.listeners(), keys.slots(), keys.tools_of(worker), *QUEUES],
            [worker, GROUP],
        )
        return bool(answer)

    async def alive(self) -> list[str]:
        """The workers whose heartbeat has not expired, by Redis' clock."""
        return await self._unexpired(keys.workers())

    async def slots(self) -> dict[str, int | None]:
        """How many runs at once each worker takes that is alive; None for one that doesn't say."""
        alive = await self.alive()
        if not alive:
            return {}
        async with asking("slots"):
            told = await self._scripts.client.hmget(keys.slots(), alive)
        return {name: int(one) if one else None for name, one in zip(alive, told, strict=True)}

    async def listening(self) -> list[str]:
        """The workers that listen for triggers, by Redis' clock."""
        return await self._unexpired(keys.listeners())

    async def silent(self) -> dict[str, float]:
        """The workers that are dead and still listed, and for how many seconds they have been dead."""
        async with asking("silent"):
            seconds, micros = await self._scripts.client.time()
            now_ms = seconds * 1_000 + micros // 1_000
            expired = await self._scripts.client.zrange(
                keys.workers(), "-inf", f"({now_ms}", byscore=True, withscores=True
            )
        return {name: (now_ms - until_ms) / 1_000 for name, until_ms in expired}

    async def _unexpired(self, key: str) -> list[str]:
        async with asking("alive"):
            seconds, micros = await self._scripts.client.time()
            now_ms = seconds * 1_000 + micros // 1_000
            return list(await self._scripts.client.zrangebyscore(key, now_ms, "+inf"))


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """How a server is set up, as far as the safety of runs depends on it.

    Attributes:
        version: name and version.
        latency_ms: how long an answer takes.
        persistence: what survives a restart, in words; None if nothing does.
        eviction: the policy by which keys may be dropped; None if none are.
        memory_bytes: how much memory the data takes.
    """

    version: str
    latency_ms: float
    persistence: str | None
    eviction: str | None
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class OtherListeners:
    """Workers of other databases of this server, which hear the same channels.

    Attributes:
        workers: how many.
        databases: in which databases there are subscribers, as far as the server tells.
    """

    workers: int
    databases: Sequence[int]


@dataclass(frozen=True, slots=True)
class WrongType:
    """A key of the executor that somebody has made another Redis type of."""

    key: str
    found: str
    expected: str


class Server:
    """The Redis server."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._client = scripts.client

    async def look(self) -> ServerFacts:
        """Its set-up now; the latency is the median of a few answers."""
        async with asking("info"):
            info = await self._client.info()
            latency_ms = sorted([await self._ping_ms() for _ in range(PINGS)])[PINGS // 2]
        evicts = int(info.get("maxmemory", 0)) > 0 and info.get("maxmemory_policy") != "noeviction"
        return ServerFacts(
            version=_version(info),
            latency_ms=latency_ms,
            persistence="append-only file" if info.get("aof_enabled") else await self._snapshots(),
            eviction=str(info["maxmemory_policy"]) if evicts else None,
            memory_bytes=int(info.get("used_memory", 0)),
        )

    async def wrong_types(self, experiment_ids: Sequence[str] = ()) -> list[WrongType]:
        """The executor's own keys of the wrong type, and those of these experiments; not those of runs."""
        expected = TYPES | {keys.open_runs(one): "zset" for one in experiment_ids}
        expected |= {keys.metrics(one): "list" for one in experiment_ids}
        async with asking("types"), self._client.pipeline(transaction=False) as pipe:
            for key in expected:
                pipe.type(key)
            found = await pipe.execute()
        return [
            WrongType(key, kind, wanted)
            for (key, wanted), kind in zip(expected.items(), found, strict=True)
            if kind not in (wanted, "none")
        ]

    async def other_listeners(self) -> OtherListeners:
        """Who hears the triggers and isn't known in this database: pub/sub knows no databases."""
        markers = self._scripts.channel(keys.MARKERS)
        async with asking("listeners"):
            ears = await self._client.smembers(keys.ears())
            counts = dict(await self._client.pubsub_numsub(markers, *ears))
        others = counts.pop(markers, 0) - sum(1 for count in counts.values() if count)
        if others <= 0:
            return OtherListeners(0, ())
        own = self._client.connection_pool.connection_kwargs.get("db") or 0
        try:
            async with asking("listeners"):
                clients = await self._client.client_list(_type="pubsub")
        except StoreError:  # managed servers refuse CLIENT
            clients = []
        databases = {int(one["db"]) for one in clients if int(one.get("sub", 0))} - {int(own)}
        return OtherListeners(others, sorted(databases))

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
