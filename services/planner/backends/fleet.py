"""The `fleet` backend: executes tools on the executors that share one Redis, through their queue.

Each call is one run of the experiment `plan:{plan_id}`.  No experiment of this id is stored: the
order contains what an experiment would say.  So neither cron nor speedrun can run it, and only what
remains of every run remains: a record and metrics, which expire.  While Redis is unavailable or no
executor is alive, calls wait.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Self

import structlog

from services.executor.isolation.calls import Report
from services.executor.outcome import Status
from services.executor.recovery import cancel as cancel_run
from services.executor.store import Order, Store
from services.planner.backends import LoopBinding, PlanContext, check_parameters
from services.planner.backends.fleet_runs import PendingRun, RunLostError, RunResults, RunWatcher
from services.planner.backends.lease import LEASE_SECONDS, Lease
from services.planner.execution import Execution, ExecutionResult
from shared.backoff import until_available
from shared.errors import FullsendError, StoreError

log = structlog.get_logger()

TRIGGER = "plan"
POLL_SECONDS = 5.0
CANCEL_SECONDS = 5.0
DEFAULT_SLOTS = 8
"""Slots of an executor that doesn't say how many it has: one of an earlier version."""

ORDERS_PER_SLOT = 2
"""One runs, and one waits, so that an executor need not wait for the planner between two runs."""

NOBODY = "no executor is alive; the plan waits for one: start it with `fullsend worker`"
SOMEBODY = "an executor is alive; the plan continues"
AWAY = "Redis is unavailable; the plan waits for it: {}"
BACK = "Redis is available again; the plan continues"


