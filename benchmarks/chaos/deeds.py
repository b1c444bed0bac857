"""The faults that are caused, in random order."""

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from benchmarks.chaos.ledger import Ledger
from benchmarks.chaos.world import Fleet, Server
from shared import keys

PATIENCE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Tormentor:
    """Causes the faults, spread over the time that the producers take."""

    fleet: Fleet
    server: Server
    redis: Any
    ledger: Ledger
    freeze_seconds: float

    async def torment(self, counts: Mapping[str, int], runs: int) -> None:
        """Cause each fault as often as `counts` says, while `runs` runs are submitted."""
        deeds = [deed for deed, count in counts.items() for _ in range(count)]
        random.shuffle(deeds)
        for position, deed in enumerate(deeds, start=1):
            goal = self.ledger.may_submit = runs * position / (len(deeds) + 1)
            async with asyncio.timeout(PATIENCE_SECONDS):
                while self.ledger.asked_for < goal or not await self._all_listen():
                    await asyncio.sleep(0.02)
                await self._do(deed)
            self.ledger.done[deed] += 1
        self.ledger.may_submit = runs

    async def _all_listen(self) -> bool:
        """A PUBLISH without a subscriber is lost, so one executor is always left to receive it."""
        self.fleet.check()
        with contextlib.suppress(RedisError, OSError):
            heard_by = dict(await self.redis.pubsub_numsub(keys.MARKERS))
            return bool(heard_by.get(keys.MARKERS) == self.fleet.size)
        return False

    async def _do(self, deed: str) -> None:
        match deed:
            case "kill":
                await self._kill()
            case "freeze":
                await self._freeze()
            case "restart":
                member = self.fleet.pick()
                member.terminate()
                await asyncio.to_thread(member.wait)
                self.fleet.replace(member)
            case "redis restart":
                await self.server.restart()
            case "cut":
                await self._cut()
            case _:
                raise ValueError(deed)

    async def _kill(self) -> None:
        while self.ledger.on_few_shoulders():
            await asyncio.sleep(0.01)
        member = self.fleet.pick()
        self.ledger.killed_at[member.pid] = time.time()
        member.kill()
        member.wait()
        self.fleet.replace(member)

    async def _freeze(self) -> None:
        member = self.fleet.pick()
        member.send_signal(signal.SIGSTOP)
        await asyncio.sleep(random.uniform(0.5, self.freeze_seconds))
        member.send_signal(signal.SIGCONT)

    async def _cut(self) -> None:
        """Cut one at a time: without any subscription a PUBLISH would be lost."""
        with contextlib.suppress(RedisError, OSError):
            clients = await self.redis.client_list(_type=random.choice(["normal", "pubsub"]))
            await self.redis.client_kill_filter(_id=random.choice(clients)["id"], skipme=True)
