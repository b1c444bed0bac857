"""What a claimed run needs before its tool can be called: found, or the reason why it can't be."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from services.executor.identity import Identity
from services.executor.loader import Loader, Tool
from services.executor.outcome import Outcome, Status
from services.executor.store import Claim, Stored
from shared.errors import FullsendError, ToolTimeoutError
from shared.messages import Experiment


@dataclass(frozen=True, slots=True)
class Work:
    """A claimed run with all that its experiment and its tool say."""

    claim: Claim
    experiment: Experiment
    tool: Tool
    params: Mapping[str, Any]

    @property
    def identity(self) -> Identity:
        """All that the result may depend on."""
        return Identity(
            tool_digest=self.tool.module.digest,
            entry_point=self.tool.description.entry,
            parameters=self.params,
            seed=self.experiment.policy.seed,
            environment_digest=self.tool.module.environment,
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """A claimed run that can't be performed, and why."""

    claim: Claim
    experiment: Experiment | None
    error: FullsendError
    limit_seconds: float

    @property
    def outcome(self) -> Outcome:
        """What it comes to: an import that took too long is a time-out like any other."""
        if isinstance(self.error, ToolTimeoutError):
            return replace(Outcome.of_error(self.error, Status.TIMEOUT), timeout_seconds=self.limit_seconds)
        return Outcome.of_error(self.error)


async def prepare(loader: Loader, claim: Claim, stored: Stored, timeout_seconds: float) -> Work | Fault:
    """Find all that is needed before the tool can be called.

    Args:
        loader: finds the tool.
        claim: the run.
        stored: its experiment as it was read.
        timeout_seconds: how long finding may take, unless the experiment says otherwise.
    """
    experiment: Experiment | None = None
    limit_seconds = timeout_seconds
    try:
        experiment = stored.readable()
        limit_seconds = experiment.policy.timeout_seconds or limit_seconds
        tool = await _load(loader, experiment.tool, limit_seconds)
        params = {**experiment.params, **claim.order.params}
        tool.check(params)
    except FullsendError as exc:
        return Fault(claim, experiment, exc, limit_seconds)
    return Work(claim, experiment, tool, params)


async def _load(loader: Loader, name: str, limit_seconds: float) -> Tool:
    """The tool, within the time limit, also where somebody more patient is looking at it already."""
    try:
        async with asyncio.timeout(limit_seconds):
            return await loader.load(name, limit_seconds)
    except TimeoutError:
        raise ToolTimeoutError(f"the import of '{name}' took more than {limit_seconds:g} s") from None
