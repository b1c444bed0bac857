"""Where runs are executed: one module each, all behind one protocol, found by name in one table."""

from importlib import import_module
from types import TracebackType
from typing import Any, Final, Protocol, Self

from services.planner.execution import Executor
from shared.errors import PlanError

BACKENDS: Final = {
    "local": "services.planner.backends.local:LocalBackend",
    "fleet": "services.planner.backends.fleet:FleetBackend",
}
"""The class of each backend, imported when it is asked for."""


class Backend(Executor, Protocol):
    """An executor of many calls at once; an async context manager.

    Whatever it needs (processes, connections, machines) is there inside the block and
    gone after it; calls still under way at its end are cancelled.
    """

    @property
    def capacity(self) -> int:
        """How many calls at once make sense."""

    def check_open(self) -> None:
        """Raises `PlanError` unless it is open in the running event loop; says what to do."""

    async def __aenter__(self) -> Self:
        """Have it ready.  Raises `FullsendError` if it can't be."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave nothing behind."""


def backend_class(name: str) -> Any:
    """The class of a backend, by its name in the table or as `module:Class`.

    Raises:
        PlanError: there is none of that name, or what it needs isn't installed.
    """
    place = BACKENDS.get(name, name)
    module, _, attribute = place.partition(":")
    if not attribute:
        known = ", ".join(BACKENDS)
        raise PlanError(f"there is no backend {name!r}; known are {known}, or give module:Class")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise PlanError(f"the backend {name!r} can't be imported: {exc}") from None
