"""When cron and speedrun make runs: each slot and each turn is taken once, whoever comes first."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.executor.store.orders import NORMAL, Order
from services.executor.store.scripts import Scripts, asking
from shared import keys

CYCLE_MADE_WITHIN_MS = 10_000


@dataclass(frozen=True, slots=True)
class Plan:
    """A schedule as it is noted.  `next_ms` is its next slot (UTC), None when it has none."""

    experiment_id: str
    text: str
    next_ms: int | None

    @property
    def next_argument(self) -> int | str:
        """`next_ms` as the scripts take it."""
        return "" if self.next_ms is None else self.next_ms


class Slots:
    """Cron slots and speedrun turns."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def now_ms(self) -> int:
        """Redis' clock: the one that all workers agree on."""
        async with asking("now_ms"):
            seconds, micros = await self._scripts.client.time()
        return int(seconds * 1_000 + micros // 1_000)

    async def all(self) -> dict[str, int]:
        """Every experiment with a next slot (UTC ms)."""
        async with asking("all"):
            pairs = await self._scripts.client.zrange(keys.slots(), 0, -1, withscores=True)
        return {name: int(score) for name, score in pairs}

    async def due(self, now_ms: int, limit: int = 500) -> list[tuple[str, int]]:
        """The slots that are due, earliest first."""
        async with asking("due"):
            pairs = await self._scripts.client.zrange(
                keys.slots(), "-inf", str(now_ms), byscore=True, offset=0, num=limit, withscores=True
            )
        return [(name, int(score)) for name, score in pairs]

    async def next(self) -> int | None:
        """When the earliest slot is (UTC ms), or None."""
        async with asking("next"):
            pairs = await self._scripts.client.zrange(keys.slots(), 0, 0, withscores=True)
        return int(pairs[0][1]) if pairs else None

    async def plan(self, plans: Sequence[Plan]) -> list[str]:
        """Note schedules as they are written now; a waiting slot stays unless its schedule changed.

        Returns:
            The experiments whose schedule is new or changed, told to one worker only.
        """
        if not plans:
            return []
        changed = await self._scripts.call(
            "plan",
            [keys.slots(), keys.plans()],
            [part for one in plans for part in (one.experiment_id, one.text, one.next_argument)],
        )
        return list(changed)

    async def drop(self, experiment_ids: Sequence[str]) -> None:
        """These have no schedule any more."""
        if experiment_ids:
            async with asking("drop"):
                await self._scripts.client.zrem(keys.slots(), *experiment_ids)
                await self._scripts.client.hdel(keys.plans(), *experiment_ids)

    async def planned(self) -> list[str]:
        """The experiments whose schedules are noted."""
        async with asking("planned"):
            return list(await self._scripts.client.hkeys(keys.plans()))

    async def has_open_runs(self, experiment_id: str) -> bool:
        """Whether a run of the experiment is queued, running or between attempts."""
        async with asking("has_open_runs"):
            return bool(await self._scripts.client.exists(keys.open_runs(experiment_id)))

    async def fire(
        self, experiment_id: str, slot_ms: int, next_ms: int | None, orders: Sequence[Order], overlap: str
    ) -> str:
        """Move on from `slot_ms` and queue `orders`.

        Returns:
            `fired`, `skipped` (overlap), `passed` (no orders) or `taken` (by another worker).
        """
        answer = await self._scripts.call(
            "fire",
            [
                keys.slots(),
                keys.queue(orders[0].priority if orders else NORMAL),
                keys.open_runs(experiment_id),
            ],
            [
                experiment_id,
                slot_ms,
                "" if next_ms is None else next_ms,
                overlap,
                *(order.to_json() for order in orders),
            ],
        )
        return str(answer)

    async def cycle(self, worker: str) -> float:
        """Seconds until speedrun's next cycle; 0 when it is to be made by `worker` now, and by nobody else.

        Whoever is to make it calls `speedrun`.  Should it die before, another one may after a while.
        """
        left_ms = await self._scripts.call("cycle", [keys.cycle()], [worker, CYCLE_MADE_WITHIN_MS])
        return float(left_ms / 1_000)

    async def speedrun(
        self, orders: Sequence[Order], interval_seconds: float, turns: int
    ) -> tuple[float, list[str]]:
        """Give turns to those of `orders` whose experiments waited longest.

        Returns:
            Seconds until the next cycle, and the experiments that got a turn in this one.
        """
        left_ms, *chosen = await self._scripts.call(
            "speedrun",
            [
                keys.cycle(),
                keys.turns(),
                *(
                    key
                    for one in orders
                    for key in (keys.open_runs(one.experiment_id), keys.queue(one.priority))
                ),
            ],
            [
                max(1, round(interval_seconds * 1_000)),
                turns,
                *(part for one in orders for part in (one.experiment_id, one.to_json())),
            ],
        )
        return left_ms / 1_000, list(chosen)
