"""The `modal` backend: executes tools in the pools of containers on Modal.

Each call is one call of a deployed function.  Modal queues it again when its container is lost, without
end; a call that begins for the second time is therefore cancelled and tried with nothing beside it, so
that a tool that ends its container fails its own call only.  What containers report wakes a call; its
result is only what Modal says it is, which is also asked for now and then.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import structlog

from services.executor.artifacts import StorageType, open_blobs
from services.executor.isolation.calls import Report
from services.executor.outcome import CANCELLED, Outcome, Status
from services.executor.policy import needs_of
from services.executor.tools.bundles import Bundle, Bundles
from services.planner.backends import LoopBinding, PlanContext, check_parameters
from services.planner.backends.local import NO_NEEDS
from services.planner.backends.modal_calls import (
    CANCEL_SECONDS,
    POLLS_AT_ONCE,
    CallCancelledError,
    ContainerUnavailableError,
    GivenUpError,
    PendingCall,
    WorkerDiedError,
    drop,
    end,
    fetch,
    result_from,
)
from services.planner.backends.modal_connection import ModalConnection
from services.planner.backends.modal_container import BEGUN, PYTHON, Message
from services.planner.backends.modal_options import ModalOptions
from services.planner.backends.remote import (
    MUST_NOT_REPEAT,
    RemoteCall,
    addresses_of,
    first_of,
    result_of,
    shared_store,
)
from services.planner.cost import Tariff, modal_tariff
from services.planner.execution import Execution, ExecutionResult, error_of
from services.planner.runtime import ToolRuntime
from shared.errors import FullsendError, PlanError
from shared.threads import Threads, in_thread

log = structlog.get_logger()

T = TypeVar("T")

WATCH_SECONDS: Final = 1.0
POLL_SECONDS: Final = 30.0
"""How often Modal is asked for the result of a call that nobody has reported to have ended."""
LEASE_SECONDS: Final = 60.0
SILENCE_SECONDS: Final = 20.0
"""How long no container may run a call before the user is told."""
MAX_TRIES: Final = 5
STORING_THREADS: Final = 8

LIMITED = (
    "the plan asks for {concurrency:,} cases at once; MODAL_MAX_PARALLEL allows {limit:,}; the others wait"
)
NO_RESULT = "Modal gave no result after {} tries: {}"
NOBODY = "no container of Modal runs a case, and {waiting} wait; the plan waits for one"
SOMEBODY = "containers of Modal run cases; the plan continues"
UNLIKE = f"the containers on Modal have Python {{theirs}}, and this command {PYTHON}; results may differ"
NO_CONTAINER = "Modal has had no container for the call in {:g} s (MODAL_WAIT); see `fullsend modal status`"


class ModalBackend:
    """Sends calls to containers on Modal, and waits for their results.

    Args:
        options: the app, and what its containers get.
        runtime: of this process: it reads the code of tools, stores what comes back, and is used for
            evaluations; opened and closed with the backend.
        concurrency: calls that are sent at once; those that Modal has no room for wait there.
        store: the URL of a store that the containers reach too; None if contents come back by the volume.
        tell: receives a line when no container runs a call for a while, and when that is over.
        poll_seconds, lease_seconds: as the constants of this module.
    """

    def __init__(
        self,
        options: ModalOptions,
        runtime: ToolRuntime,
        *,
        concurrency: int,
        store: str | None = None,
        tell: Callable[[str], None] | None = None,
        poll_seconds: float = POLL_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.runtime = runtime
        self.capacity = concurrency
        self._options = options
        self._volume = f"{StorageType.MODAL}://{options.volume}"
        self._store = store or self._volume
        self._blobs = runtime.keeper.blobs if store is None else open_blobs(store)
        self._tell = tell
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._binding = LoopBinding(type(self).__name__)
        self._closing = asyncio.Event()
        self._calls: dict[str, PendingCall] = {}
        self._running: set[asyncio.Task[ExecutionResult]] = set()
        self._sent: dict[str, asyncio.Future[None]] = {}
        self._unlike: set[str] = set()

    @classmethod
    async def plan_capacity(cls, context: PlanContext) -> int:
        """Return how many cases run at once; tell the user if others will wait on Modal."""
        limit = context.modal.max_parallel or context.concurrency
        if limit < context.concurrency:
            context.tell(LIMITED.format(concurrency=context.concurrency, limit=limit))
        return min(limit, context.concurrency)

    @classmethod
    async def plan_tariff(cls, context: PlanContext, tool: str) -> Tariff:
        """Return what Modal charges for the container that the tool gets."""
        options = context.modal.for_tool(await context.make_runtime(1).loader.needs(tool), limit_seconds=0)
        return await modal_tariff(options.cpu, options.memory, options.gpu, options.slots)

    @classmethod
    @contextlib.asynccontextmanager
    async def open_for_plan(cls, context: PlanContext) -> AsyncIterator[Self]:
        """Open a backend for a plan, inside the block."""
        logging.getLogger("modal-client").setLevel(logging.CRITICAL)  # `tell` says in a line what this logs
        await cls.plan_capacity(context)
        backend = cls(
            context.modal.for_plan(context.concurrency),
            context.make_runtime(1 + context.has_evaluator),
            concurrency=context.concurrency,
            store=shared_store(context.storage_type, context.storage_base),
            tell=context.tell,
        )
        async with backend:
            yield backend

    async def __aenter__(self) -> Self:
        """Open it.  Raises `PlanError` if Modal takes no token, or the app is not deployed."""
        self._topic = secrets.token_hex(8)
        self._connection = ModalConnection(self._options, self._topic, self._say)
        self._code_store = open_blobs(self._volume)
        self._polls, self._threads = asyncio.Semaphore(POLLS_AT_ONCE), Threads(STORING_THREADS)
        self._sent.clear()
        try:
            await self.runtime.open()
            await self._connection.open(self._lease_seconds)
        except BaseException:
            await self.runtime.close()
            raise
        self._closing = asyncio.Event()
        self._watching = [
            asyncio.create_task(self._connection.listen(self._hear), name="modal reports"),
            asyncio.create_task(self._renew(), name="modal lease"),
            asyncio.create_task(self._watch(), name="modal containers"),
        ]
        self._binding.bind()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._binding.unbind()
        self._closing.set()
        if self._running:
            await asyncio.wait(self._running, timeout=2 * CANCEL_SECONDS)
        for task in self._watching:
            task.cancel()
        await asyncio.wait(self._watching)
        await self._connection.end_lease()
        await self.runtime.close()

    def check_open(self) -> None:
        """Raise `PlanError` unless it is open in the running event loop."""
        self._binding.check()

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        """Have a container call the tool once.  A failure of any kind is a result, not an exception.

        `report` receives progress and metrics, but neither lines nor partial results.  The time limit
        counts from the begin of the run in a container.
        """
        one = PendingCall(call, report, cancel)
        if not self._binding.is_open or one.cancel.is_set():
            return self._without_answer(one, CANCELLED)
        task = asyncio.create_task(self._result(one), name=f"call {call.options.run_id}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise

    # -- one call ---------------------------------------------------------------------

    async def _result(self, one: PendingCall) -> ExecutionResult:
        limit_seconds = self.runtime.defaults.timeout(one.call.options.policy, NO_NEEDS)
        try:
            check_parameters(one.call)
            bundle = await self._unless_cancelled(
                one, self.runtime.loader.bundle(one.call.tool, limit_seconds)
            )
            needs = needs_of(bundle.name, bundle.main.decode(errors="replace"))
            limit_seconds = self.runtime.defaults.timeout(one.call.options.policy, needs)
            options = self._options.for_tool(needs, limit_seconds)
            await self._unless_cancelled(one, self._send_code(bundle))
            text = await self._answered(one, options, bundle, limit_seconds)
            result = result_of(text, one.call, self._blobs)
            if self._store == self._volume:
                await self._fetch(result)
            return replace(result, lost_attempts=one.lost_attempts(result.status))
        except CallCancelledError:
            return self._without_answer(one, CANCELLED)
        except (WorkerDiedError, ContainerUnavailableError) as exc:
            return self._without_answer(one, Outcome.of_error(exc, Status.LOST))
        except FullsendError as exc:
            return self._without_answer(one, Outcome.of_fault(exc, limit_seconds))
        except Exception as exc:  # a bug here or in the container must not leave the call without a result
            log.exception("call.failed", run_id=one.call.options.run_id)
            return self._without_answer(one, Outcome.of_error(exc))

    async def _answered(
        self, one: PendingCall, options: ModalOptions, bundle: Bundle, limit_seconds: float
    ) -> bytes:
        """Send the call until it is answered.

        Raises:
            FullsendError: it can't be sent, or is not sent again.
            CallCancelledError: it was cancelled.
        """
        if one.permit:
            await self._unless_cancelled(one, self._connection.permit(one.permit))
        problem = ""
        for _ in range(MAX_TRIES):
            one.start()
            self._calls[one.token] = one
            try:
                return await self._sent_once(one, options, bundle, limit_seconds)
            except GivenUpError as exc:
                problem = str(exc)
                if one.begins and one.permit:
                    raise WorkerDiedError(MUST_NOT_REPEAT) from None
                log.warning("call.given_up", run_id=one.call.options.run_id, problem=problem)
                await self._unless_cancelled(one, self._connection.renew(self._lease_seconds))
            finally:
                del self._calls[one.token]
        raise WorkerDiedError(NO_RESULT.format(MAX_TRIES, problem))

    async def _sent_once(
        self, one: PendingCall, options: ModalOptions, bundle: Bundle, limit_seconds: float
    ) -> bytes:
        """Have one call of the function perform the call."""
        content = self._message(one, bundle, limit_seconds).encode()
        spawning = asyncio.create_task(
            self._connection.spawn(options, content, self._volume, self._lease_seconds, one.permit)
        )
        is_sent = False
        try:
            await first_of(spawning, one.cancel, self._closing)
            is_sent = spawning.done()
        finally:
            if not is_sent:
                await asyncio.shield(drop(spawning))
        if not is_sent:
            raise CallCancelledError
        called = spawning.result()
        result = asyncio.create_task(result_from(called, one, self._polls, self._poll_seconds))
        try:
            await first_of(result, one.cancel, self._closing, one.is_lost, one.is_unavailable)
            if result.done():
                return result.result()
            if one.cancel.is_set() or self._closing.is_set():
                raise CallCancelledError
            if one.is_unavailable.is_set():
                raise ContainerUnavailableError(NO_CONTAINER.format(options.wait))
            one.lose()
            raise GivenUpError("the container was lost")
        finally:
            if not result.done():
                await asyncio.shield(end(called, result))

    def _message(self, one: PendingCall, bundle: Bundle, limit_seconds: float) -> RemoteCall:
        options = one.call.options
        policy = options.policy.model_dump(exclude_defaults=True)
        return RemoteCall(
            token=one.token,
            topic=self._topic,
            tool=bundle.reference,
            parameters=one.call.parameters,
            run_id=options.run_id,
            policy=policy | {"timeout_seconds": limit_seconds},
            inline_max_bytes=self.runtime.keeper.inline_max_bytes,
            store=self._store,
            is_alone=one.is_alone,
        )

    async def _unless_cancelled(self, one: PendingCall, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of the work.  Raises `CallCancelledError` if the call is cancelled before."""
        task = asyncio.create_task(work)
        try:
            await first_of(task, one.cancel, self._closing)
            if not task.done():
                raise CallCancelledError
            return task.result()
        finally:
            task.cancel()

    # -- code and artifacts -------------------------------------------------------------

    async def _send_code(self, bundle: Bundle) -> None:
        """Store a tool's code on the volume, once for each code."""
        if bundle.reference not in self._sent:
            keeping = in_thread(Bundles(self._code_store, Path()).keep, bundle)
            self._sent[bundle.reference] = asyncio.ensure_future(keeping)
        try:
            await asyncio.shield(self._sent[bundle.reference])
        except Exception:
            self._sent.pop(bundle.reference, None)
            raise

    async def _fetch(self, result: ExecutionResult) -> None:
        """Store on this side what the run has left on the volume, verified by its digests."""
        copying = (
            self._threads.run(fetch, sha256, self._code_store, self._blobs) for sha256 in addresses_of(result)
        )
        await asyncio.gather(*copying)

    # -- all calls ----------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        token, what, text = message
        if what == BEGUN and text != PYTHON and text not in self._unlike:
            self._unlike.add(text)
            self._say(UNLIKE.format(theirs=text))
        if token in self._calls:
            self._calls[token].hear(what, text)

    async def _renew(self) -> None:
        """Tell the containers that this planner lives, until cancelled."""
        while True:
            await asyncio.sleep(self._lease_seconds / 6)
            try:
                await self._connection.renew(self._lease_seconds)
            except PlanError as exc:
                log.warning("lease.not_renewed", error=str(exc))

    async def _watch(self) -> None:
        """Say when no container runs a call, and fail calls that have waited too long, until cancelled."""
        loop = asyncio.get_running_loop()
        idle_since, is_told = loop.time(), False
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            waiting = [one for one in self._calls.values() if not one.is_running]
            if len(waiting) < len(self._calls) and is_told:
                self._say(SOMEBODY)
                is_told = False
            if len(waiting) < len(self._calls) or not waiting or self._connection.is_away:
                idle_since = loop.time()
                continue
            idle_seconds = loop.time() - idle_since
            if idle_seconds >= SILENCE_SECONDS and not is_told:
                is_told = True
                self._say(NOBODY.format(waiting=len(waiting)))
            if idle_seconds >= self._options.wait:
                for one in waiting:
                    one.is_unavailable.set()
                idle_since = loop.time()

    def _say(self, line: str) -> None:
        log.warning("containers.changed", note=line)
        if self._tell is not None:
            self._tell(line)

    def _without_answer(self, one: PendingCall, outcome: Outcome) -> ExecutionResult:
        return ExecutionResult(
            run_id=one.call.options.run_id,
            status=outcome.status,
            storage_type=str(self._blobs.storage_type),
            storage_base=self._blobs.base,
            error=error_of(outcome),
            parameters=one.call.parameters,
            seed=one.call.options.policy.seed,
            lost_attempts=one.lost_attempts(outcome.status),
        )
