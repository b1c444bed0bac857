"""Where runs are executed: one module each, all behind one protocol, found by name in one table."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from importlib import import_module
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias

from services.planner.execution import Execution, Executor
from shared.canonical_json import canonical_json
from shared.errors import PlanError, ToolParameterError

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


INSTEAD = "or give a function that makes a backend, which is opened for the time of each call"


class LoopBinding:
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

    def bind(self) -> None:
        """In the running one."""
        self._loop = asyncio.get_running_loop()

    def unbind(self) -> None:
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


def check_parameters(call: Execution) -> None:
    """Raises `ToolParameterError` for parameters that JSON can't hold."""
    try:
        canonical_json(call.parameters)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ToolParameterError(f"the parameters can't be sent to the tool: {exc}") from None


BackendSource: TypeAlias = Executor | Callable[[], Backend]
"""One that is ready in the event loop of its use, or a function that makes one for each use."""


@contextlib.asynccontextmanager
async def open_backend(source: BackendSource) -> AsyncIterator[Executor]:
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
