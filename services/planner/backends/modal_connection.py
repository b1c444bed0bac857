"""The connection to a Modal workspace: the function that calls tools, its queue, and what it costs.

Every error of Modal's client is translated here.  The token is the one that the client finds: in
MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or in its own file.
"""

import asyncio
import contextlib
import queue
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import modal
from grpclib.exceptions import StreamTerminatedError

from services.planner.backends.modal_container import Message, lease_partition
from services.planner.backends.modal_options import FUNCTION, QUEUE, ModalOptions
from shared.errors import PlanError

T = TypeVar("T")

LISTEN_SECONDS: Final = 20.0
MESSAGES_AT_ONCE: Final = 100
PAUSE_SECONDS: Final = 1.0
PERMIT_TTL_SECONDS: Final = 7 * 86_400
"""As long as Modal keeps a partition of a queue at most."""

FAULTS: Final = (modal.exception.Error, OSError, StreamTerminatedError)
"""What a request of Modal's client raises."""

UNREACHABLE: Final = (
    modal.exception.ConnectionError,
    modal.exception.ServiceError,
    modal.exception.InternalError,
    modal.exception.ResourceExhaustedError,
    StreamTerminatedError,
    OSError,
)
"""What it raises while Modal can't be reached, or has too much to do."""

AWAY = "Modal is unavailable ({problem}); the plan waits for it"
BACK = "Modal is available again; the plan continues"

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
        say: receives a line when Modal can't be reached, and when that is over.

    Attributes:
        is_away: whether Modal could not be reached when it was tried last.
    """

    def __init__(self, options: ModalOptions, topic: str, say: Callable[[str], None]) -> None:
        self.options = options
        self.is_away = False
        self._say = say
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
        """Queue a call in a container with these options; wait while Modal can't be reached.

        Raises:
            PlanError: Modal refuses the call.
        """

        async def spawned() -> "modal.FunctionCall[bytes]":
            function = await self._variant(options)
            called: modal.FunctionCall[bytes] = await function.spawn.aio(*arguments)
            return called

        return await self._patiently(spawned)

    async def _patiently(self, request: Callable[[], Awaitable[T]]) -> T:
        """Repeat a request while Modal can't be reached.  Raises `PlanError` if Modal refuses it."""
        with translated("be called"):
            while True:
                try:
                    answer = await request()
                except UNREACHABLE as exc:
                    self._note(first_line(exc))
                    await asyncio.sleep(PAUSE_SECONDS)
                else:
                    self._note("")
                    return answer

    def _note(self, problem: str) -> None:
        """Take note of whether Modal can be reached."""
        if problem and not self.is_away:
            self._say(AWAY.format(problem=problem))
        elif self.is_away and not problem:
            self._say(BACK)
        self.is_away = bool(problem)

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
                messages = []
            except FAULTS as exc:
                self._note(first_line(exc))
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._note("")
            for message in messages:
                hear(message)

    async def permit(self, name: str) -> None:
        """Allow a call to begin once."""
        await self._patiently(
            lambda: self._queue.put.aio(name, partition=name, partition_ttl=PERMIT_TTL_SECONDS)
        )

    async def renew(self, lease_seconds: float) -> None:
        """Tell the containers that this planner lives; wait while Modal can't be reached."""
        partition = lease_partition(self._topic)

        async def renewed() -> None:
            await self._queue.put.aio("alive", partition=partition, partition_ttl=round(lease_seconds))
            if await self._queue.len.aio(partition=partition) > 1:
                await self._queue.get.aio(block=False, partition=partition)

        await self._patiently(renewed)

    async def end_lease(self) -> None:
        """Tell the containers that this planner is gone, and drop what its calls have reported."""
        for partition in (lease_partition(self._topic), self._topic):
            with contextlib.suppress(*FAULTS):
                await self._queue.clear.aio(partition=partition)
