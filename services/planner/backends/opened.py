"""Where a backend is open: what it is made of belongs to one event loop."""

import asyncio

from shared.errors import PlanError

INSTEAD = "or give a function that makes a backend, which is opened for the time of each call"


class Opened:
    """In which event loop a backend is open.

    Args:
        name: of the backend, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is, anywhere."""
        return self._loop is not None

    def here(self) -> None:
        """In the running one."""
        self._loop = asyncio.get_running_loop()

    def nowhere(self) -> None:
        """In none any more."""
        self._loop = None

    def check(self) -> None:
        """Raises `PlanError` unless it is in the running one; says what to do."""
        if self._loop is None:
            raise PlanError(
                f"the {self._name} is not open: execute the plan inside `async with backend:`, {INSTEAD}"
            )
        if self._loop is not asyncio.get_running_loop():
            raise PlanError(
                f"the {self._name} was opened in another event loop: there, await `run_manifest_async` or "
                f"`execute_test_plan_async`, {INSTEAD}"
            )
