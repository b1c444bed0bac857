"""Looks at what a run's process tree uses, now and then, and stops the run that goes over its limit."""

import asyncio

from msgspec.structs import replace

from services.executor.isolation.attempt import Attempt
from services.executor.isolation.calls import NO_LIMITS, Answer, Limits, Raised, Returned
from services.executor.isolation.common import process_tree

INTERVAL_SECONDS = 0.1


class Watch:
    """Watches one attempt while it has a process; costs nothing for a run without such limits.

    Memory is what is resident, of all processes of the tree together: a limit on
    address space would break whoever reserves more than it uses, as JIT compilers
    and Arrow do.  CPU time is that of all of them too, those included that were
    buried; the kernel's own limit counts for each process alone, and can be ignored.
    """

    def __init__(self, attempt: Attempt, limits: Limits) -> None:
        self._attempt = attempt
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._cpu_seconds_before = 0.0
        self._measures_memory = limits.memory_bytes is not None or limits.processes is not None
        if limits is not NO_LIMITS and (self._measures_memory or limits.cpu_seconds is not None):
            self._look_later()

    def begin(self) -> None:
        """The run begins now: what its process has used by then doesn't count."""
        if self._timer is not None and self._limits.cpu_seconds is not None:
            self._cpu_seconds_before = sum(map(process_tree.cpu_seconds, self._pids()))

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()

    def completed(self, answer: Answer) -> Answer:
        """The answer with the most memory that was seen, now that there is nothing more to see."""
        if not self._measures_memory or not isinstance(answer, Returned | Raised):
            return answer
        self._measure_memory(self._pids())
        return replace(answer, peak_rss_bytes=self._attempt.peak_rss_bytes or None)

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL_SECONDS, self._look)

    def _look(self) -> None:
        self._look_later()
        verdict = self._judge(self._pids())
        if verdict:
            self._attempt.stop(verdict)

    def _judge(self, pids: list[int]) -> str:
        """Which limit the run's processes are over; empty if none."""
        limits = self._limits
        used_bytes = self._measure_memory(pids) if self._measures_memory else 0
        if limits.memory_bytes is not None and used_bytes > limits.memory_bytes:
            return (
                f"memory limit: the run's processes held {used_bytes} bytes, "
                f"and {limits.memory_bytes} are allowed"
            )
        if limits.processes is not None and len(pids) > limits.processes:
            return f"process limit: the run had {len(pids)} processes, and {limits.processes} are allowed"
        if limits.cpu_seconds is not None:
            used_seconds = sum(map(process_tree.cpu_seconds, pids)) - self._cpu_seconds_before
            if used_seconds > limits.cpu_seconds:
                return (
                    f"CPU limit: the run's processes used {used_seconds:.1f} CPU seconds, "
                    f"and {limits.cpu_seconds} are allowed"
                )
        return ""

    def _measure_memory(self, pids: list[int]) -> int:
        """The bytes that the run's processes hold now."""
        used_bytes = sum(map(process_tree.resident_bytes, pids))
        self._attempt.peak_rss_bytes = max(self._attempt.peak_rss_bytes, used_bytes)
        return used_bytes

    def _pids(self) -> list[int]:
        process = self._attempt.process
        if process is None or not process.pid or process.ended.done():
            return []
        return process_tree.below(process.pid)
