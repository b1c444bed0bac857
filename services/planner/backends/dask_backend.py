"""The `dask` backend: executes tools in the pools of a Dask cluster's workers.

Each call is one task.  Dask gives a task to another worker when its own is lost; what it can't do is
done here: a call whose workers were lost is tried alone, so that a tool that ends its worker fails
its own call only, and calls are sent again when the scheduler was lost.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, Final, Self, TypeVar

import structlog
from distributed import KilledWorker

from services.executor.artifacts import open_blobs
from services.executor.isolation.calls import Report
from services.executor.outcome import CANCELLED, Outcome, Status
from services.executor.tools.bundles import Bundle
from services.planner.backends import LoopBinding, PlanContext, check_parameters
from services.planner.backends.dask_connection import DaskConnection, GivenUpError, Link, answer_to
from services.planner.backends.dask_local import LOCAL, local_cluster, scheduler_address
from services.planner.backends.dask_worker import ASKED, BEGUN, ENDED, RESOURCE, call_tool
from services.planner.backends.local import NO_NEEDS, local_capacity
from services.planner.backends.remote import (
    MUST_NOT_REPEAT,
    Answer,
    RemoteCall,
    event_of,
    first_of,
    result_of,
    shared_store,
    store_contents,
)
from services.planner.execution import Execution, ExecutionResult, error_of
from services.planner.runtime import ToolRuntime
from shared.errors import FullsendError
from shared.threads import in_thread

log = structlog.get_logger()

T = TypeVar("T")

POLL_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 5.0
MAX_LOSSES: Final = 5
"""How often a call is sent again after its workers were lost; Dask itself tries four workers each time."""

NO_RESULT = "Dask gave the call up {} times because the workers that ran it were lost"
CULPRIT = "the worker was lost each time that it ran the tool, also when it ran nothing else"


class WorkerDiedError(FullsendError):
    """The workers that ran the call were lost, and it is not run again."""


class _CancelledError(Exception):
    """The call was cancelled."""


class _Pending:
    """A call without a result yet.

    Attributes:
        token: of the task that is under way for it.
        begins: how often the tool has begun.
        worker: the address of the worker that runs it; None if none does.
        losses: how often Dask has given it up because its workers were lost.
        is_alone: whether it runs without others beside it.
        permission: by which name it asked to begin and was permitted; empty if it did not.
        refusal: why it is given up; empty if it is not.
        interrupted: set when nobody waits for it any more, because it is refused or the backend closes.
    """

    def __init__(self, call: Execution, report: Report | None, cancel: asyncio.Event | None) -> None:
        self.call = call
        self.cancel = cancel or asyncio.Event()
        self.token = ""
        self.begins = self.losses = 0
        self.worker: str | None = None
        self.is_alone = False
        self.permission = self.refusal = ""
        self.interrupted = asyncio.Event()
        self._report = report

    def start(self) -> None:
        """Begin another task for it."""
        self.token, self.worker = secrets.token_hex(16), None

    def ask(self, name: str) -> bool:
        """Whether it may begin, if it must not be repeated: only the first time that it asks."""
        if self.permission:
            self._refuse(MUST_NOT_REPEAT)
            return False
        self.permission = name
        return True

    def _refuse(self, why: str) -> None:
        self.refusal = why
        self.interrupted.set()

    def hear(self, what: str, text: str) -> None:
        """Take note of what its task says."""
        if what == BEGUN:
            if self.is_alone and self.worker is not None:
                self._refuse(CULPRIT)
            self.begins += 1
            self.worker = text
        elif what == ENDED:
            self.worker = None
        elif self._report is not None:
            try:
                self._report(event_of(text))
            except Exception:  # whoever listens must not cost the call its result
                log.exception("report.failed", run_id=self.call.options.run_id)

    def lose(self) -> None:
        """Take note that Dask has given it up.  Raises `WorkerDiedError` if it is not sent again."""
        self.losses += 1
        if self.is_alone and self.worker is not None:
            raise WorkerDiedError(CULPRIT)
        if self.losses == MAX_LOSSES:
            raise WorkerDiedError(NO_RESULT.format(MAX_LOSSES))
        # Dask gives up all calls of a worker that was lost; one of them may be the cause.
        self.is_alone = self.worker is not None


class DaskBackend:
    """Sends calls to a Dask cluster, and waits for their results.

    Args:
        address: of the scheduler.
        runtime: of this process: it reads the code of tools, stores what comes back, and is used for
            evaluations; opened and closed with the backend.
        store: the URL of a store that the workers reach too; None if contents come back as bytes.
        tell: receives a line when no worker runs tools, when the scheduler is unavailable, when that is
            over, and when versions differ.
        poll_seconds: the interval between looks at the cluster.
        cancel_seconds: how long to wait for the end of a cancelled call.
    """

    def __init__(
        self,
        address: str,
        runtime: ToolRuntime,
        *,
        store: str | None = None,
        tell: Callable[[str], None] | None = None,
        poll_seconds: float = POLL_SECONDS,
        cancel_seconds: float = CANCEL_SECONDS,
    ) -> None:
        self.runtime = runtime
        self._store = store
        self._blobs = runtime.keeper.blobs if store is None else open_blobs(store)
        self._poll_seconds = poll_seconds
        self._cancel_seconds = cancel_seconds
        self._binding = LoopBinding(type(self).__name__)
        self._connection = DaskConnection(address, self._hear, tell)
        self._calls: dict[str, _Pending] = {}
        self._running: dict[asyncio.Task[Answer], _Pending] = {}
        self._permitting: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    @property
    def capacity(self) -> int:
        """How many calls at once make sense; follows the workers of the cluster."""
        return self._connection.capacity

    @classmethod
    async def plan_capacity(cls, context: PlanContext) -> int:
        """Return how many calls the cluster runs at once now; tell the user if it runs none."""
        address = scheduler_address(context.dask_scheduler)
        if address == LOCAL:
            return local_capacity(context.concurrency)
        connection = DaskConnection(address, lambda token, what, text: None, context.tell)
        await connection.open()
        try:
            if not connection.slots:
                context.tell(connection.nobody)
            return max(1, connection.slots)
        finally:
            await connection.close()

    @classmethod
    @contextlib.asynccontextmanager
    async def open_for_plan(cls, context: PlanContext) -> AsyncIterator[Self]:
        """Open a backend for a plan, inside the block."""
        for name in ("distributed.client", "distributed.core", "tornado.application"):
            logging.getLogger(name).setLevel(
                logging.CRITICAL
            )  # `tell` says in a line what these log at length
        async with contextlib.AsyncExitStack() as stack:
            address = scheduler_address(context.dask_scheduler)
            if address == LOCAL:
                address = await stack.enter_async_context(local_cluster(local_capacity(context.concurrency)))
            backend = cls(
                address,
                context.make_runtime(1 + context.has_evaluator),
                store=shared_store(context.storage_type, context.storage_base),
                tell=context.tell,
            )
            async with backend:
                yield backend

    async def __aenter__(self) -> Self:
        """Open it.  Raises `PlanError` if no scheduler answers; once it is open, it waits instead."""
        try:
            await self.runtime.open()
            await self._connection.open()
        except BaseException:
            await self.runtime.close()
            raise
        self._watch = asyncio.create_task(self._connection.watch(self._poll_seconds), name="dask cluster")
        self._binding.bind()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._binding.unbind()
        for one in self._running.values():
            one.interrupted.set()
        if self._running:
            await asyncio.wait(self._running, timeout=2 * self._cancel_seconds)
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._connection.close()
        await self.runtime.close()

    def check_open(self) -> None:
        """Raise `PlanError` unless it is open in the running event loop."""
        self._binding.check()

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        """Have a worker call the tool once.  A failure of any kind is a result, not an exception.

        `report` receives progress and metrics, but neither lines nor partial results.  The time limit
        counts from the begin of the run on a worker.
        """
        one = _Pending(call, report, cancel)
        limit_seconds = self.runtime.defaults.timeout(call.options.policy, NO_NEEDS)
        if not self._binding.is_open or one.cancel.is_set():
            return self._without_answer(one, CANCELLED)
        task = asyncio.create_task(self._answered(one, limit_seconds), name=f"call {call.options.run_id}")
        self._running[task] = one
        task.add_done_callback(self._running.pop)
        try:
            text, contents = await task
            if contents:
                await in_thread(store_contents, contents, self._blobs)
            result = result_of(text, call, self._blobs)
            return replace(result, lost_attempts=max(0, one.begins - 1))
        except _CancelledError:
            return self._without_answer(one, CANCELLED)
        except WorkerDiedError as exc:
            return self._without_answer(one, Outcome.of_error(exc, Status.LOST))
        except FullsendError as exc:
            return self._without_answer(one, Outcome.of_fault(exc, limit_seconds))
        except Exception as exc:  # a bug here or on the worker must not leave the call without a result
            log.exception("call.failed", run_id=call.options.run_id)
            return self._without_answer(one, Outcome.of_error(exc))

    # -- one call ---------------------------------------------------------------------

    async def _answered(self, one: _Pending, limit_seconds: float) -> Answer:
        """Send the call until it is answered.

        Raises:
            FullsendError: it can't be sent, or is not sent again.
            _CancelledError: it was cancelled.
        """
        check_parameters(one.call)
        loader = self.runtime.loader
        bundle = loader.loaded_bundle(one.call.tool)
        if bundle is None:
            bundle = await self._unless_cancelled(one, loader.bundle(one.call.tool, limit_seconds))
        while True:
            link = self._connection.current
            if link is None:
                link = await self._unless_cancelled(one, self._connection.link())
            one.start()
            self._calls[one.token] = one
            try:
                return await self._task(link, one, bundle)
            except GivenUpError:
                if one.permission:
                    raise WorkerDiedError(MUST_NOT_REPEAT) from None
                log.warning("call.given_up", run_id=one.call.options.run_id, losses=one.losses)
            finally:
                del self._calls[one.token]

    async def _task(self, link: Link, one: _Pending, bundle: Bundle) -> Answer:
        """Have one task perform the call."""
        key = f"{RESOURCE}-{bundle.name}-{one.token}"
        content = self._message(link, one, bundle).encode()
        future = link.client.submit(
            call_tool,
            key,
            content,
            link.code(bundle),
            key=key,
            resources={RESOURCE: 1},
            pure=False,
            retries=0,
        )
        result = asyncio.create_task(answer_to(future))
        try:
            await first_of(result, one.cancel, one.interrupted)
            if not result.done() and not one.refusal and one.worker is not None:
                await link.cancel(key, one.worker)
                await asyncio.wait([result], timeout=self._cancel_seconds)
            if result.done():
                return result.result()
            if one.refusal:
                raise WorkerDiedError(one.refusal)
            raise _CancelledError
        except KilledWorker:
            link.forget_code(bundle)
            one.lose()
            raise GivenUpError from None
        finally:
            if not result.done():
                result.cancel()
                await asyncio.shield(link.give_up(future))
            if one.permission:
                await asyncio.shield(link.forget_permission(one.permission))

    def _message(self, link: Link, one: _Pending, bundle: Bundle) -> RemoteCall:
        options = one.call.options
        return RemoteCall(
            token=one.token,
            topic=link.topic,
            tool=bundle.reference,
            parameters=one.call.parameters,
            run_id=options.run_id,
            policy=options.policy.model_dump(exclude_defaults=True),
            inline_max_bytes=self.runtime.keeper.inline_max_bytes,
            store=self._store,
            is_alone=one.is_alone,
        )

    async def _unless_cancelled(self, one: _Pending, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of the work.  Raises `_CancelledError` if the call is cancelled before."""
        task = asyncio.create_task(work)
        try:
            await first_of(task, one.cancel, one.interrupted)
            if not task.done():
                raise _CancelledError
            return task.result()
        finally:
            task.cancel()

    def _hear(self, token: str, what: str, text: str) -> None:
        if token not in self._calls:
            return
        link = self._connection.current
        if what != ASKED:
            self._calls[token].hear(what, text)
        elif link is not None and self._calls[token].ask(text):
            task = asyncio.create_task(link.permit(text), name=f"permit {text}")
            self._permitting.add(task)
            task.add_done_callback(self._permitting.discard)

    def _without_answer(self, one: _Pending, outcome: Outcome) -> ExecutionResult:
        return ExecutionResult(
            run_id=one.call.options.run_id,
            status=outcome.status,
            storage_type=str(self._blobs.storage_type),
            storage_base=self._blobs.base,
            error=error_of(outcome),
            parameters=one.call.parameters,
            seed=one.call.options.policy.seed,
            lost_attempts=one.begins if outcome.status is Status.LOST else max(0, one.begins - 1),
        )
