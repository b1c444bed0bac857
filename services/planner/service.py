"""The service API: one call from a manifest to its test results."""

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
from services.planner.scheduler import TaskScheduler, check_manifest, new_id, run_blocking
from services.planner.scheduling.early_stop import criteria_needing_evaluations
from services.planner.tasks import Task, TestResult, utc_now
from shared.errors import ExecutorException


class ExecutorService:
    """Executes plans and returns their results as test results.

    Args:
        task_execution_func: executes the cases, see `FunctionAttemptRunner`.
        backend: executes the cases instead: a backend that is open in the event loop of the call, or
            a function that makes one, which is opened for each call.  With neither, tools are
            called in isolated processes of this machine.
        now_fn, sleep_fn, id_fn: as in `TaskScheduler`.
        config: of the processes of this machine: where they find tools and store artifacts.

    Raises:
        ValueError: both a function and a backend are given.
    """

    def __init__(
        self,
        task_execution_func: Callable[[Task], Any] | None = None,
        backend: BackendSource | None = None,
        now_fn: Callable[[], datetime] = utc_now,
        sleep_fn: Callable[[float], Any] = asyncio.sleep,
        id_fn: Callable[[], str] = new_id,
        config: RuntimeConfig = RuntimeConfig(),  # noqa: B008, it can't be changed
    ) -> None:
        if task_execution_func is not None and backend is not None:
            raise ValueError("a service takes a task_execution_func or a backend, not both")
        self._function = task_execution_func
        self._backend = backend
        self._now_fn = now_fn
        self._sleep_fn = sleep_fn
        self._id_fn = id_fn
        self._config = config

    def execute_test_plan(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> list[TestResult]:
        """Call `execute_test_plan_async` and block until it returns, also inside a running event loop."""
        return run_blocking(lambda: self.execute_test_plan_async(manifest, token))

    async def execute_test_plan_async(
        self, manifest: RunManifest, token: CancellationToken | None = None
    ) -> list[TestResult]:
        """Execute all cases of a plan, and return a result for each, in their order, whatever happens.

        Args:
            manifest: the plan.
            token: stops the plan when it is cancelled, from any thread.

        Raises:
            ValueError: `manifest` is None.
            TypeError: it is not a manifest.
            ExecutorException: it has neither cases nor a sweep.
            FullsendError: the cases can't be generated, a criterion can't be judged, or the backend
                can't be opened or is not open in this event loop.
        """
        check_manifest(manifest)
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
        """Return where the backend of a plan comes from; None when a function executes the cases."""
        if self._function is not None or self._backend is not None:
            return self._backend
        return lambda: self._local(manifest)

    def _local(self, manifest: RunManifest) -> LocalBackend:
        capacity = local_capacity(manifest.execution_policy.concurrency)
        # One process more for evaluations, so that these need not wait until a case has ended.
        evaluating = 1 if criteria_needing_evaluations(manifest.evaluator) else 0
        return LocalBackend(ToolRuntime(self._config, capacity + evaluating, os.environ), capacity)
