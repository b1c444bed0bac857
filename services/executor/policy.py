"""How a run is performed: the experiment's policy counts most, then the tool's, then the settings.  Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.executor.isolation.calls import NO_LIMITS, Level, Limits
from services.executor.needs import ToolNeeds
from services.executor.store import Limit, Order
from shared.backoff import Backoff
from shared.log import masking
from shared.messages import Policy

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the runs of one experiment with one tool are performed.

    Attributes:
        timeout_seconds: for one attempt.
        level: what an attempt shares with those before it.
        limits: for the processes of an attempt.
        environ: the environment variables that the tool sees.
        mask: replaces the values of `environ` in a text.
        backoff: between attempts.
    """

    timeout_seconds: float
    level: Level
    limits: Limits
    environ: Mapping[str, str]
    mask: Callable[[str], str]
    backoff: Backoff


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies where neither the experiment nor the tool chooses.

    Attributes:
        environment: names of the variables that every tool may see.
        variables: the values of these, and of those that tools ask for.
    """

    timeout_seconds: float
    backoff: Backoff
    level: Level
    environment: Sequence[str]
    variables: Mapping[str, str]

    def options(self, chosen: Policy, needs: ToolNeeds) -> RunOptions:
        """Return how a run is performed of an experiment with the policy `chosen` and a tool with `needs`.

        It takes 13 us and is the same for most runs; callers keep it with `functools.lru_cache`.
        """
        environ = self.environ(needs)
        return RunOptions(
            timeout_seconds=self.timeout(chosen, needs),
            level=self.isolation(chosen, needs),
            limits=process_limits(chosen, needs),
            environ=environ,
            mask=masking(environ.values()),
            backoff=self.retries(chosen),
        )

    def timeout(self, chosen: Policy, needs: ToolNeeds) -> float:
        """Return the seconds that one attempt may take."""
        return chosen.timeout_seconds or needs.timeout_seconds or self.timeout_seconds

    def isolation(self, chosen: Policy, needs: ToolNeeds) -> Level:
        """Return what an attempt shares with those before it."""
        return Level(chosen.isolation or needs.isolation or self.level)

    def environ(self, needs: ToolNeeds) -> dict[str, str]:
        """Return the environment variables that the tool may see."""
        allowed = (*self.environment, *needs.environment)
        return {name: self.variables[name] for name in allowed if name in self.variables}

    def retries(self, chosen: Policy) -> Backoff:
        """Return the back-off between a run's attempts, with their largest number."""
        least = self.backoff.first_seconds if chosen.backoff_min is None else chosen.backoff_min
        most = self.backoff.longest_seconds if chosen.backoff_max is None else chosen.backoff_max
        return retry_backoff(chosen.max_attempts or self.backoff.max_attempts, least, max(least, most))


def retry_backoff(max_attempts: int | None, first_seconds: float, longest_seconds: float) -> Backoff:
    """Return the back-off between a run's attempts: pauses double, and jitter adds up to as much again."""
    return Backoff(first_seconds, longest_seconds, jitter=(0.0, 1.0), max_attempts=max_attempts)


def process_limits(chosen: Policy, needs: ToolNeeds) -> Limits:
    """Return what the processes of a run may use."""
    memory_mb = chosen.memory_mb or needs.memory_mb
    file_size_mb = chosen.file_size_mb or needs.file_size_mb
    limits = Limits(
        memory_bytes=memory_mb and memory_mb * MEGABYTE,
        cpu_seconds=chosen.cpu_seconds or needs.cpu_seconds,
        file_size_bytes=file_size_mb and file_size_mb * MEGABYTE,
        open_files=chosen.open_files or needs.open_files,
        processes=chosen.processes or needs.processes,
    )
    return NO_LIMITS if limits == NO_LIMITS else limits


def shared_limits(order: Order, chosen: Policy, tool: str, needs: ToolNeeds) -> list[Limit]:
    """Return the limits that the run shares with all other runs under the same keys."""
    asked: list[tuple[Policy | ToolNeeds, str]] = [
        (chosen, f"experiment:{order.experiment_id}"),
        (needs, f"tool:{tool}"),
    ]
    limits = [
        Limit(_chosen_key(one.limit_key) or own_key, one.max_concurrent, one.max_per_minute, one.burst or 1)
        for one, own_key in asked
        if one.max_concurrent or one.max_per_minute
    ]
    if order.serial:
        limits.append(Limit(f"serial:{order.experiment_id}", max_concurrent=1))
    return limits


def _chosen_key(limit_key: str | None) -> str | None:
    """Return the key under a name that differs from every experiment's and every tool's own key."""
    return None if limit_key is None else f"key:{limit_key}"
