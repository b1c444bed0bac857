"""Control groups: where this process' own is, and groups that limit how many processes a run has."""

import functools
import itertools
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "fullsend-"
OWN, MOUNTS = Path("/proc/self/cgroup"), Path("/proc/self/mountinfo")
# Kind of mount and controller.  If version 1 of control groups has a controller, version 2 does not.
_VERSIONS = (("cgroup", "{}"), ("cgroup2", ""))
_PROBE = ["sleep", "60"]
_REMOVAL_SECONDS = (0.05, 0.2, 1.0, 5.0)

_numbers = itertools.count(1)


def own_groups(controller: str, cgroups: Path = OWN, mounts: Path = MOUNTS) -> Iterator[tuple[str, Path]]:
    """The directories of the group that this process is in for a controller, each with its kind of mount."""
    try:
        groups = [line.split(":", 2) for line in cgroups.read_text().splitlines()]
        mounted = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return
    for kind, pattern in _VERSIONS:
        wanted = pattern.format(controller)
        for _, controllers, group in groups:
            shown = [_shown(mount, kind, wanted, group) for mount in mounted]
            directories = [directory for directory in shown if directory is not None]
            if wanted in controllers.split(",") and directories:
                yield kind, directories[0]


def _shown(mount: list[str], kind: str, controller: str, group: str) -> Path | None:
    """The directory where a line of mountinfo, as in proc(5), shows the group; None if it doesn't."""
    root, point, (found, _, options) = mount[3], mount[4], mount[mount.index("-") + 1 :][:3]
    if found != kind or (controller and controller not in options.split(",")):
        return None
    if not Path(group).is_relative_to(root):
        return None
    return Path(point, Path(group).relative_to(root))


class ProcessGroup:
    """A control group with one process and all that it starts; the kernel refuses more tasks than its limit.

    The kernel counts threads as processes.  All methods may block, and raise OSError if the kernel refuses.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / f"{PREFIX}{os.getpid()}-{next(_numbers)}"
        self._path.mkdir()

    def enclose(self, pid: int) -> None:
        """Move a process here, with its threads."""
        self._write("cgroup.procs", str(pid))

    def limit(self, processes: int | None, threads: int = 1) -> None:
        """Allow so many processes, of which one has `threads` threads already; None allows any number."""
        self._write("pids.max", "max" if processes is None else str(processes + threads - 1))

    def refused(self) -> int:
        """How often the kernel has refused a task so far."""
        words = (self._path / "pids.events").read_text().split()
        return int(words[words.index("max") + 1])

    def remove(self, attempt: int = 0) -> None:
        """Remove the group, at once or soon: the kernel keeps it until its last process is reaped."""
        try:
            self._path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if attempt < len(_REMOVAL_SECONDS):
                again = threading.Timer(_REMOVAL_SECONDS[attempt], self.remove, (attempt + 1,))
                again.daemon = True
                again.start()

    def _write(self, name: str, text: str) -> None:
        (self._path / name).write_text(text)


@functools.cache
def home() -> Path | None:
    """The directory in which groups that limit processes can be made; None if there is none.  Blocks."""
    for kind, directory in own_groups("pids"):
        with suppress(OSError, ValueError, LookupError):
            if kind == "cgroup2":
                (directory / "cgroup.subtree_control").write_text("+pids")
            with _probe(directory) as group:
                group.limit(1)
                group.refused()
            _remove_abandoned(directory)
            return directory
    return None


def _remove_abandoned(directory: Path) -> None:
    """Remove the groups of services that were killed."""
    for group in directory.glob(f"{PREFIX}*-*"):
        owner = group.name.removeprefix(PREFIX).partition("-")[0]
        if not Path("/proc", owner).exists():
            with suppress(OSError):
                group.rmdir()


@contextmanager
def _probe(directory: Path) -> Iterator[ProcessGroup]:
    group = ProcessGroup(directory)
    process = subprocess.Popen(_PROBE, stdin=subprocess.DEVNULL)
    try:
        group.enclose(process.pid)
        yield group
    finally:
        process.kill()
        process.wait()
        group.remove()
