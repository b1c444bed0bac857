"""How a run is to be performed: the experiment chooses, then the tool, then the settings.  Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from services.executor.isolation.calls import NO_LIMITS, Level, Limits
from services.executor.needs import ToolNeeds
from services.executor.store import Limit, Order
from shared.backoff import Backoff
from shared.log import masking
from shared.messages import Policy

MEGABYTE = 1_000_000
REMEMBERED = 1_000


@dataclass(frozen=True, slots=True)
class Manner:
    """How the runs of one experiment with one tool are performed.

    `timeout_seconds`, `level`, `limits` and `environ` are of each attempt; `mask` takes the
    values of `environ` out of a text.
    """

    timeout_seconds: float
    level: Level
    limits: Limits
    environ: Mapping[str, str]
    mask: Callable[[str], str]
    retry: Backoff


@dataclass(frozen=True, slots=True)
class Defaults:
    """What applies where neither the experiment nor the tool says anything.

    `environment` names variables that every tool may see; `variables` is where
    their values come from.
    """

    timeout_seconds: float
    retry: Backoff
    level: Level
    environment: Sequence[str]
    variables: Mapping[str, str]

    def manner(self, chosen: Policy, needs: ToolNeeds) -> Manner:
        """How a run of an experiment that has `chosen`, with a tool that `needs`, is performed."""
        environ = self.environ(needs)
        return Manner(
            timeout_seconds=self.timeout(chosen, needs),
            level=self.isolation(chosen, needs),
            limits=process_limits(chosen, needs),
            environ=environ,
            mask=masking(environ.values()),
            retry=self.retries(chosen),
        )

    def timeout(self, chosen: Policy, needs: ToolNeeds) -> float:
        """Seconds for one attempt."""
        return chosen.timeout_seconds or needs.timeout_seconds or self.timeout_seconds

    def isolation(self, chosen: Policy, needs: ToolNeeds) -> Level:
        """What the run shares with those before it."""
        return Level(chosen.isolation or needs.isolation or self.level)

    def environ(self, needs: ToolNeeds) -> dict[str, str]:
        """The variables that the tool may see."""
        allowed = (*self.environment, *needs.environment)
        return {name: self.variables[name] for name in allowed if name in self.variables}

    def retries(self, chosen: Policy) -> Backoff:
        """How often the run is tried."""
        least = self.retry.first_seconds if chosen.backoff_min is None else chosen.backoff_min
        most = self.retry.longest_seconds if chosen.backoff_max is None else chosen.backoff_max
        return retry_backoff(chosen.max_attempts or self.retry.max_attempts, least, max(least, most))


class Manners:
    """Tells the manner of a run; the same for most, so that it is put together once.

    It is known by the objects that say it, which are the same as long as nobody has written
    the experiment or the tool anew.
    """

    def __init__(self, defaults: Defaults) -> None:
        self._defaults = defaults
        self._known: dict[tuple[int, int], tuple[Policy, ToolNeeds, Manner]] = {}

    def of(self, chosen: Policy, needs: ToolNeeds) -> Manner:
        """How a run of that experiment with that tool is performed."""
        known = self._known.get((id(chosen), id(needs)))
        if known is not None:
            return known[2]
        if len(self._known) >= REMEMBERED:
            self._known.clear()
        manner = self._defaults.manner(chosen, needs)
        self._known[id(chosen), id(needs)] = (chosen, needs, manner)  # which keeps these ids theirs
        return manner


def retry_backoff(max_attempts: int | None, first_seconds: float, longest_seconds: float) -> Backoff:
    """Return the back-off between a run's attempts: pauses double, and jitter adds up to as much again."""
    return Backoff(first_seconds, longest_seconds, jitter=(0.0, 1.0), max_attempts=max_attempts)


def process_limits(chosen: Policy, needs: ToolNeeds) -> Limits:
    """What the run's processes may use."""
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
    """What the run must find room under, together with all that share the same key."""
    asked: list[tuple[Policy | ToolNeeds, str]] = [
        (chosen, f"experiment:{order.experiment_id}"),
        (needs, f"tool:{tool}"),
    ]
    limits = [
        Limit(_shared(one.limit_key) or own_key, one.max_concurrent, one.max_per_minute, one.burst or 1)
        for one, own_key in asked
        if one.max_concurrent or one.max_per_minute
    ]
    if order.serial:
        limits.append(Limit(f"serial:{order.experiment_id}", max_concurrent=1))
    return limits


def _shared(limit_key: str | None) -> str | None:
    """A chosen key under a name that no experiment's or tool's own can have."""
    return None if limit_key is None else f"key:{limit_key}"
