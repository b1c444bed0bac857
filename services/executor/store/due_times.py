"""Due times of cron and turns of speedrun: each becomes runs once, whichever worker comes first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from services.executor.store.claims import CLAIM_ARGUMENTS, NOTHING_TAKEN, Claims, Taken
from services.executor.store.orders import Order
from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.errors import ContractError
from shared.schedules import Schedule
from shared.stored import Stored, prepare_stored, read_stored, read_stored_schedule

CYCLE_PREPARED_WITHIN_MS = 10_000

_NOTE_SCHEDULES = Script(
    "note_schedules",
    keys=("due_times", "noted_schedules"),
    args=("experiments[]", "texts[]", "next_ms[]"),
)
_DUE = Script("due", keys=("due_times", "noted_schedules"), args=("within_ms", "most", "open_runs_prefix"))
_FIRE = Script(
    "fire",
    keys=("due_times", "open_runs"),
    args=("experiment_id", "due_ms", "next_ms", "overlap", "digest", *CLAIM_ARGUMENTS, "orders[]"),
)
_SPEEDRUN = Script(
    "speedrun",
    keys=("cycle", "turns", "run_keys[]"),
    args=("interval_ms", "most", "experiments[]", "orders[]"),
)


@dataclass(frozen=True, slots=True)
class NotedSchedule:
    """A schedule's text, and the due time that was computed from it (UTC ms); None when it has none."""

    experiment_id: str
    text: str
    next_ms: int | None


@dataclass(frozen=True, slots=True)
class DueTime:
    """A due time (UTC ms), and everything that decides about it, read at one moment.

    `noted` is the schedule's text as `note` noted it, or ""; None if it can't be read.  `digest` is the
    same as long as the schedule, the experiment and whether runs are open.
    """

    experiment_id: str
    due_ms: int
    noted: str | None
    schedule: Schedule | ContractError | None
    stored: Stored
    has_open_runs: bool
    digest: str

    @classmethod
    def read(cls, answer: Any) -> Self:
        """Read what `due.lua` returns for one."""
        experiment_id, due, noted, schedule, experiment, is_open, digest = answer
        return cls(
            experiment_id,
            int(due),
            noted,
            read_stored_schedule(experiment_id, *schedule),
            read_stored(experiment_id, *experiment),
            bool(is_open),
            digest,
        )


