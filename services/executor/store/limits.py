"""Limits by key that all workers keep together: how many runs at once, how many a minute."""

from dataclasses import dataclass

from shared import keys

SHORTEST_INTERVAL_MS = 0.001  # what a double still tells apart in a time in ms
LONGEST_INTERVAL_MS = 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Limit:
    """What runs that share `key` may take up together.

    `max_concurrent` runs at once; `max_per_minute` begin, `burst` of them at
    once after a pause.  None and 0 mean no limit.
    """

    key: str
    max_concurrent: int | None = None
    max_per_minute: float | None = None
    burst: int = 1

    @property
    def interval_ms(self) -> float:
        """From one begin to the next at the steady rate; 0 without a rate limit."""
        if not self.max_per_minute:
            return 0
        return min(max(60_000 / self.max_per_minute, SHORTEST_INTERVAL_MS), LONGEST_INTERVAL_MS)

    @property
    def key_names(self) -> tuple[str, str, str]:
        """What is kept of it in Redis: holders, blocked orders, rate."""
        return keys.holders(self.key), keys.blocked(self.key), keys.rate(self.key)
