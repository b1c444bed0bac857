"""A plan on the executors has one planner at a time, whatever became of the one before."""

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
"""A planner that has not been heard of for so long is gone."""


class Lease:
    """The right to queue a plan's runs, which expires unless it is renewed.

    Args:
        store: on the executors' Redis.
        experiment_id: of the plan's runs.
        seconds: until it expires.
        now: tells the time.
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
        """Have it, as long as it is kept.

        Raises:
            PlanError: another planner has it, and isn't known to be gone; says who.
            StoreError: Redis doesn't answer.
        """
        owner, since = dataclasses.asdict(Owner.myself()), self._now().isoformat(timespec="seconds")
        self._text = json_text({**owner, "since": since, "token": secrets.token_hex(8)})
        other = await self._ask(self._seconds)
        if other and _is_gone(other):
            other = await self._ask(self._seconds, other)
        if other:
            raise PlanError(
                f"{self._told(other)}, in another copy of its directory; `fullsend plan cancel` ends it "
                f"there, and if it is dead already, its claim ends {self._seconds:g} s after its death"
            )

    async def keep(self) -> str:
        """Renew it until cancelled; returns only if another planner has it now, and says so."""
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
                return self._told(other)

    async def leave(self) -> None:
        """Let others have it at once; if Redis is away, they wait until it expires."""
        with contextlib.suppress(StoreError):
            async with shutdown_timeout():
                await self._ask(0)

    async def _ask(self, seconds: float, gone: str = "") -> str:
        return await self._store.submissions.lease(self._experiment_id, self._text, seconds, gone)

    def _told(self, other: str) -> str:
        plan = self._experiment_id.partition(":")[2]
        try:
            return f"{plan} is being executed by {_owner(other)} since {json.loads(other)['since']}"
        except (ValueError, TypeError, KeyError):
            return f"{plan} is being executed by somebody who says only {other!r:.80}"


def _is_gone(planner: str) -> bool:
    try:
        return _owner(planner).is_gone
    except (ValueError, TypeError, KeyError):
        return False


def _owner(planner: str) -> Owner:
    members = json.loads(planner)
    return Owner(str(members["host"]), int(members["pid"]), str(members["started"]))
