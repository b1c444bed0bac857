"""Where runs are executed: one module for each backend, behind one protocol, listed in one table.

To add a backend, write a class with the methods of `Backend` and `PlanBackend`, and add a line to
`BACKENDS`: the command offers every backend of the table.  One that knows what its runs cost also has
`plan_tariff`, see `services.planner.cost.tariffs`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias

from packaging.requirements import Requirement

from services.executor.artifacts.modal_volume import MODAL
from services.executor.store import Store
from services.planner.backends.modal_options import ModalOptions
from services.planner.execution import Execution, Executor
from services.planner.runtime import ToolRuntime
from shared.canonical_json import canonical_json
from shared.errors import PlanError, ToolParameterError

# -- the table ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BackendEntry:
    """What is known of a backend before its module is imported.

    Attributes:
        place: `module:Class`.
        help: where its cases run, in a few words, for the command's help.
        uses_redis: whether its cases run on executors that share a Redis, which then also has
            the durations of earlier runs.
        requires: the package that it needs besides those of the base installation, as pip reads it; the
            extra of the backend's name installs it.
        default_concurrency: cases at once that the command asks for where nobody says how many;
            None for one for each CPU of this machine.
    """

    place: str
    help: str
    uses_redis: bool = False
    requires: str = ""
    default_concurrency: int | None = None


BACKENDS: Final[Mapping[str, BackendEntry]] = {
    "local": BackendEntry(
        "services.planner.backends.local:LocalBackend",
        help="in processes of this command",
    ),
    "fleet": BackendEntry(
        "services.planner.backends.fleet:FleetBackend",
        help="on the executors that share one Redis",
        uses_redis=True,
        default_concurrency=1_000,  # more than executors take, so that their capacity is the limit
    ),
    "dask": BackendEntry(
        "services.planner.backends.dask_backend:DaskBackend",
        help="on the workers of a Dask cluster",
        requires="distributed>=2026.7,<2027",
        default_concurrency=1_000,
    ),
    "modal": BackendEntry(
        "services.planner.backends.modal_backend:ModalBackend",
        help="in containers on Modal",
        requires=MODAL,
        default_concurrency=50,
    ),
}
"""All backends by name."""

DEFAULT_BACKEND: Final = "local"


def backend_class(name: str) -> Any:
    """Import the class of a backend.

    Args:
        name: a name of the table, or `module:Class`.

    Raises:
        PlanError: there is no such backend, or a package that it needs is not installed.
    """
    place = BACKENDS[name].place if name in BACKENDS else name
    module, _, attribute = place.partition(":")
    if not attribute:
        known = ", ".join(BACKENDS)
        raise PlanError(f"there is no backend {name!r}; known are {known}, or give module:Class")
    if name in BACKENDS and (needed := BACKENDS[name].requires) and not _is_installed(needed):
        raise PlanError(
            f"the backend {name!r} needs another package; install it with: python -m pip install '{needed}'"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise PlanError(f"the backend {name!r} can't be imported: {exc}") from None


def _is_installed(requirement: str) -> bool:
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(version(wanted.name), prereleases=True)
    except PackageNotFoundError:
        return False


def backend_name(backend: Executor) -> str:
    """Return the name of a backend in the table, or its `module:Class`."""
    place = f"{type(backend).__module__}:{type(backend).__qualname__}"
    return next((name for name, entry in BACKENDS.items() if entry.place == place), place)


# -- the protocols --------------------------------------------------------------------


class Backend(Executor, Protocol):
    """An executor of many calls at once; an async context manager.

    What it needs (processes, connections, machines) exists inside the block.  Calls that still
    run at its end are cancelled.
    """

    @property
    def capacity(self) -> int:
        """How many calls at once make sense; may change while the backend is open."""

    def check_open(self) -> None:
        """Raise `PlanError`, which says what to do, unless it is open in the running event loop."""

    async def __aenter__(self) -> Self:
        """Open it.  Raises `FullsendError` if that fails."""

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it; nothing is left behind."""


