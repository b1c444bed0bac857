"""Executes tools in this process' own pool of warm subprocesses; needs no Redis."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from services.executor import policy
from services.executor.artifacts import Keeper
from services.executor.identity import Identity
from services.executor.isolation.calls import Call, Event, Partial, Report
from services.executor.isolation.pool import Pool
from services.executor.loader import Loader, Tool
from services.executor.outcome import Outcome, judge
from services.executor.policy import Defaults
from services.executor.products import Products
from services.planner.execution import ExecutionResult, RunOptions, error_of
from shared.errors import FullsendError
from shared.log import masking


class Recollection:
    """What outlives an attempt, for as long as this process lives."""

    def __init__(self) -> None:
        self._steps: dict[str, Any] = {}
        self._artifacts: dict[str, Any] = {}

    async def recall(self, key: str) -> Any | None:
        """The result of a step as `{"value": ...}`, or None when it was not done."""
        return {"value": self._steps[key]} if key in self._steps else None

    async def record(self, key: str, value: Any) -> None:
        """Keep what a step came to."""
        self._steps[key] = value

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """Note that the run has this artifact."""
        self._artifacts[name] = described

    async def artifacts(self) -> dict[str, Any]:
        """All that the run has, by name."""
        return dict(sorted(self._artifacts.items()))


class LocalExecutor:
    """Calls tools in isolation and keeps what they produce.

    Args:
        loader: finds tools.
        pool: calls them; started and stopped by whoever made it.
        keeper: keeps their artifacts.
        defaults: what applies where neither the options nor the tool say anything.
    """

    def __init__(self, loader: Loader, pool: Pool, keeper: Keeper, defaults: Defaults) -> None:
        self._loader = loader
        self._pool = pool
        self._keeper = keeper
        self._defaults = defaults

    async def execute(
        self,
        tool: str,
        parameters: Mapping[str, Any],
        options: RunOptions,
        *,
        report: Report | None = None,
        cancel: asyncio.Event | None = None,
    ) -> ExecutionResult:
        """Call the tool once; whatever it does, this returns.

        Args:
            tool: its name, or a bundle reference.
            parameters: keyword arguments.
            options: how it is to be done.
            report: hears what the tool says meanwhile.
            cancel: when set, the call is ended.
        """
        started = time.monotonic()
        products = Products(self._keeper, Recollection())
        identity: Identity | None = None
        try:
            loaded = await self._load(tool, options)
            loaded.check(parameters)
            identity = _identity(loaded, parameters, options)
            outcome = await self._called(loaded, parameters, options, products, report, cancel)
        except FullsendError as exc:
            outcome = Outcome.of_error(exc)
        outcome = await products.complete(outcome, is_first=False)
        return ExecutionResult(
            run_id=options.run_id,
            status=outcome.status,
            storage_type=str(self._keeper.blobs.storage_type),
            storage_base=self._keeper.blobs.base,
            artifacts={name: one["reference"] for name, one in outcome.artifacts.items()},
            error=error_of(outcome),
            execution_time_ms=round((time.monotonic() - started) * 1_000),
            result=outcome.shown.get("result"),
            parameters=parameters,
            seed=options.policy.seed,
            tool_digest=identity.tool_digest if identity else "",
            run_digest=identity.digest if identity else "",
        )

    async def _load(self, tool: str, options: RunOptions) -> Tool:
        return await self._loader.load(tool, options.policy.timeout_seconds or self._defaults.timeout_seconds)

    async def _called(
        self,
        tool: Tool,
        parameters: Mapping[str, Any],
        options: RunOptions,
        products: Products,
        report: Report | None,
        cancel: asyncio.Event | None,
    ) -> Outcome:
        partials: list[Any] = []

        def hear(event: Event) -> None:
            if isinstance(event, Partial):
                partials.append(event.item)
            if report is not None:
                report(event)

        chosen, environ = options.policy, self._defaults.environ(tool.needs)
        call = Call(
            module=tool.module,
            run_id=options.run_id,
            experiment_id="",
            attempt=1,
            params=parameters,
            timeout_seconds=self._defaults.timeout(chosen, tool.needs),
            level=self._defaults.isolation(chosen, tool.needs),
            limits=policy.process_limits(chosen, tool.needs),
            seed=chosen.seed,
            environ=environ,
        )
        answer = await self._pool.call(call, hear, effects=products, cancel=cancel)
        return judge(answer, partials).masked(masking(environ.values()))


def _identity(tool: Tool, parameters: Mapping[str, Any], options: RunOptions) -> Identity:
    return Identity(
        tool_digest=tool.module.digest,
        entry_point=tool.description.entry,
        parameters=parameters,
        seed=options.policy.seed,
        environment_digest=tool.module.environment,
    )
