"""What a tool may reach, and how this machine can confine it.

With Landlock, the tool's process confines itself before it imports the tool (`common/confine.py`).  On a
kernel without Landlock, bubblewrap starts the fork server in a file system that holds nothing else.  If
there is neither, a tool whose files are to be confined is refused: it never runs unconfined.  Level
`process`, which every tool has at least, is never refused; `unprotected` says what it lacks here.
"""

import functools
import mimetypes
import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

from services.executor.isolation.common import landlock, seccomp
from services.executor.isolation.common.capabilities import GRANTABLE
from shared.errors import SandboxUnavailableError

_HERE = Path(__file__).parent
# The code of the executor that a tool's process loads, and the toolkit.
OURS = (_HERE / "child", _HERE / "common", _HERE.parents[2] / "shared" / "toolkit.py")

LIBRARIES = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/usr/local/lib64",
    "/nix/store", "/etc/ld.so.cache", "/etc/ld.so.preload",
)  # fmt: skip
TIME = ("/etc/localtime", "/etc/timezone", "/usr/share/zoneinfo")
HOST_NAMES = (
    "/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/run/systemd/resolve", "/etc/nsswitch.conf",
    "/etc/gai.conf", "/etc/services", "/etc/protocols",
)  # fmt: skip
# Not the folders above them, which hold private keys.
CERTIFICATES = (
    "/etc/ssl/certs", "/etc/ssl/cert.pem", "/etc/ssl/openssl.cnf", "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem", "/etc/pki/tls/openssl.cnf", "/etc/pki/ca-trust/extracted",
    "/etc/ca-certificates/extracted", "/etc/crypto-policies/back-ends", "/usr/share/ca-certificates",
    "/usr/local/share/ca-certificates",
)  # fmt: skip
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
# The number of processors and the size of memory, also in a container.
MACHINE = (
    "/sys/devices/system/cpu", "/sys/fs/cgroup/cpu.max", "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
)  # fmt: skip
PROC = (
    "/proc/cpuinfo", "/proc/filesystems", "/proc/loadavg", "/proc/meminfo", "/proc/stat", "/proc/uptime",
    "/proc/version", "/proc/sys/vm/overcommit_memory",
)  # fmt: skip

# If an interpreter shares its prefix with the whole system, only its own files there are readable.
SHARED_PREFIXES = (Path("/"), Path("/usr"), Path("/usr/local"))
# In any other prefix, only these are readable: it may be a project's folder, with secrets in it.
PREFIX_PARTS = ("bin", "include", "lib", "lib64", "libexec", "pyvenv.cfg", "share", "ssl")

PROBE_SECONDS = 10.0


class Sandbox(StrEnum):
    """What tools are confined to: nothing, their own processes, their files, their files and no network."""

    OFF = "off"
    PROCESS = "process"
    FILES = "files"
    FILES_AND_NETWORK = "files+network"

    @property
    def limits_files(self) -> bool:
        """Whether there are files of the service's user that a tool doesn't reach."""
        return self in (Sandbox.FILES, Sandbox.FILES_AND_NETWORK)


@dataclass(frozen=True, slots=True)
class Landlock:
    """The kernel confines processes; `abi` is its version of Landlock."""

    abi: int


@dataclass(frozen=True, slots=True)
class Bubblewrap:
    """The kernel can't confine processes, but this program starts them in namespaces of their own."""

    program: Path


@dataclass(frozen=True, slots=True)
class Unavailable:
    """Nothing on this machine can confine a process; `reason` says what is missing."""

    reason: str


Kind = Landlock | Bubblewrap | Unavailable


