"""A sitting while it goes on: others see that the plan is being executed, and can have it end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from services.planner.cancellation import CancellationToken
from services.planner.registry import Registry
from shared.errors import FullsendError, PlanError

WATCH_SECONDS: Final = 0.5
INTERRUPTED: Final = "interrupted"


class Seat:
    """The place of who executes a plan, for one sitting.

    Attributes:
        registry: of the plan.
        number: of the sitting.
        token: cancelled as soon as somebody wants the end, here or in another process.
        stopped: why the sitting ends before all its cases have run; None when it doesn't.
    """

    def __init__(self, registry: Registry, number: int) -> None:
        self.registry = registry
        self.number = number
        self.token = CancellationToken()
        self.stopped: str | None = None


@contextlib.asynccontextmanager
async def seat(
    registry: Registry, backend: str, cases: int, token: CancellationToken | None = None
) -> AsyncIterator[Seat]:
    """Take the plan up, alone (see `ownership.alone`); at the end of the block the sitting is over.

    Args:
        registry: of the plan.
        backend: its name.
        cases: how many are to be run.
        token: ends it, besides who asks for that through the registry.

    Raises:
        PlanError: the registry can't be written.
    """
    taken = Seat(registry, await asyncio.to_thread(registry.begin, backend, cases))
    watches = [asyncio.create_task(_heed(taken), name="sitting")]
    if token is not None:
        watches.append(asyncio.create_task(relay(token, taken.token), name="token"))
    try:
        yield taken
    except BaseException as exc:
        taken.stopped = taken.token.reason or (str(exc) if isinstance(exc, FullsendError) else INTERRUPTED)
        raise
    finally:
        for watch in watches:
            watch.cancel()
        await asyncio.shield(asyncio.to_thread(registry.end, taken.number, taken.stopped))
        await asyncio.gather(*watches, return_exceptions=True)


async def relay(token: CancellationToken, to: CancellationToken) -> None:
    """Pass the wish to end on to another token; until cancelled."""
    to.cancel(await token.wait())


async def _heed(taken: Seat) -> None:
    """Show that this process is there, and look whether another one wants the end."""
    while True:
        with contextlib.suppress(PlanError):  # a registry in trouble stops the plan by itself
            asked = await asyncio.to_thread(taken.registry.beat, taken.number)
            if asked is not None:
                taken.token.cancel(asked)
        await asyncio.sleep(WATCH_SECONDS)
