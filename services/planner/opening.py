"""Has a plan's backend open for as long as the plan is executed."""

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TypeAlias

from services.planner.backends import Backend
from services.planner.execution import Executor

Source: TypeAlias = Executor | Callable[[], Backend]
"""One that is ready in the event loop of its use, or a function that makes one for each use."""


@contextlib.asynccontextmanager
async def opened(source: Source) -> AsyncIterator[Executor]:
    """What executes inside the block.

    Raises:
        PlanError: it is not open, or open in another event loop; says what to do.
        FullsendError: what was made can't be opened.
    """
    if callable(source):
        async with source() as backend:
            yield backend
    else:
        check_open(source)
        yield source


def check_open(executor: Executor) -> None:
    """Raises `PlanError` if it says itself that it isn't open in the running event loop."""
    check = getattr(executor, "check_open", None)
    if check is not None:
        check()
