"""Limits on a run's whole process tree, and deaths by the kernel's OOM killer."""

import asyncio
import contextlib
import functools
import os
import re
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from services.executor.isolation.attempt import Attempt
from services.executor.isolation.calls import NO_LIMITS, Answer, Died, Exit, Limits, Raised, Returned
from services.executor.isolation.cgroups import MOUNTS, OWN, ProcessGroup, home, own_groups
from services.executor.isolation.common import memory, process_tree
from services.executor.isolation.process import Process

INTERVAL_SECONDS = 0.1
CLOSE_INTERVAL_SECONDS = 0.02
"""Where the kernel doesn't limit the number of processes, they are counted more often."""


MAX_FILES_AT_END = 200
"""A process with more open files is not measured once more when its run is over, because that would hold up
the event loop; in a thread, it would be too late."""


@dataclass(frozen=True, slots=True)
class _Usage:
    """What a run's processes use: their number, memory, CPU time, and whether the kernel has refused one."""

    processes: int
    memory_bytes: int
    cpu_seconds: float
    was_refused: bool


class LimitMonitor:
    """Measures one attempt's processes now and then, and stops the attempt when it exceeds a limit.

    Memory is that of all processes of the tree together which is in use: a limit on address space would
    break programs that reserve more than they use, as JIT compilers and Arrow do.  CPU time is that of all
    processes as well, including those that have ended; the kernel's own limit counts for each process
    alone, and can be ignored.  The number of processes is limited by the kernel where a control group can
    be made, and counted elsewhere.  A run without such limits costs nothing.  It is measured in a thread,
    because a run can have very many processes and open files.
    """

    def __init__(self, attempt: Attempt, limits: Limits) -> None:
        self._attempt = attempt
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._cpu_seconds_before = 0.0
        self._group: ProcessGroup | None = None
        self._refused_before = 0
        self._measures_memory = limits.memory_bytes is not None or limits.processes is not None
        if limits is not NO_LIMITS and (self._measures_memory or limits.cpu_seconds is not None):
            self._schedule()

    def begin(self) -> None:
        """The run begins now: what its process has used before doesn't count."""
        if self._timer is not None and self._limits.cpu_seconds is not None:
            self._cpu_seconds_before = sum(map(process_tree.cpu_seconds, self._pids()))

    async def enclose(self) -> None:
        """Have the kernel limit the number of processes from now on, if it can."""
        process = self._attempt.process
        if process is None or self._limits.processes is None:
            return
        pid = await process.known_pid()
        if not pid:  # it never was; and 0 would stand for the service itself
            return
        # The process will start one to send its reports, unless it has one already.
        threads_to_come = int(process.group is None)
        # In a thread: the kernel may take some milliseconds to move a process.
        group = process.group or await asyncio.to_thread(_group_of, pid)
        process.group = group
        if group is None or process.ended.done():
            return
        with contextlib.suppress(OSError):  # the process has just ended
            self._refused_before = group.refused()
            group.limit(self._limits.processes, process_tree.thread_count(pid) + threads_to_come)
            self._group = group

    def close(self) -> None:
        """Stop measuring."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._group is not None:
            with contextlib.suppress(OSError):  # the process has ended, and its group is gone
                self._group.limit(None)

    def completed(self, answer: Answer) -> Answer:
        """The answer, with the most memory that was measured; that of a run which exceeded a limit."""
        if not self._measures_memory or not isinstance(answer, Returned | Raised):
            return answer
        if self._was_refused():
            return Died(self._too_many(), Exit())
        process = self._attempt.process
        if process is not None and process.pid and not process.ended.done():
            self._remember(memory.held_bytes([process.pid], max_files=MAX_FILES_AT_END))
        return replace(answer, peak_rss_bytes=self._attempt.peak_rss_bytes or None)

    def _schedule(self) -> None:
        close = self._limits.processes is not None and self._group is None
        seconds = CLOSE_INTERVAL_SECONDS if close else INTERVAL_SECONDS
        self._timer = asyncio.get_running_loop().call_later(seconds, self._measure)

    def _measure(self) -> None:
        process = self._attempt.process
        if process is None or not process.pid or process.ended.done():
            self._schedule()
            return
        if process.parent is not None:
            process.parent.sweep()  # what the run has hidden from the measurement
        loop = asyncio.get_running_loop()
        measuring = loop.run_in_executor(None, self._usage, process.pid)
        measuring.add_done_callback(functools.partial(self._measured, process))

    def _usage(self, root: int) -> _Usage:
        """What the process `root` and those below it use now.  Blocks."""
        pids = process_tree.below(root)
        used_bytes = memory.held_bytes(pids) if self._measures_memory else 0
        used_seconds = 0.0
        if self._limits.cpu_seconds is not None:
            used_seconds = sum(map(process_tree.cpu_seconds, pids))
        return _Usage(len(pids), used_bytes, used_seconds, self._was_refused())

    def _measured(self, process: Process, done: asyncio.Future[_Usage]) -> None:
        if self._is_closed or done.cancelled():
            return
        self._schedule()
        if process is not self._attempt.process:  # it was unfit, and another one serves the attempt now
            return
        usage = done.result()
        self._remember(usage.memory_bytes)
        verdict = self._judge(usage)
        if verdict:
            self._attempt.stop(verdict)

    def _remember(self, used_bytes: int) -> None:
        self._attempt.peak_rss_bytes = max(self._attempt.peak_rss_bytes, used_bytes)

    def _judge(self, usage: _Usage) -> str:
        """The limit that the run's processes exceed, as a sentence; empty if none."""
        limits = self._limits
        if limits.memory_bytes is not None and usage.memory_bytes > limits.memory_bytes:
            return (
                f"memory limit: the run's processes held {usage.memory_bytes} bytes, "
                f"and {limits.memory_bytes} are allowed"
            )
        if limits.processes is not None and usage.processes > limits.processes:
            return (
                f"process limit: the run had {usage.processes} processes, and {limits.processes} are allowed"
            )
        if usage.was_refused:
            return self._too_many()
        used_seconds = usage.cpu_seconds - self._cpu_seconds_before
        if limits.cpu_seconds is not None and used_seconds > limits.cpu_seconds:
            return (
                f"CPU limit: the run's processes used {used_seconds:.1f} CPU seconds, "
                f"and {limits.cpu_seconds} are allowed"
            )
        return ""

    def _was_refused(self) -> bool:
        """Whether the kernel has refused the run a process.  A run that exceeds a limit is ended."""
        if self._group is None:
            return False
        try:
            return self._group.refused() > self._refused_before
        except OSError:  # the process has ended, and its group is gone
            return False

    def _too_many(self) -> str:
        return (
            f"process limit: the run was refused a process or a thread, "
            f"because {self._limits.processes} are allowed"
        )

    def _pids(self) -> list[int]:
        process = self._attempt.process
        if process is None or not process.pid or process.ended.done():
            return []
        return process_tree.below(process.pid)