@dataclass(frozen=True, slots=True)
class FoundDue:
    """What is due, the first due time after it (UTC ms), and Redis' clock (microseconds)."""

    due: Sequence[DueTime]
    following_ms: int | None
    now_us: int


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a due time: `orders` are queued as `overlap` says, and `next_ms` is due next.

    If it was decided before the due time, `digest` is that of what was decided by.
    """

    experiment_id: str
    due_ms: int
    next_ms: int | None
    orders: Sequence[Order]
    overlap: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Fired:
    """What became of a due time, and how late (ms, by Redis' clock).

    `what` is `fired`, `skipped` (by overlap) or `dropped` (there were no orders).  Or nothing was done:
    `taken` (by another worker), `changed` (what was decided by) or `early`.
    """

    what: str
    late_ms: int
    taken: Taken = NOTHING_TAKEN


class DueTimes:
    """Due times of cron, and turns of speedrun.

    Args:
        scripts: for transitions.
        claims: begins what is handed out.
    """

    def __init__(self, scripts: Scripts, claims: Claims) -> None:
        self._scripts = scripts
        self._claims = claims

    async def now_ms(self) -> int:
        """Redis' clock, which is the one that all workers agree on."""
        async with asking("now_ms"):
            seconds, micros = await self._scripts.client.time()
        return int(seconds * 1_000 + micros // 1_000)

    async def all(self) -> dict[str, int]:
        """The next due time (UTC ms) of every experiment that has one."""
        async with asking("all"):
            pairs = await self._scripts.client.zrange(keys.due_times(), 0, -1, withscores=True)
        return {name: int(score) for name, score in pairs}

    async def note(self, schedules: Sequence[NotedSchedule]) -> list[str]:
        """Note schedules as they are written now; a due time stays unless its schedule changed.

        Returns:
            The experiments whose schedule is new or changed, told to one worker only.
        """
        if not schedules:
            return []
        changed = await self._scripts.call(
            _NOTE_SCHEDULES,
            [keys.due_times(), keys.noted_schedules()],
            [
                [one.experiment_id for one in schedules],
                [one.text for one in schedules],
                [_text(one.next_ms) for one in schedules],
            ],
        )
        return list(changed)

    async def drop(self, experiment_ids: Sequence[str]) -> None:
        """Forget schedules that are gone."""
        if experiment_ids:
            async with asking("drop"):
                await self._scripts.client.zrem(keys.due_times(), *experiment_ids)
                await self._scripts.client.hdel(keys.noted_schedules(), *experiment_ids)

    async def noted(self) -> list[str]:
        """The experiments whose schedules are noted."""
        async with asking("noted"):
            return list(await self._scripts.client.hkeys(keys.noted_schedules()))

    async def has_open_runs(self, experiment_id: str) -> bool:
        """Whether a run of the experiment is queued, running or between attempts."""
        async with asking("has_open_runs"):
            return bool(await self._scripts.client.exists(keys.open_runs(experiment_id)))

    async def due(self, within_ms: int = 0, most: int = 100) -> FoundDue:
        """What is due within `within_ms` by Redis' clock, at most `most`, earliest first."""
        found, following, now_us = await self._scripts.call(
            _DUE, [keys.due_times(), keys.noted_schedules()], [within_ms, most, keys.open_runs("")]
        )
        due: list[DueTime] = []
        for one in found:
            _, _, _, _, experiment, *_ = one
            await prepare_stored(*experiment)
            due.append(DueTime.read(one))  # at once, while what was prepared is kept
        return FoundDue(due, int(following) if following else None, now_us)

    async def fire(self, decision: Decision, worker: str = "", room: int = 0) -> Fired:
        """Carry out a decision, unless another worker was first; hand up to `room` orders to `worker`.

        If the answer is lost, `worker` holds what was handed out without knowing, as after a claim.
        """
        what, now_us, handed_out = await self._scripts.call(
            _FIRE,
            [keys.due_times(), keys.open_runs(decision.experiment_id)],
            [
                decision.experiment_id,
                decision.due_ms,
                _text(decision.next_ms),
                decision.overlap,
                decision.digest,
                *self._claims.arguments(worker, room),
                [order.encode() for order in decision.orders],
            ],
        )
        return Fired(what, now_us // 1_000 - decision.due_ms, await self._claims.read(worker, handed_out))

    async def cycle(self, worker: str) -> float:
        """Seconds until speedrun's next cycle; 0 when `worker`, and nobody else, is to prepare it now.

        That worker calls `speedrun`.  If it dies before, another one may after a while.
        """
        client, key = self._scripts.client, keys.cycle()
        async with asking(f"cycle at {key}"):
            if await client.set(key, worker, nx=True, px=CYCLE_PREPARED_WITHIN_MS):
                return 0
            if await client.get(key) == worker:  # the answer to the first call was lost
                return 0
            left_ms = await client.pttl(key)
            if left_ms == -1:  # somebody else has written the key, which would stay for ever
                left_ms = CYCLE_PREPARED_WITHIN_MS
                await client.pexpire(key, left_ms)
        return max(1, int(left_ms)) / 1_000

    async def speedrun(
        self, orders: Sequence[Order], interval_seconds: float | None, turns: int
    ) -> tuple[float, list[str]]:
        """Queue those of `orders` whose experiments have waited longest for a turn.

        Args:
            orders: one for each experiment.
            interval_seconds: how long the cycle takes; None gives turns that are left of the one under way,
                to experiments that never had one.
            turns: how many there are.

        Returns:
            Seconds until the next cycle, and the experiments that got a turn in this one.
        """
        run_keys = [
            key for one in orders for key in (keys.open_runs(one.experiment_id), keys.queue(one.priority))
        ]
        left_ms, *chosen = await self._scripts.call(
            _SPEEDRUN,
            [keys.cycle(), keys.turns(), *run_keys],
            [
                "" if interval_seconds is None else max(1, round(interval_seconds * 1_000)),
                turns,
                [one.experiment_id for one in orders],
                [one.encode() for one in orders],
            ],
        )
        return left_ms / 1_000, list(chosen)


def _text(moment_ms: int | None) -> int | str:
    """A moment as the scripts take it: "" for none."""
    return "" if moment_ms is None else moment_ms
