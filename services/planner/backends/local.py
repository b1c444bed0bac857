"""The `local` backend: executes tools in a pool of warm subprocesses of this process, without Redis."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from functools import lru_cache
from typing import Any, Final, Self

from services.executor.artifacts import Keeper
from services.executor.isolation.calls import Call, Event, Partial, Report
from services.executor.loader import Tool
from services.executor.metrics import KeptPartials, ReportBounds
from services.executor.outcome import CANCELLED, Outcome, judge
from services.executor.policy import ToolNeeds
from services.executor.result_cache import Identity
from services.executor.results import AttemptResults
from services.planner.backends import LoopBinding, PlanContext, check_parameters
from services.planner.execution import Execution, ExecutionResult, error_of
from services.planner.runtime import MemoryCheckpoints, ToolRuntime
from shared.errors import FullsendError

LOCAL_CAPACITY: Final = 32
"""The most processes of this machine that a plan gets, whatever concurrency it asks for."""

NO_NEEDS = ToolNeeds()
OPTIONS_KEPT: Final = 100
_NO_SEED: Final = {"seed": None}


def local_capacity(concurrency: int) -> int:
    """Return how many cases run at once in this process for a plan that asks for `concurrency`."""
    return min(concurrency, LOCAL_CAPACITY)


class LocalBackend:
    """Calls tools in isolated subprocesses, and stores what they produce.

    Args:
        runtime: calls the tools; opened and closed with the backend.
        capacity: how many calls at once make sense.
    """

    def __init__(self, runtime: ToolRuntime, capacity: int) -> None:
        self.capacity = capacity
        self._runtime = runtime
        self._loaded: set[str] = set()
        self._binding = LoopBinding(type(self).__name__)
        self._options = lru_cache(maxsize=OPTIONS_KEPT)(runtime.defaults.options)

    @property
    def runtime(self) -> ToolRuntime:
        """What calls the tools; evaluations use it too."""
        return self._runtime

    @classmethod
    async def plan_capacity(cls, context: PlanContext) -> int:
        """Return how many cases run at once; tell the user if they are fewer than the plan asks for."""
        capacity = local_capacity(context.concurrency)
        if capacity < context.concurrency:
            context.tell(
                f"the plan asks for {context.concurrency:,} cases at once; local runs at most {capacity}"
            )
        return capacity

    @classmethod
    @contextlib.asynccontextmanager
    async def open_for_plan(cls, context: PlanContext) -> AsyncIterator[Self]:
        """Open a backend for a plan, inside the block."""
        capacity = await cls.plan_capacity(context)
        # One process more for evaluations, so that these need not wait until a case has ended.
        async with cls(context.make_runtime(capacity + context.has_evaluator), capacity) as backend:
            yield backend

    async def __aenter__(self) -> Self:
        try:
            await self._runtime.open()
        except BaseException:
            await self._runtime.close()
            raise
        self._binding.bind()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._binding.unbind()
        await self._runtime.close()

    def check_open(self) -> None:
        """Raise `PlanError` unless it is open in the running event loop."""
        self._binding.check()

    async def run(
        self,
        call: Execution,
        *,
        report: Report | None = None,
        cancel: asyncio.Event | None = None,
        keeper: Keeper | None = None,
    ) -> ExecutionResult:
        """Call the tool once.  A failure of any kind is a result, not an exception.

        Args:
            call, report, cancel: as in `Executor.run`.
            keeper: keeps what the run leaves; None for the runtime's.
        """
        started = time.monotonic()
        runtime, options, keeper = self._runtime, call.options, keeper or self._runtime.keeper
        attempt_results = AttemptResults(keeper, MemoryCheckpoints(), runtime.threads)
        identity: Identity | None = None
        limit_seconds = runtime.defaults.timeout(options.policy, NO_NEEDS)
        try:
            check_parameters(call)
            tool = await self._load(call.tool, limit_seconds, cancel)
            tool.check(call.parameters)
            identity = _identity(tool, call)
            outcome = await self._called(tool, call, attempt_results, report, cancel)
        except _Cancelled:
            outcome = CANCELLED
        except FullsendError as exc:
            outcome = Outcome.of_fault(exc, limit_seconds) if self._binding.is_open else CANCELLED
        outcome = await attempt_results.complete(outcome, is_first=False)
        return ExecutionResult(
            run_id=options.run_id,
            status=outcome.status,
            storage_type=str(keeper.blobs.storage_type),
            storage_base=keeper.blobs.base,
            artifacts={name: one["reference"] for name, one in outcome.artifacts.items()},
            error=error_of(outcome),
            execution_time_ms=round((time.monotonic() - started) * 1_000),
            result=outcome.shown.get("result"),
            parameters=call.parameters,
            seed=options.policy.seed,
            tool_digest=identity.tool_digest if identity else "",
            run_digest=identity.digest if identity else "",
            cpu_seconds=outcome.used.cpu_seconds if outcome.used else None,
            peak_rss_bytes=outcome.used.peak_bytes if outcome.used else None,
        )

    async def _load(self, name: str, limit_seconds: float, cancel: asyncio.Event | None) -> Tool:
        """Load the tool; its first import may take long, so that it can be cancelled."""
        loading = self._runtime.loader.load_within(name, limit_seconds)
        tool = await (loading if cancel is None or name in self._loaded else _unless(cancel, loading))
        self._loaded.add(name)
        return tool

    async def _called(
        self,
        tool: Tool,
        call: Execution,
        attempt_results: AttemptResults,
        report: Report | None,
        cancel: asyncio.Event | None,
    ) -> Outcome:
        partials = KeptPartials()
        chosen = call.options.policy
        # Cases differ in their seeds only, which the options do not depend on.
        options = self._options(chosen.model_copy(update=_NO_SEED), tool.needs)

        bounds = None if report is None else ReportBounds(options.mask, report)

        def hear(event: Event) -> None:
            is_dropped = isinstance(event, Partial) and not partials.add(event.item)
            if report is not None and bounds is not None and not is_dropped:
                report(bounds.bounded(event))

        attempt_results.mask, attempt_results.named = options.mask, options.named
        isolated = Call(
            module=tool.module,
            run_id=call.options.run_id,
            experiment_id="",
            attempt=1,
            params=call.parameters,
            timeout_seconds=options.timeout_seconds,
            level=options.level,
            limits=options.limits,
            seed=chosen.seed,
            environ=options.environ,
        )
        answer = await self._runtime.pool.call(isolated, hear, effects=attempt_results, cancel=cancel)
        return judge(answer, partials.items, partials.dropped).masked(options.mask)


class _Cancelled(Exception):
    """The call was cancelled while the tool was loaded."""


async def _unless(cancel: asyncio.Event, loading: Coroutine[Any, Any, Tool]) -> Tool:
    """Return what is loaded.  Raises `_Cancelled` if `cancel` is set before."""
    work, wish = asyncio.create_task(loading), asyncio.create_task(cancel.wait())
    try:
        await asyncio.wait([work, wish], return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _Cancelled
        return work.result()
    finally:
        for task in (work, wish):
            task.cancel()
        await asyncio.gather(work, wish, return_exceptions=True)


def _identity(tool: Tool, call: Execution) -> Identity:
    return Identity(
        tool_digest=tool.module.digest,
        entry_point=tool.description.entry,
        parameters=call.parameters,
        seed=call.options.policy.seed,
        environment_digest=tool.module.environment,
    )
