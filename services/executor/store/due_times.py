"""When cron and speedrun make runs: each slot and each turn is taken once, whoever comes first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from services.executor.store.deliveries import GROUP, Deliveries
from services.executor.store.experiments import Stored, read_stored, read_stored_schedule
from services.executor.store.orders import NORMAL, Claim, Order
from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.errors import ContractError
from shared.messages import Schedule

CYCLE_MADE_WITHIN_MS = 10_000

_PLAN = Script("plan", keys=("slots", "plans"), args=("experiments[]", "texts[]", "next_slots[]"))
_AHEAD = Script("ahead", keys=("slots", "plans"), args=("within_ms", "offset", "most", "open_runs"))
_FIRE = Script(
    "fire",
    keys=("slots", "queue", "open_runs", "plans"),
    args=(
        "experiment", "due_ms", "next_ms", "overlap", "mark", "until_ms", "only_if_open", "group", "worker",
        "room", "orders[]",
    ),
)  # fmt: skip
_CYCLE = Script("cycle", keys=("cycle",), args=("worker", "kept_ms"))
_SPEEDRUN = Script(
    "speedrun",
    keys=("cycle", "turns", "run_keys[]"),
    args=("interval_ms", "most", "experiments[]", "orders[]"),
)


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


@dataclass(frozen=True, slots=True)
class Seen:
    """All that decides what becomes of an experiment's slot, at one moment.

    As long as `mark` is the same, the schedule and the experiment are.
    """

    mark: str
    schedule: Schedule | ContractError | None
    stored: Stored
    has_open_runs: bool

    @classmethod
    def read(cls, experiment_id: str, answer: Any) -> Self:
        """What `seen.lua` returns."""
        mark, schedule, experiment, is_open = answer
        return cls(
            mark,
            read_stored_schedule(experiment_id, *schedule),
            read_stored(experiment_id, *experiment),
            bool(is_open),
        )


@dataclass(frozen=True, slots=True)
class Upcoming:
    """A slot (UTC ms).  `noted` is its schedule as `plan` noted it, or ""; None if that can't be told."""

    experiment_id: str
    slot_ms: int
    noted: str | None
    seen: Seen

    @classmethod
    def read(cls, experiment_id: str, slot: str, noted: str | None, seen: Any) -> Self:
        """What scripts return of a slot."""
        return cls(experiment_id, int(slot), noted, Seen.read(experiment_id, seen))


@dataclass(frozen=True, slots=True)
class Ahead:
    """The slots that come next, the first slot after these (UTC ms), and Redis' clock (microseconds)."""

    slots: Sequence[Upcoming]
    following_ms: int | None
    now_us: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to become of a slot: go on with `next_ms`, and queue `orders` as `overlap` says.

    Of one that was made ahead, `mark` is that of what was `Seen`, `until_ms` the last moment
    for which it holds, and with `only_if_open` nothing is queued unless runs are open.
    """

    experiment_id: str
    slot_ms: int
    next_ms: int | None
    orders: Sequence[Order]
    overlap: str
    mark: str = ""
    until_ms: int | None = None
    only_if_open: bool = False


@dataclass(frozen=True, slots=True)
class Fired:
    """What has become of a slot, how late that was, and Redis' clock (microseconds).

    `what` is `fired`, `skipped` (overlap), `passed` (no orders) or `taken` (by another worker).
    Or nothing was done: it is too `early`, or all has `changed` to what is `found` now.
    """

    what: str
    late_ms: int
    now_us: int
    claims: Sequence[Claim] = ()
    found: Upcoming | None = None


class Slots:
    """Cron slots and speedrun turns.

    Args:
        scripts: for transitions.
        deliveries: reads what is handed out.
    """

    def __init__(self, scripts: Scripts, deliveries: Deliveries) -> None:
        self._scripts = scripts
        self._deliveries = deliveries

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

    async def plan(self, plans: Sequence[Plan]) -> list[str]:
        """Note schedules as they are written now; a waiting slot stays unless its schedule changed.

        Returns:
            The experiments whose schedule is new or changed, told to one worker only.
        """
        if not plans:
            return []
        changed = await self._scripts.call(
            _PLAN,
            [keys.slots(), keys.plans()],
            [
                [one.experiment_id for one in plans],
                [one.text for one in plans],
                [one.next_argument for one in plans],
            ],
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

    async def ahead(self, within_ms: int, passed_over: int = 0, most: int = 100) -> Ahead:
        """The slots that are due within `within_ms`, earliest first, without the first `passed_over`."""
        found, following, now_us = await self._scripts.call(
            _AHEAD, [keys.slots(), keys.plans()], [within_ms, passed_over, most, keys.open_runs("")]
        )
        return Ahead([Upcoming.read(*one) for one in found], int(following) if following else None, now_us)

    async def fire(self, decision: Decision, worker: str = "", room: int = 0) -> Fired:
        """Move on from the slot as was decided, and take up to `room` orders of the same priority with it.

        What `worker` takes in an answer that is lost, it holds without knowing, as after a claim.
        """
        what, now_us, claims, experiments, *changed = await self._scripts.call(
            _FIRE, _keys_of(decision), [*_arguments_of(decision), GROUP, worker, room, _texts_of(decision)]
        )
        return Fired(
            what,
            now_us // 1_000 - decision.slot_ms,
            now_us,
            await self._deliveries.handed_out(worker, claims, experiments),
            Upcoming.read(*changed[0]) if changed else None,
        )

    async def cycle(self, worker: str) -> float:
        """Seconds until speedrun's next cycle; 0 when it is to be made by `worker` now, and by nobody else.

        Whoever is to make it calls `speedrun`.  Should it die before, another one may after a while.
        """
        left_ms = await self._scripts.call(_CYCLE, [keys.cycle()], [worker, CYCLE_MADE_WITHIN_MS])
        return float(left_ms / 1_000)

    async def speedrun(
        self, orders: Sequence[Order], interval_seconds: float, turns: int
    ) -> tuple[float, list[str]]:
        """Give turns to those of `orders` whose experiments waited longest.

        Returns:
            Seconds until the next cycle, and the experiments that got a turn in this one.
        """
        left_ms, *chosen = await self._scripts.call(
            _SPEEDRUN,
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
                [one.experiment_id for one in orders],
                [one.to_json() for one in orders],
            ],
        )
        return left_ms / 1_000, list(chosen)


def _keys_of(decision: Decision) -> list[str]:
    priority = decision.orders[0].priority if decision.orders else NORMAL
    return [keys.slots(), keys.queue(priority), keys.open_runs(decision.experiment_id), keys.plans()]


def _arguments_of(decision: Decision) -> list[str | int]:
    return [
        decision.experiment_id,
        decision.slot_ms,
        "" if decision.next_ms is None else decision.next_ms,
        decision.overlap,
        decision.mark,
        "" if decision.until_ms is None else decision.until_ms,
        int(decision.only_if_open),
    ]


def _texts_of(decision: Decision) -> list[str]:
    return [order.to_json() for order in decision.orders]
