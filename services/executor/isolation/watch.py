"""Looks at what a run's process tree uses, now and then, and stops the run that goes over its limit."""

import asyncio
from dataclasses import replace

from services.executor.isolation.attempt import Attempt
from services.executor.isolation.calls import NO_LIMITS, Answer, Limits, Raised, Returned
from services.executor.isolation.inside import tree

INTERVAL_SECONDS = 0.1


class Watch:
    """Watches one attempt while it has a process; costs nothing for a run without such limits.

    Memory is what is resident, of all processes of the tree together: a limit on
    address space would break whoever reserves more than it uses, as JIT compilers
    and Arrow do.
    """

    def __init__(self, attempt: Attempt, limits: Limits) -> None:
        self._attempt = attempt
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        if limits is not NO_LIMITS and (limits.memory_bytes is not None or limits.processes is not None):
            self._look_later()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def completed(self, answer: Answer) -> Answer:
        """The answer with the most memory that was seen, now that there is nothing more to see."""
        if self._timer is None or not isinstance(answer, Returned | Raised):
            return answer
        self._measure()
        return replace(answer, peak_rss_bytes=self._attempt.peak_rss_bytes or None)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_SECONDS, self._look)

    def _look(self) -> None:
        self._look_later()
        used_bytes, count = self._measure()
        memory_bytes, processes = self._limits.memory_bytes, self._limits.processes
        if memory_bytes is not None and used_bytes > memory_bytes:
            self._attempt.stop(
                f"memory limit: the run's processes held {used_bytes} bytes, and {memory_bytes} are allowed"
            )
        elif processes is not None and count > processes:
            self._attempt.stop(f"process limit: the run had {count} processes, and {processes} are allowed")

    def _measure(self) -> tuple[int, int]:
        """The bytes that the run's processes hold now, and how many processes there are."""
        process = self._attempt.process
        if process is None or not process.pid or process.ended.done():
            return 0, 0
        pids = tree.below(process.pid)
        used_bytes = sum(tree.resident_bytes(pid) for pid in pids)
        self._attempt.peak_rss_bytes = max(self._attempt.peak_rss_bytes, used_bytes)
        return used_bytes, len(pids)
