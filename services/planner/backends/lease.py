"""The lease on a plan in Redis: one planner at a time queues the runs of a plan."""

import asyncio
import contextlib
import dataclasses
import json
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from services.executor.store import Store
from services.planner.plan.session import Owner
from shared.backoff import Outage, shutdown_timeout
from shared.documents import json_text
from shared.errors import PlanError, StoreError

LEASE_SECONDS: Final = 15.0
"""How long a lease lasts when its planner stops renewing it."""


class Lease:
    """The right to queue the runs of a plan, which expires unless it is renewed.

    Args:
        store: of the executors' Redis.
        experiment_id: the experiment of the plan's runs.
        seconds: how long the lease lasts without a renewal.
        now: the clock.
    """

    def __init__(
        self,
        store: Store,
        experiment_id: str,
        seconds: float = LEASE_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._experiment_id = experiment_id
        self._seconds = seconds
        self._now = now
        self._text = ""

    async def take(self) -> None:
        """Take the lease.

        Raises:
            PlanError: another planner holds it, and isn't known to have ended; the message names it.
            StoreError: Redis doesn't answer.
        """
        owner, since = dataclasses.asdict(Owner.myself()), self._now().isoformat(timespec="seconds")
        self._text = json_text({**owner, "since": since, "token": secrets.token_hex(8)})
        other = await self._ask(self._seconds)
        if other and _is_gone(other):
            other = await self._ask(self._seconds, other)
        if other:
            raise PlanError(
                f"{self._describe(other)}, in another copy of its directory; `fullsend plan cancel` stops it "
                f"there; if that process has died, its lease ends {self._seconds:g} s after its death"
            )

    async def keep(self) -> str:
        """Renew the lease until cancelled; return only if another planner has taken it, and say which."""
        outage, pause_seconds = Outage("plan"), self._seconds / 3
        while True:
            await asyncio.sleep(pause_seconds)
            try:
                other = await self._ask(self._seconds)
            except StoreError as exc:
                pause_seconds = outage.failed(exc)
                continue
            outage.ended()
            pause_seconds = self._seconds / 3
            if other:
                return self._describe(other)

    async def leave(self) -> None:
        """Release the lease; if Redis is unavailable, it expires by itself."""
        with contextlib.suppress(StoreError):
            async with shutdown_timeout():
                await self._ask(0)

    async def _ask(self, seconds: float, gone: str = "") -> str:
        return await self._store.submissions.lease(self._experiment_id, self._text, seconds, gone)

    def _describe(self, other: str) -> str:
        plan = self._experiment_id.partition(":")[2]
        try:
            return f"{plan} is being executed by {_owner(other)} since {json.loads(other)['since']}"
        except (ValueError, TypeError, KeyError):
            return f"{plan} is being executed by a planner whose lease says {other!r:.80}"


def _is_gone(planner: str) -> bool:
    try:
        return _owner(planner).is_gone
    except (ValueError, TypeError, KeyError):
        return False


def _owner(planner: str) -> Owner:
    members = json.loads(planner)
    return Owner(str(members["host"]), int(members["pid"]), str(members["started"]))
