"""The connection to a Modal workspace: the function that calls tools, its queue, and what it costs.

Every error of Modal's client is translated here.  The token is the one that the client finds: in
MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or in its own file.
"""

import asyncio
import contextlib
import queue
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import modal
import structlog

from services.planner.backends.modal_container import Message, lease_partition
from services.planner.backends.modal_options import FUNCTION, QUEUE, ModalOptions
from shared.errors import PlanError

log = structlog.get_logger()

LISTEN_SECONDS: Final = 20.0
MESSAGES_AT_ONCE: Final = 100
PAUSE_SECONDS: Final = 1.0

FAULTS: Final = (modal.exception.Error, OSError)
"""What a request of Modal's client raises."""

UNAUTHENTICATED = (
    "Modal takes no token of this process ({problem}); set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or run "
    "`python -m modal setup`"
)
NO_APP = "there is no app {app} on Modal; deploy it with `fullsend modal deploy`"


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn an error of Modal's client into a `PlanError` that says what to do.

    Args:
        what: was asked for, for a message about an error that has no cure here.
    """
    try:
        yield
    except modal.exception.AuthError as exc:
        raise PlanError(UNAUTHENTICATED.format(problem=first_line(exc))) from None
    except FAULTS as exc:
        raise PlanError(f"Modal can't {what}: {first_line(exc)}") from None


@contextlib.contextmanager
def found(app: str) -> Iterator[None]:
    """Turn an error in the search for an app into a `PlanError` that says what to do."""
    with translated(f"find the app {app}"):
        try:
            yield
        except modal.exception.NotFoundError:
            raise PlanError(NO_APP.format(app=app)) from None


def require_app(app: str) -> None:
    """Raise `PlanError` if Modal takes no token, or the app is not deployed.  Waits for Modal."""
    with found(app):
        modal.Function.from_name(app, FUNCTION).hydrate()


def first_line(exc: BaseException) -> str:
    """Return an error's text as one line."""
    return next(iter(str(exc).splitlines()), "") or type(exc).__name__


class ModalConnection:
    """Calls the function of an app, and hears what its calls report.

    Args:
        options: the app, and what its containers get.
        topic: distinguishes this planner from all others.
    """

    def __init__(self, options: ModalOptions, topic: str) -> None:
        self.options = options
        self._topic = topic
        self._function: Any = modal.Function.from_name(options.app, FUNCTION)
        self._variants: dict[ModalOptions, asyncio.Future[Any]] = {}
        self._queue = modal.Queue.from_name(QUEUE)

    async def open(self, lease_seconds: float) -> None:
        """Find function and queue, and begin a lease.  Raises `PlanError` without a token or an app."""
        with found(self.options.app):
            await self._function.hydrate.aio()
            await self._queue.hydrate.aio()
        await self.renew(lease_seconds)

    async def spawn(self, options: ModalOptions, *arguments: object) -> "modal.FunctionCall[bytes]":
        """Queue a call in a container with these options."""
        function = await self._variant(options)
        called: modal.FunctionCall[bytes] = await function.spawn.aio(*arguments)
        return called

    async def _variant(self, options: ModalOptions) -> Any:
        """Return the function with these options; Modal is asked for it once."""
        if options not in self._variants:
            variant = self._function.with_options(
                timeout=round(options.timeout),
                memory=options.memory,
                cpu=options.cpu,
                gpu=options.gpu or None,
                secrets=[modal.Secret.from_name(name) for name in options.secrets],
                max_containers=options.max_containers,
            )
            self._variants[options] = asyncio.ensure_future(variant.hydrate.aio())
        try:
            return await asyncio.shield(self._variants[options])
        except BaseException:
            self._variants.pop(options, None)
            raise

    async def listen(self, hear: Callable[[Message], None]) -> None:
        """Pass on what calls report, until cancelled."""
        while True:
            try:
                messages = await self._queue.get_many.aio(
                    MESSAGES_AT_ONCE, timeout=LISTEN_SECONDS, partition=self._topic
                )
            except queue.Empty:
                continue
            except FAULTS as exc:
                log.warning("modal.unavailable", error=first_line(exc))
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            for message in messages:
                hear(message)

    async def permit(self, token: str) -> None:
        """Allow a call to begin once."""
        await self._queue.put.aio(token, partition=token, partition_ttl=7 * 86_400)

    async def renew(self, lease_seconds: float) -> None:
        """Tell the containers that this planner lives."""
        partition = lease_partition(self._topic)
        with translated("be told that the plan runs"):
            await self._queue.put.aio("alive", partition=partition, partition_ttl=round(lease_seconds))
            if await self._queue.len.aio(partition=partition) > 1:
                await self._queue.get.aio(block=False, partition=partition)

    async def end_lease(self) -> None:
        """Tell the containers that this planner is gone, and drop what its calls have reported."""
        for partition in (lease_partition(self._topic), self._topic):
            with contextlib.suppress(*FAULTS):
                await self._queue.clear.aio(partition=partition)


async def prices() -> Mapping[str, Decimal]:
    """Return what the workspace pays, in dollars, by Modal's names.  Raises `PlanError`."""
    with translated("say its prices"):
        return await modal.Workspace.from_context().billing.rates.aio()
