"""One call from a plan to its results, for those who collect them."""

import asyncio
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

from services.planner.backends import BackendSource
from services.planner.backends.local import LocalBackend, local_capacity
from services.planner.cancellation import CancellationToken
from services.planner.models import RunManifest
from services.planner.results import ResultConverter
from services.planner.runtime import RuntimeConfig, ToolRuntime
from services.planner.scheduler import TaskScheduler, new_id, run_blocking, utc_now
from services.planner.scheduling.early_stop import criteria_needing_evaluations
from services.planner.tasks import Task, TestResult
from shared.errors import ExecutorException


class ExecutorService:
    """Executes plans, and returns their results in one form.

    Args:
        task_execution_func: executes the cases; see `FunctionAttemptRunner`.
        backend: executes them instead: one that is ready in the event loop that this is called in,
            or a function that makes one, which is opened for the time of each call.  With
            neither, the tools are called in isolated processes of this machine.
        now_fn, sleep_fn, id_fn: clock, sleep and ids; see `services.planner.scheduler.TaskScheduler`.
        places: where the processes of this machine find tools and keep artifacts.

    Raises:
        ValueError: there are both a function and a backend.
    """

    def __init__(
        self,
        task_execution_func: Callable[[Task], Any] | None = None,
        backend: BackendSource | None = None,
        now_fn: Callable[[], datetime] = utc_now,
        sleep_fn: Callable[[float], Any] = asyncio.sleep,
        id_fn: Callable[[], str] = new_id,
        places: RuntimeConfig = RuntimeConfig(),  # noqa: B008, it can't be changed
    ) -> None:
        if task_execution_func is not None and backend is not None:
            raise ValueError("a service takes a task_execution_func or a backend, not both")
        self._function = task_execution_func
        self._backend = backend
        self._now_fn = now_fn
        self._sleep_fn = sleep_fn
        self._id_fn = id_fn
        self._places = places

    def execute_test_plan(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> list[TestResult]:
        """The same as `execute_test_plan_async`, from a thread that waits for it.

        May be called in a running event loop too, which stands still meanwhile.
        """
        return run_blocking(lambda: self.execute_test_plan_async(manifest, token))

    async def execute_test_plan_async(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> list[TestResult]:
        """Execute all cases of a plan; a result for each, in their order, whatever happens.

        Args:
            manifest: the plan.
            token: stops it when it is cancelled, from any thread.

        Raises:
            ValueError: `manifest` is None.
            ExecutorException: it has no cases, and nothing that makes any.
            FullsendError: its cases can't be made, a criterion can't be judged, or the backend can't be
                opened, or is not open here.
        """
        if manifest is None:
            raise ValueError("manifest cannot be None")
        if not manifest.cases and manifest.sweep is None:
            raise ExecutorException("RunManifest.cases cannot be empty")
        scheduler = TaskScheduler(
            self._source(manifest),
            task_execution_func=self._function,
            now_fn=self._now_fn,
            sleep_fn=self._sleep_fn,
            id_fn=self._id_fn,
        )
        execution = await scheduler.run_manifest_async(manifest, token)
        return await asyncio.to_thread(
            ResultConverter.convert_batch, execution.task_results, manifest.metadata
        )

    def _source(self, manifest: RunManifest) -> BackendSource | None:
        """Of the backend for one plan; None when a function executes it."""
        if self._function is not None or self._backend is not None:
            return self._backend
        return lambda: self._local(manifest)

    def _local(self, manifest: RunManifest) -> LocalBackend:
        capacity = local_capacity(manifest.execution_policy.concurrency)
        # A place of their own, so that evaluations need not wait until a case has ended.
        evaluating = 1 if criteria_needing_evaluations(manifest.evaluator) else 0
        return LocalBackend(ToolRuntime(self._places, capacity + evaluating, os.environ), capacity)
