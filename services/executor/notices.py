"""What the log says of schedules: a line for each that changes, but few when all are read at once."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger()

PLANNED = "schedule.planned"
REFUSED = "schedule.refused"
FORGOTTEN = "schedule.forgotten"
NAMED = 10

Notice = Callable[..., None]
"""Takes an event of one schedule, and its fields."""


def notice(event: str, **fields: Any) -> None:
    """Write the line."""
    (log.warning if event == REFUSED else log.info)(event, **fields)


class Tally:
    """Names the first `NAMED` schedules of each event in a reading of all, and counts the others.

    What has changed while no worker of ours ran is not news: of the first reading, only refusals are named.

    Args:
        is_first: whether it is the worker's first one.
    """

    def __init__(self, *, is_first: bool) -> None:
        self._is_first = is_first
        self._counts: Counter[str] = Counter()

    def notice(self, event: str, **fields: Any) -> None:
        """Write the line, unless there are too many of its kind."""
        self._counts[event] += 1
        is_named = event == REFUSED or not self._is_first
        if is_named and self._counts[event] <= NAMED:
            notice(event, **fields)

    def sum_up(self, schedules: int, refused: int) -> None:
        """Say what there is when all are read; nothing if that was said before.

        Args:
            schedules: how many there are.
            refused: how many of them can't be read, those of which it was said before included.
        """
        if self._is_first or self._counts:
            log.info(
                "schedules.read",
                schedules=schedules,
                refused=refused,
                changed=self._counts[PLANNED] + self._counts[REFUSED],
                forgotten=self._counts[FORGOTTEN],
            )