@dataclass(frozen=True, slots=True)
class PlanContext:
    """What a command has for the backend of a plan.

    Attributes:
        plan_id: the name of the plan, which no other plan has.
        concurrency: cases at once that the plan asks for.
        has_evaluator: whether evaluations run beside the cases.
        storage_type, storage_base: of the store of artifacts in the settings.
        make_runtime: makes a runtime on this machine for so many calls at once; what runs there
            is stored with the plan.
        connect: opens the Redis of the executors.
        tell: receives lines for the user.
        dask_scheduler: the address of a Dask scheduler, or `local`; None if it was not given.
        modal: what the containers on Modal get.
        core_hour_price, price_currency: what an hour of a core of the operator's machines costs; 0 if that is
            not known.
    """

    plan_id: str
    concurrency: int
    has_evaluator: bool
    storage_type: str
    storage_base: str
    make_runtime: Callable[[int], ToolRuntime]
    connect: Callable[[], contextlib.AbstractAsyncContextManager[Store]]
    tell: Callable[[str], None]
    dask_scheduler: str | None = None
    modal: ModalOptions = field(default_factory=ModalOptions)
    core_hour_price: float = 0.0
    price_currency: str = "USD"


class PlanBackend(Protocol):
    """What the command needs of a backend's class in the table."""

    @classmethod
    async def plan_capacity(cls, context: PlanContext) -> int:
        """Return how many cases of the plan would run at once now.

        Raises:
            StoreError: Redis doesn't answer.
        """

    @classmethod
    def open_for_plan(cls, context: PlanContext) -> contextlib.AbstractAsyncContextManager[Backend]:
        """Open a backend for the plan, inside the block."""


# -- which event loop -----------------------------------------------------------------

INSTEAD: Final = "or give a function that makes a backend, which is opened for the time of each call"
BackendSource: TypeAlias = Executor | Callable[[], Backend]
"""A backend that is open in the event loop of its use, or a function that makes one for each use."""


class LoopBinding:
    """Remembers in which event loop a backend is open: what it consists of belongs to that loop.

    Args:
        name: of the backend, for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_open(self) -> bool:
        """Whether the backend is open in some loop."""
        return self._loop is not None

    def bind(self) -> None:
        """Record that it is open in the running loop."""
        self._loop = asyncio.get_running_loop()

    def unbind(self) -> None:
        """Record that it is closed."""
        self._loop = None

    def check(self) -> None:
        """Raise `PlanError`, which says what to do, unless it is open in the running loop."""
        if self._loop is None:
            raise PlanError(
                f"the {self._name} is not open: execute the plan inside `async with backend:`, {INSTEAD}"
            )
        if self._loop is not asyncio.get_running_loop():
            raise PlanError(
                f"the {self._name} was opened in another event loop: there, await `run_manifest_async` or "
                f"`execute_test_plan_async`, {INSTEAD}"
            )


@contextlib.asynccontextmanager
async def open_backend(source: BackendSource) -> AsyncIterator[Executor]:
    """Yield an open backend: the given one, or one that is made and closed here.

    Raises:
        PlanError: the given backend is not open in the running event loop.
        FullsendError: the backend that was made can't be opened.
    """
    if callable(source):
        async with source() as backend:
            yield backend
    else:
        check_open(source)
        yield source


def check_open(executor: Executor) -> None:
    """Raise `PlanError` if the executor has a `check_open` and is not open in the running event loop."""
    check = getattr(executor, "check_open", None)
    if check is not None:
        check()


# -- for every backend ----------------------------------------------------------------


def runtime_of(executor: object) -> ToolRuntime | None:
    """Return the runtime in this process that a backend calls tools with; None if it has none."""
    runtime = getattr(executor, "runtime", None)
    return runtime if isinstance(runtime, ToolRuntime) else None


def check_parameters(call: Execution) -> None:
    """Check the parameters of a call, so that all backends refuse the same.

    Raises:
        ToolParameterError: the parameters can't be written as JSON.
    """
    try:
        canonical_json(call.parameters)
    except (ValueError, TypeError, RecursionError) as exc:
        raise ToolParameterError(f"the parameters can't be sent to the tool: {exc}") from None
