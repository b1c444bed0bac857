"""Tells which deaths were the work of the kernel's OOM killer."""

import os
import re
from collections import deque
from pathlib import Path

FRESH_SECONDS = 0.1
KEPT = 1000
READ_BYTES = 16_384
MACHINE = Path("/proc/vmstat")
_KILLS = re.compile(rb"^oom_kill (\d+)\n", re.MULTILINE)
# Kind of mount, controller, file.  Where the first version has the memory, the second has not.
_VERSIONS = (("cgroup", "memory", "memory.oom_control"), ("cgroup2", "", "memory.events"))


class OomKills:
    """The kernel's count of those it has killed for lack of memory.

    It says how many, not whom.  So each of them explains one death, of a run
    that was under way when it was counted, and whose process was killed by a
    signal that nobody here had sent.  Other services on this machine don't count
    where the service has a control group of its own.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file or counter()
        self._descriptor: int | None = None
        self._explained: deque[int] = deque(maxlen=KEPT)
        self._count = 0
        self._counted_at = float("-inf")

    def so_far(self, now: float) -> int:
        """How many there were up to now (monotonic seconds), or up to a moment ago."""
        if now - self._counted_at >= FRESH_SECONDS:
            self._count, self._counted_at = self._read(), now
        return self._count

    def explain(self, so_far: int) -> bool:
        """Whether there was one since there were `so_far`; if so, it explains no other death."""
        count = self._read()
        for number in range(max(so_far, count - KEPT) + 1, count + 1):
            if number not in self._explained:
                self._explained.append(number)
                return True
        return False

    def close(self) -> None:
        """Give the file back; it is opened again if need be."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _read(self) -> int:
        """A call waits for this, so the file stays open: opening it takes several times as long."""
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


def counter(cgroups: Path = Path("/proc/self/cgroup"), mounts: Path = Path("/proc/self/mountinfo")) -> Path:
    """Where the kernel counts for this process' control group; for the machine if that can't be seen."""
    try:
        groups = [line.split(":", 2) for line in cgroups.read_text().splitlines()]
        mounted = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return MACHINE
    for kind, controller, name in _VERSIONS:
        for _, controllers, group in groups:
            shown = [_shown(mount, kind, controller, group) for mount in mounted]
            files = [directory / name for directory in shown if directory is not None]
            if controller in controllers.split(",") and files and files[0].exists():
                return files[0]
    return MACHINE


def _shown(mount: list[str], kind: str, controller: str, group: str) -> Path | None:
    """The directory in which a line of mountinfo, as in proc(5), shows the group; None if it doesn't."""
    root, point, (found, _, options) = mount[3], mount[4], mount[mount.index("-") + 1 :][:3]
    if found != kind or (controller and controller not in options.split(",")):
        return None
    if not Path(group).is_relative_to(root):
        return None
    return Path(point, Path(group).relative_to(root))
