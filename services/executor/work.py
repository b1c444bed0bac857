"""What a claimed run needs before its tool can be called: found, or the reason why it can't be."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from services.executor.loader import Loader, Tool
from services.executor.outcome import Outcome, Status
from services.executor.result_cache import Identity
from services.executor.store import Claim, Order, Stored
from services.executor.tools.bundles import parse
from shared.documents import kind, validated
from shared.errors import ContractError, FullsendError, ToolTimeoutError
from shared.messages import Experiment, Policy, State


class Work(Struct, frozen=True):
    """A claimed run with all that its experiment and its tool say."""

    claim: Claim
    experiment: Experiment
    tool: Tool
    params: Mapping[str, Any]

    @property
    def may_run_ahead(self) -> bool:
        """Whether the tool may be called while its begin is on the way."""
        return may_run_ahead(self.claim, self.experiment)

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
    tool_digest: str | None = None

    @property
    def outcome(self) -> Outcome:
        """What it comes to."""
        return outcome_of(self.error, self.limit_seconds)


def may_run_ahead(claim: Claim, experiment: Experiment) -> bool:
    """Whether hardly anything can refuse the begin of a claimed run.

    Not where nothing may be done twice, for a worker that dies in that moment leaves no trace of
    the begin; nor for an order that came again, whose run may have been cancelled while it waited.
    """
    is_first = claim.order.timestamp == claim.entry and claim.order.attempt == 1
    chosen = experiment.policy
    is_limited = claim.order.serial or chosen.max_concurrent or chosen.max_per_minute
    could_begin = experiment.state is not State.ARCHIVED and not chosen.cache and not is_limited
    return is_first and could_begin and chosen.on_worker_death != "fail"


async def prepare(loader: Loader, claim: Claim, stored: Stored, timeout_seconds: float) -> Work | Fault:
    """Find all that is needed before the tool can be called.

    Args:
        loader: finds the tool.
        claim: the run.
        stored: its experiment as it was read; of no account where the order brings its own.
        timeout_seconds: how long finding may take, unless the experiment says otherwise.
    """
    experiment: Experiment | None = None
    limit_seconds = timeout_seconds
    try:
        experiment = experiment_of(claim.order, stored)
        limit_seconds = experiment.policy.timeout_seconds or limit_seconds
        tool = await load(loader, experiment.tool, limit_seconds)
        params = {**experiment.params, **claim.order.params}
        tool.check(params)
    except FullsendError as exc:
        return Fault(claim, experiment, exc, limit_seconds, _digest(loader, experiment))
    return Work(claim, experiment, tool, params)


def experiment_of(order: Order, stored: Stored) -> Experiment:
    """What the order brings along, or else what is stored.  Raises `ContractError`."""
    if not order.experiment:
        return stored.readable()
    place, tool = f"the order of {order.run_id}", order.experiment.get("tool")
    if not isinstance(tool, str) or not tool:
        raise ContractError(f"{place} has {kind(tool)} as its experiment's 'tool'; expected a tool's name")
    return Experiment(
        id=order.experiment_id,
        state=State.READY,
        tool=tool,
        params={},
        schedule=None,
        timezone=None,
        policy=validated(Policy, place, order.experiment),
    )


def outcome_of(error: FullsendError, limit_seconds: float) -> Outcome:
    """What a fault before the call comes to: an import that took too long is a time-out like any other."""
    if isinstance(error, ToolTimeoutError):
        return replace(Outcome.of_error(error, Status.TIMEOUT), timeout_seconds=limit_seconds)
    return Outcome.of_error(error)


async def load(loader: Loader, name: str, limit_seconds: float) -> Tool:
    """The tool, within the time limit, also where somebody more patient is looking at it already.

    Raises:
        ToolError: as the loader does; `ToolTimeoutError` when it takes longer.
    """
    known = loader.loaded(name)
    if known is not None:
        return known
    try:
        async with asyncio.timeout(limit_seconds):
            return await loader.load(name, limit_seconds)
    except TimeoutError:
        raise ToolTimeoutError(f"the import of '{name}' took more than {limit_seconds:g} s") from None


def _digest(loader: Loader, experiment: Experiment | None) -> str | None:
    """The digest of code that was found, even if it can't be used."""
    if experiment is None:
        return None
    try:
        reference = parse(experiment.tool)
        return reference[1] if reference else loader.find(experiment.tool).digest
    except FullsendError:
        return None