@dataclass(frozen=True, slots=True)
class Confinement:
    """What one process may reach: it may read `readable`, write `writable`, and nothing else."""

    level: Sandbox
    kind: Kind
    readable: tuple[Path, ...]
    writable: tuple[Path, ...]
    network: bool
    capabilities: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The argument of `confine.apply`, which the process applies to itself."""
        return {
            "level": self.level.value,
            "landlock_abi": self.kind.abi if isinstance(self.kind, Landlock) else 0,
            "readable": [str(path) for path in self.readable],
            "writable": [str(path) for path in self.writable],
            "network": self.network,
            "capabilities": list(self.capabilities),
        }


@functools.cache
def detect() -> Kind:
    """How this machine can confine processes.  May start a process, so it must not run on the event loop."""
    return best_kind(landlock.version(), filters=seccomp.is_supported())


def best_kind(abi: int, *, filters: bool) -> Kind:
    """How a machine can confine processes that has this version of Landlock (0: none) and maybe filters."""
    if abi and filters:
        return Landlock(abi)
    missing = "filters for system calls" if abi else "Landlock"
    program = shutil.which("bwrap")
    if program is None:
        return Unavailable(f"the kernel has no {missing}, and bubblewrap is not installed")
    problem = _probe(program)
    if problem:
        return Unavailable(f"the kernel has no {missing}, and {program} can't be used: {problem}")
    return Bubblewrap(Path(program))


def confinement(
    level: Sandbox,
    *,
    prefixes: Iterable[Path],
    tools: Path,
    temp: Path,
    environment: Path | None = None,
    also: Iterable[Path] = (),
    kind: Kind | None = None,
    capabilities: tuple[str, ...] = (),
) -> Confinement:
    """What a tool's process may reach at `level`, `files` or `files+network`.

    Args:
        level: what the tool is confined to.
        prefixes: those of the interpreter, see `prefixes_of`.
        tools: the folder of the tool's file and its neighbours.
        temp: the only directory that the process may write to; it must exist when the process is confined.
        environment: the folder of the tool's own environment, if it has one.
        also: what else the operator lets tools read and execute.
        kind: how it is confined; by default, what `detect` returns.
        capabilities: those that the process keeps, if it has them.

    Raises:
        SandboxUnavailableError: nothing here can confine a process.
    """
    kind = kind or detect()
    proc: tuple[Path, ...] = ()
    match kind:
        case Landlock():
            _hold_proc()
            proc = tuple(map(Path, PROC))
        case Bubblewrap():
            pass  # it mounts its own /proc
        case Unavailable(reason):
            raise SandboxUnavailableError(
                f"sandbox {level.value!r} can't be enforced here: {reason}; use a kernel from 5.13 on with "
                "landlock in its lsm= parameter, or install bubblewrap, or set the sandbox to 'process'"
            )
        case _:
            assert_never(kind)
    own = [tools, *also] if environment is None else [tools, environment, *also]
    readable = (*own, *OURS, *_interpreters(tuple(prefixes)), *_system(), *proc)
    network = level is Sandbox.FILES
    return Confinement(level, kind, _existing(readable), (temp.absolute(),), network, capabilities)


def of_tool(
    level: Sandbox,
    *,
    file: Path,
    python: Path,
    temp: Path,
    environ: Mapping[str, str],
    environment: Path | None = None,
    also: Iterable[Path] = (),
    kind: Kind | None = None,
    capabilities: tuple[str, ...] = (),
) -> Confinement:
    """The confinement of the process that serves the tool in `file` under `python`.

    `environ` is the tool's environment; the certificates that it names are readable.  The other arguments
    and the errors are those of `confinement`.
    """
    named = [part for name in CERTIFICATE_VARIABLES for part in environ.get(name, "").split(os.pathsep)]
    return confinement(
        level,
        prefixes=prefixes_of(python),
        tools=file.parent,
        temp=temp,
        environment=environment,
        also=[*also, *(Path(part) for part in named if part)],
        kind=kind,
        capabilities=capabilities,
    )


@functools.cache
def of_processes(capabilities: tuple[str, ...] = (), version: int | None = None) -> Confinement:
    """The confinement at level `process`, which keeps a tool from all processes that it has not started.

    Args:
        capabilities: those that the process keeps, if it has them.
        version: that of Landlock; by default, this kernel's.
    """
    version = landlock.version() if version is None else version
    usable = version >= landlock.REFER_VERSION
    kind = Landlock(version) if usable else Unavailable("Landlock would forbid to rename files")
    return Confinement(Sandbox.PROCESS, kind, (), (), True, capabilities)


def unprotected(version: int | None = None, *, filters: bool | None = None) -> str:
    """What level `process` does not protect on this kernel; empty if nothing is missing.

    `version` is that of Landlock, `filters` whether system calls can be filtered; by default, as this kernel
    has them.
    """
    version = landlock.version() if version is None else version
    filters = seccomp.is_supported() if filters is None else filters
    return "; ".join(filter(None, (_unprotected_by_landlock(version), "" if filters else _UNFILTERED)))


_UNFILTERED = (
    "system calls can't be filtered here: tools can change the limits and the scheduling of all processes of "
    "the same user, and so end the service; use a kernel with CONFIG_SECCOMP_FILTER, on x86_64 or aarch64"
)


def _unprotected_by_landlock(version: int) -> str:
    if version < landlock.REFER_VERSION:
        return (
            "this kernel has no Landlock, or an old one: tools can read the memory and the environment of "
            "each other's processes and of other programs of the same user, and send signals to all of them, "
            "the service included; use Linux 5.19 or newer with landlock in its lsm= parameter"
        )
    if version < landlock.SCOPES_VERSION:
        return (
            "this kernel's Landlock is older than Linux 6.12: tools can send signals to all processes of the "
            "same user, the service included, and connect to their abstract sockets"
        )
    return ""


def known_capability(name: str) -> str:
    """Return `name`, that of a capability.  ValueError if no tool can have it."""
    if name not in GRANTABLE:
        raise ValueError(f"is no capability that a tool can have; these are {', '.join(GRANTABLE)}")
    return name


def stricter(*levels: Sandbox | None) -> Sandbox:
    """The strictest of several levels: a tool may restrict itself further than the operator does."""
    order = list(Sandbox)
    return max((level for level in levels if level is not None), key=order.index, default=Sandbox.PROCESS)


def prefixes_of(python: Path) -> tuple[Path, ...]:
    """Where an interpreter's files are: its virtual environment, and the installation below that."""
    homes = [python.absolute().parent, python.resolve().parent]
    base = _home_in(homes[0].parent / "pyvenv.cfg")
    if base is not None:
        homes += [base, (base / python.name).resolve().parent]
    return tuple(dict.fromkeys(home.parent for home in homes))


