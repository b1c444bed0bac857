"""Runs that a planner submits: each is queued once, and the progress of many is read at a time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.errors import StoreError


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run has come.

    Attributes:
        is_open: whether it has not ended yet.
        status: of its record; None if it has no record.
    """

    is_open: bool
    status: str | None


class Submissions:
    """The runs that a planner submits under one experiment's id."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    async def forget(self, experiment_id: str, token: str) -> None:
        """Forget a token: the order that was submitted with it will not be sent again."""
        async with asking("forget"):
            await self._scripts.client.unlink(keys.request(experiment_id, token))

    async def lease(self, experiment_id: str, planner: str, ttl_seconds: float, gone: str = "") -> str:
        """Reserve the runs under an experiment's id for one planner.

        Args:
            experiment_id: whose runs these are.
            planner: a text that no other planner uses.
            ttl_seconds: when another planner may have them, unless this is called again; 0 gives them up.
            gone: another planner that is known to be dead.

        Returns:
            The other planner that has them, or "" if this planner has them.
        """
        key, ttl_ms = keys.planner(experiment_id), round(ttl_seconds * 1_000)

        async def take(pipe: Any) -> str:
            kind = await pipe.type(key)
            if kind not in ("string", "none"):
                raise StoreError(f"WRONGTYPE {key} is a Redis {kind}; expected a string")
            holder, left_ms = await pipe.get(key), await pipe.pttl(key)
            pipe.multi()
            if holder not in (None, planner, gone):
                if ttl_ms and left_ms < 0:  # somebody else wrote the key, and it would never expire
                    pipe.pexpire(key, ttl_ms)
                return str(holder)
            if ttl_ms:
                pipe.set(key, planner, px=ttl_ms)
            else:
                pipe.delete(key)
            return ""

        async with asking("lease"):
            other: str = await self._scripts.client.transaction(take, key, value_from_callable=True)
        return other

    async def open_runs(self, experiment_id: str) -> list[str]:
        """The ids of the runs that have not ended, oldest first."""
        async with asking("open_runs"):
            timestamps = await self._scripts.client.zrange(keys.open_runs(experiment_id), 0, -1)
        return [f"{experiment_id}:{one}" for one in sorted(timestamps)]

    async def progress(self, experiment_id: str, run_ids: Sequence[str]) -> dict[str, RunProgress]:
        """The progress of each of the runs, all at one moment."""
        if not run_ids:
            return {}
        timestamps = [run_id.rpartition(":")[2] for run_id in run_ids]
        async with asking("progress"), self._scripts.client.pipeline(transaction=True) as pipe:
            pipe.zmscore(keys.open_runs(experiment_id), timestamps)
            for run_id in run_ids:
                pipe.hget(keys.run(run_id), "status")
            scores, *statuses = await pipe.execute()
        return {
            run_id: RunProgress(score is not None, status)
            for run_id, score, status in zip(run_ids, scores, statuses, strict=True)
        }