def _group_of(pid: int) -> ProcessGroup | None:
    """A group of its own for a process, in which it is now; None if there can't be one."""
    directory = home()
    if directory is None:
        return None
    try:
        group = ProcessGroup(directory)
    except OSError:
        return None
    try:
        group.enclose(pid)
    except OSError:
        group.remove()
        return None
    return group


# -- the OOM killer -------------------------------------------------------------------

FRESH_SECONDS = 0.1
MAX_REMEMBERED = 1000
READ_BYTES = 16_384
MACHINE_COUNTER = Path("/proc/vmstat")
_KILLS = re.compile(rb"^oom_kill (\d+)\n", re.MULTILINE)
# By the kind of mount.
_COUNTERS = {"cgroup": "memory.oom_control", "cgroup2": "memory.events"}


class OomKills:
    """Tells which deaths were the work of the kernel's OOM killer.

    The kernel counts the processes that it kills for lack of memory, but doesn't say which they were.  So
    each of them explains one death: of a run that was under way when it was counted, and whose process was
    killed by a signal that the executor did not send.  Other services on this machine don't count if the
    service has a control group of its own.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or counter_file()
        self._descriptor: int | None = None
        self._explained: deque[int] = deque(maxlen=MAX_REMEMBERED)
        self._count = 0
        self._counted_at = float("-inf")

    def so_far(self, now: float) -> int:
        """The count at `now` (monotonic seconds), or up to FRESH_SECONDS before."""
        if now - self._counted_at >= FRESH_SECONDS:
            self._count, self._counted_at = self._read(), now
        return self._count

    def explain(self, so_far: int) -> bool:
        """Whether there was a kill since the count was `so_far`.  If so, it explains no other death."""
        count = self._read()
        for number in range(max(so_far, count - MAX_REMEMBERED) + 1, count + 1):
            if number not in self._explained:
                self._explained.append(number)
                return True
        return False

    def close(self) -> None:
        """Close the file; it is opened again if need be."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read(self) -> int:
        """The count.  The file stays open, because opening it takes several times as long as reading it."""
        text, found = b"", None
        try:
            if self._descriptor is None:
                self._descriptor = os.open(self._file, os.O_RDONLY | os.O_CLOEXEC)
            while found is None and (more := os.pread(self._descriptor, READ_BYTES, len(text))):
                text += more
                found = _KILLS.search(text)
        except OSError:
            self.close()
            return self._count
        return int(found[1]) if found else 0


def counter_file(cgroups: Path = OWN, mounts: Path = MOUNTS) -> Path:
    """The file with the count for this process' control group, or for the machine if that can't be seen."""
    for kind, directory in own_groups("memory", cgroups, mounts):
        file = directory / _COUNTERS[kind]
        if file.exists():
            return file
    return MACHINE_COUNTER