class LiveExecutors:
    """Counts the live executors and their slots.

    Args:
        store: of the executors' Redis.
        tell: receives a line when there is no executor or Redis is unavailable, and when that is over.
    """

    def __init__(self, store: Store, tell: Callable[[str], None] | None) -> None:
        self._store = store
        self._tell = tell
        self._count: int | None = None
        self._slots = 0
        self._is_away = False

    @property
    def slots(self) -> int:
        """How many runs they take at once; at least one, for the next executor that starts."""
        return max(1, self._slots)

    async def count(self) -> None:
        """Count them; tell the user when there is none, or one again.  Raises `StoreError`."""
        told = await self._store.workers.slots()
        before, self._count = self._count, len(told)
        self._slots = sum(slots or DEFAULT_SLOTS for slots in told.values())
        if not self._count and before != 0:
            self._say(NOBODY)
        elif self._count and before == 0:
            self._say(SOMEBODY)

    async def watch(self, seconds: float, counted: Callable[[], None]) -> None:
        """Count them every `seconds` until cancelled, and call `counted` each time."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.count()
            except StoreError as exc:
                if not self._is_away:
                    self._say(AWAY.format(exc))
                self._is_away = True
                continue
            if self._is_away:
                self._say(BACK)
            self._is_away = False
            counted()

    def _say(self, line: str) -> None:
        log.warning("executors.counted", alive=self._count, note=line)
        if self._tell is not None:
            self._tell(line)


class FleetBackend:
    """Puts runs on the executors' queue, never more than `capacity`, and waits for their ends.

    Args:
        store: of the executors' Redis; opened and closed by the caller.
        storage_type, storage_base: of the store of artifacts that the executors use.
        plan_id: the name of the plan.  Opening the backend cancels the runs of the plan that a dead
            planner left in the queue.
        capacity: how many calls at once; None for two for each slot of the live executors, one that runs
            and one that waits.
        priority: of runs whose policy has none; with `low`, all other runs go first.
        tell: receives a line when no executor is alive, when one is again, and when another planner
            takes the plan over.
        poll_seconds: the interval between checks for ended runs and for live executors; a check
            finds what no message told.
        cancel_seconds: how long to wait for the end of a cancelled run.
        lease_seconds: how long the lease on the plan lasts when this planner stops renewing it.
    """

    def __init__(
        self,
        store: Store,
        *,
        storage_type: str,
        storage_base: str,
        plan_id: str,
        capacity: int | None = None,
        priority: str = "low",
        tell: Callable[[str], None] | None = None,
        poll_seconds: float = POLL_SECONDS,
        cancel_seconds: float = CANCEL_SECONDS,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.experiment_id = f"plan:{plan_id}"
        self._store = store
        self._results = RunResults(storage_type, storage_base)
        self._capacity = capacity
        self._priority = priority
        self._poll_seconds = poll_seconds
        self._cancel_seconds = cancel_seconds
        self._tell = tell
        self._lease = Lease(store, self.experiment_id, lease_seconds)
        self._binding = LoopBinding(type(self).__name__)
        self._executors = LiveExecutors(store, tell)
        self._watcher = RunWatcher(store, self.experiment_id)
        self._calls: dict[asyncio.Task[ExecutionResult], PendingRun] = {}
        self._queued = 0
        self._waiting: deque[PendingRun] = deque()
        self._tasks: asyncio.TaskGroup | None = None
        self._life: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._refusal = ""

    @property
    def capacity(self) -> int:
        """How many calls at once make sense; follows the live executors, unless it was given."""
        return self._capacity or self._executors.slots * ORDERS_PER_SLOT

    @classmethod
    async def plan_capacity(cls, context: PlanContext) -> int:
        """Return how many runs the live executors can use at once; tell the user if there are none."""
        async with context.connect() as store:
            executors = LiveExecutors(store, context.tell)
            await executors.count()
            return executors.slots

    @classmethod
    @contextlib.asynccontextmanager
    async def open_for_plan(cls, context: PlanContext) -> AsyncIterator[Self]:
        """Open a backend for a plan, inside the block."""
        async with (
            context.connect() as store,
            cls(
                store,
                storage_type=context.storage_type,
                storage_base=context.storage_base,
                plan_id=context.plan_id,
                tell=context.tell,
            ) as backend,
        ):
            yield backend

    async def __aenter__(self) -> Self:
        """Open it.

        Raises:
            PlanError: another planner executes the plan; the message names it.
            StoreUnavailableError: Redis is unavailable.  Once the backend is open, it waits instead.
        """
        try:
            await self._lease.take()
            await self._watcher.open()
            await self._executors.count()
            await self._cancel_leftovers()
        except BaseException:
            await self._lease.leave()
            raise
        self._closing, self._refusal = asyncio.Event(), ""
        opened = asyncio.Event()
        self._life = asyncio.create_task(self._serve(opened), name=self.experiment_id)
        await opened.wait()
        self._binding.bind()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._binding.unbind()
        self._closing.set()
        try:
            if self._life is not None:
                await self._life
        finally:
            await self._lease.leave()

    def check_open(self) -> None:
        """Raise `PlanError` unless it is open in the running event loop."""
        self._binding.check()

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        """Have an executor call the tool once.  A failure of any kind is a result, not an exception.

        The time limit counts from the begin of the run on an executor.  `report` receives progress and
        metrics, but neither lines nor partial results.  A cancelled call returns when its run has
        ended, or after `cancel_seconds` if no executor reports its end.
        """
        one = PendingRun(call, report)
        if self._tasks is None or (cancel is not None and cancel.is_set()):
            return self._never_queued(one)
        task = self._tasks.create_task(self._result_of(one), name=f"call {call.options.run_id}")
        self._calls[task] = one
        task.add_done_callback(self._calls.pop)
        try:
            await self._wait_for(task, one, cancel)
        except asyncio.CancelledError:
            one.stop()  # the run is cancelled, though its result is not awaited
            raise
        if task.done() and not task.cancelled():
            return task.result()
        return self._results.cancelled(one, "the run was cancelled; no executor has reported its end yet")

    # -- one call ---------------------------------------------------------------------

    async def _wait_for(
        self, task: asyncio.Task[ExecutionResult], one: PendingRun, cancel: asyncio.Event | None
    ) -> None:
        """Wait for the result; after a cancellation, for `cancel_seconds` at most."""
        cancellations = [one.stopped] if cancel is None else [one.stopped, cancel]
        watching = [asyncio.create_task(cancellation.wait()) for cancellation in cancellations]
        try:
            await asyncio.wait([task, *watching], return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                one.stop()
                await asyncio.wait([task], timeout=self._cancel_seconds)
        finally:
            for watcher in watching:
                watcher.cancel()

    async def _result_of(self, one: PendingRun) -> ExecutionResult:
        try:
            check_parameters(one.call)
            order = self._order(one.call)
            async with self._queue_place(one):
                if one.stopped.is_set():
                    return self._never_queued(one)
                return await self._run(one, order)
        except FullsendError as exc:
            return self._results.failed(one, exc)
        except Exception as exc:  # a bug here must not leave the call without a result
            log.exception("call.failed", run_id=one.call.options.run_id)
            return self._results.failed(one, exc)

    def _never_queued(self, one: PendingRun) -> ExecutionResult:
        return self._results.cancelled(one, self._refusal or "the run was cancelled before it was queued")

    def _order(self, call: Execution) -> Order:
        """Return the order of a call.  Raises `ContractError` if no executor could read its parameters."""
        policy = call.options.policy
        order = Order(
            self.experiment_id,
            trigger=TRIGGER,
            priority=policy.priority or self._priority,
            params=call.parameters,
            request_id=call.options.run_id,
            experiment={**policy.model_dump(exclude_defaults=True), "tool": call.tool, "max_attempts": 1},
        )
        Order.decode(order.encode(), "0-0")
        return order

    @contextlib.asynccontextmanager
    async def _queue_place(self, one: PendingRun) -> AsyncIterator[None]:
        """Wait until fewer runs than `capacity` are in the queue; the call counts as one inside the block."""
        self._waiting.append(one)
        self._admit()
        try:
            while not one.is_admitted and not one.stopped.is_set():
                await one.change()
            yield
        finally:
            if one.is_admitted:
                self._queued -= 1
            else:
                self._waiting.remove(one)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._queued < self.capacity:
            self._queued += 1
            self._waiting.popleft().admit()

    async def _run(self, one: PendingRun, order: Order) -> ExecutionResult:
        """Queue the run and wait for its result."""
        submissions = self._store.submissions
        with self._watcher.expecting_run():
            timestamp = await until_available("order", lambda: self._store.queue.submit(order, one.token))
            run_id = f"{self.experiment_id}:{timestamp}"
            self._watcher.follow(run_id, one)
        try:
            with contextlib.suppress(StoreError):  # it expires
                await submissions.forget(self.experiment_id, one.token)
            return await self._ended(one, run_id)
        finally:
            self._watcher.unfollow(run_id)

    async def _ended(self, one: PendingRun, run_id: str) -> ExecutionResult:
        is_asked = False
        while True:
            if one.stopped.is_set() and not is_asked:
                await until_available("cancellation", lambda: cancel_run(self._store, run_id))
                is_asked = True
                self._watcher.poll_now()
            if one.is_lost:
                raise RunLostError(f"Redis has no record of the end of {run_id}; has Redis lost its data?")
            if one.is_over:
                record = await until_available("record", lambda: self._store.runs.record(run_id))
                if record.get("status", Status.RUNNING) != Status.RUNNING:
                    return self._results.of_record(one, record)
                one.is_over = False
                self._watcher.poll_now()
            await one.change()

    # -- the backend -------------------------------------------------------------------

    async def _serve(self, opened: asyncio.Event) -> None:
        """Own all tasks of the backend while it is open."""
        try:
            async with asyncio.TaskGroup() as tasks:
                watching = [
                    tasks.create_task(self._watcher.follow_journal(), name="journal"),
                    tasks.create_task(self._watcher.poll(self._poll_seconds), name="runs"),
                    tasks.create_task(
                        self._executors.watch(self._poll_seconds, self._admit), name="executors"
                    ),
                    tasks.create_task(self._keep_lease(), name="lease"),
                ]
                self._tasks = tasks
                opened.set()
                await self._closing.wait()
                self._tasks = None
                await self._stop_all()
                for task in watching:
                    task.cancel()
        finally:
            self._tasks = None

    async def _cancel_leftovers(self) -> None:
        """Cancel the runs that a dead planner left in the queue."""
        for run_id in await self._store.submissions.open_runs(self.experiment_id):
            answer = await cancel_run(self._store, run_id)
            log.info("run.left_behind", run_id=run_id, answer=answer.value)

    async def _keep_lease(self) -> None:
        """Renew the lease; if another planner takes the plan over, stop all runs of this one."""
        self._refusal = await self._lease.keep()
        log.error("plan.taken_over", experiment_id=self.experiment_id, note=self._refusal)
        if self._tell is not None:
            self._tell(self._refusal)
        self._tasks = None
        await self._stop_all()

    async def _stop_all(self) -> None:
        """Cancel all runs, and wait for their ends, for `cancel_seconds` at most."""
        running = dict(self._calls)
        for one in running.values():
            one.stop()
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=self._cancel_seconds)
        for task in late:
            task.cancel()
        if late:
            log.warning("runs.left_open", experiment_id=self.experiment_id, count=len(late))