def command(confined: Confinement) -> list[str]:
    """The prefix of a fork server's command that confines all its processes; with Landlock, there is none.

    With bubblewrap, all processes of the fork server share the confinement, so it must serve only one.  It
    has its own namespace of process ids.
    """
    if not isinstance(confined.kind, Bubblewrap):
        return []
    options = ["--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev"]
    # Root owns the kernel's settings, even without capabilities.
    options += ["--remount-ro", "/proc"]
    if confined.network:
        options.append("--share-net")
    for path in sorted(confined.readable):
        options += ["--ro-bind", str(path), str(path)]
    for path in sorted(confined.writable):
        options += ["--bind", str(path), str(path)]
    return [str(confined.kind.program), *options, "--remount-ro", "/", "--"]


def _home_in(config: Path) -> Path | None:
    """The folder of the interpreter that a virtual environment was made with, or None."""
    try:
        lines = config.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition("=")
        if name.strip() == "home":
            return Path(value.strip())
    return None


@functools.cache
def _interpreters(prefixes: tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(path for prefix in prefixes for path in _interpreter(prefix))


def _interpreter(prefix: Path) -> Iterator[Path]:
    """The files of an interpreter in one prefix; the libraries of a shared prefix are the system's."""
    if prefix in SHARED_PREFIXES:
        yield from sorted((prefix / "bin").glob("python*"))
    else:
        yield from (prefix / part for part in PREFIX_PARTS)


@functools.cache
def _system() -> tuple[Path, ...]:
    """What any program needs, and nothing private to a user or a service."""
    named = (*LIBRARIES, *TIME, *HOST_NAMES, *CERTIFICATES, *MACHINE, *mimetypes.knownfiles)
    return (*map(Path, named), *sorted(Path("/etc").glob("python3*")))


def _existing(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Those that exist, once each, as absolute paths."""
    return tuple(dict.fromkeys(path.absolute() for path in paths if path.exists()))


@functools.cache
def _hold_proc() -> tuple[int, ...]:
    """Hold the inodes of these entries of /proc open while this process lives.

    A rule of Landlock belongs to an entry's inode, and /proc makes new inodes once nobody holds the old
    ones.  Then a process would lose what it is allowed.
    """
    return tuple(os.open(path, os.O_PATH | os.O_CLOEXEC) for path in PROC if Path(path).exists())


def _probe(program: str) -> str:
    """Why bubblewrap can't create namespaces here; empty if it can."""
    trial = [program, "--unshare-all", "--ro-bind", "/", "/", program, "--version"]
    try:
        done = subprocess.run(trial, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else (done.stderr.strip() or f"it exits with {done.returncode}")
