"""Who works: heartbeats, and what the dead left behind."""

from collections.abc import Sequence

from services.executor.store.deliveries import GROUP
from services.executor.store.queue import QUEUES
from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.errors import StoreError

_HEARTBEAT = Script(
    "heartbeat", keys=("workers", "listeners", "silence"), args=("worker", "ttl_ms", "is_listening")
)
_FORGET = Script("forget", keys=("workers", "listeners", "queues[]"), args=("worker", "group"))


class Workers:
    """The workers that share one Redis."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def heartbeat(self, worker: str, ttl_seconds: float, *, listening: bool) -> list[str]:
        """Say that `worker` lives for `ttl_seconds` more; returns those whose time is up.

        Who was silent itself for longer than that learns of nobody for as long again.
        """
        answer: Sequence[str] = await self._scripts.call(
            _HEARTBEAT,
            [keys.workers(), keys.listeners(), keys.silence(worker)],
            [worker, round(ttl_seconds * 1_000), int(listening)],
        )
        return list(answer)

    async def strays(self) -> list[str]:
        """Names that hold claims and that nobody knows: they were forgotten, came back to life and died."""
        try:
            async with asking("strays"), self._scripts.client.pipeline(transaction=True) as pipe:
                pipe.zrange(keys.workers(), 0, -1)
                for queue in QUEUES:
                    pipe.xinfo_consumers(queue, GROUP)
                known, *groups = await pipe.execute()
        except StoreError as exc:
            if "NOGROUP" not in str(exc) and "no such key" not in str(exc):
                raise
            return []  # Redis came back empty, and nobody holds anything
        holding = {one["name"] for consumers in groups for one in consumers if one["pending"]}
        return sorted(holding - set(known))

    async def forget(self, worker: str) -> bool:
        """Take `worker` off the list; False while it still holds claims."""
        answer = await self._scripts.call(
            _FORGET, [keys.workers(), keys.listeners(), *QUEUES], [worker, GROUP]
        )
        return bool(answer)

    async def alive(self) -> list[str]:
        """The workers whose heartbeat has not expired, by Redis' clock."""
        return await self._unexpired(keys.workers())

    async def listening(self) -> list[str]:
        """Those of them that listen for triggers."""
        return await self._unexpired(keys.listeners())

    async def silent(self) -> dict[str, float]:
        """The workers that count as dead and that nobody has taken off the list: for how many seconds."""
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
