"""The values that go into a call of a tool and come out of it."""

import functools
import os
import signal
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from services.executor.isolation.sandbox import Sandbox


class Level(StrEnum):
    """How much a run shares with earlier runs of its tool."""

    WARM = "warm"
    FORK = "fork"
    SPAWN = "spawn"


@dataclass(frozen=True, slots=True)
class Module:
    """A tool's code as it was when it was looked up.

    Args:
        name: the tool's name.
        path: its file; for a package, its `__init__.py`.
        digest: the SHA-256 of the file, or of a package's manifest.  A process serves one digest only.
        python: the interpreter that its processes are started with; None for the service's own.
        environment: the digest of the tool's own environment, or empty.
        prefix: the folder of that environment, which the processes enter when they are confined.
        sandbox: what its processes are confined to, already during the import.
        main: the SHA-256 of a package's `__init__.py`.
        capabilities: those of root's that its processes keep.
        hash_seed: PYTHONHASHSEED of its processes; empty for a random one in each.

    Modules with the same `key` are served by the same process.
    """

    name: str
    path: Path
    digest: str
    python: Path | None = None
    environment: str = ""
    prefix: Path | None = None
    sandbox: Sandbox = Sandbox.PROCESS
    main: str = ""
    capabilities: tuple[str, ...] = ()
    hash_seed: str = ""
    key: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Make the key once, because each call needs it several times."""
        code = (self.name, str(self.path), self.digest)
        interpreter = (str(self.python or ""), self.environment, str(self.prefix or ""))
        key = (*code, *interpreter, self.sandbox.value, *self.capabilities)
        object.__setattr__(self, "key", (*key, f"hashes {self.hash_seed}") if self.hash_seed else key)


SEEDED_HASHES = "0"
"""The hash seed of all seeded runs.  With the run's own seed, no two of them could share a process."""


@functools.lru_cache(maxsize=1024)
def seeded(module: Module) -> Module:
    """The module in processes where texts always have the same hashes, and so sets the same order."""
    return replace(module, hash_seed=SEEDED_HASHES)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use, its whole process tree together; None is no limit."""

    memory_bytes: int | None = None
    cpu_seconds: int | None = None
    file_size_bytes: int | None = None
    open_files: int | None = None
    processes: int | None = None


NO_LIMITS = Limits()
"""Most runs have no limits.  They have this very object, which is quick to recognize."""


class Call(msgspec.Struct, frozen=True):
    """One attempt of one run.

    Args:
        module: the tool's code.
        run_id, experiment_id, attempt: what the toolkit shows to the tool.
        params: the keyword arguments, of JSON's types.
        timeout_seconds: the time limit, which includes the import.
        level: what kind of process runs it.
        limits: what it may use.
        seed: seeds the random generators, and fixes the hashes of texts; None for system entropy.
        environ: variables besides those of the pool.
        entry: another function of the module than the tool's own.
    """

    module: Module
    run_id: str
    experiment_id: str
    attempt: int
    params: Mapping[str, Any]
    timeout_seconds: float
    level: Level = Level.WARM
    limits: Limits = NO_LIMITS
    seed: int | None = None
    environ: Mapping[str, str] = msgspec.field(default_factory=dict)
    entry: str = ""


# -- what a tool reports while it runs --------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of work; `total` is None if it is unknown."""

    done: float
    total: float | None
    message: str


@dataclass(frozen=True, slots=True)
class Metric:
    """A named value that the tool measured."""

    name: str
    value: float
    tags: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Partial:
    """One item of the result, kept even if the run fails later."""

    item: Any


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that the tool, or a process that it started, printed; `at` is in Unix seconds."""

    at: float
    stream: str
    text: str


Event = Progress | Metric | Partial | LogLine
Report = Callable[[Event], None]
"""Receives events in the order in which they happened; must not block."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A copy of a file that the tool wants to keep as an artifact.

    The tool waits until it is kept, and then the copy is removed.  The executor has not verified
    `size_bytes`.
    """

    name: str
    path: Path
    size_bytes: int
    media_type: str | None = None

    def open(self) -> BinaryIO:
        """The content.  Refusal or OSError if the tool has put something else in its place."""
        file = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        found = Path(f"/proc/self/fd/{file.fileno()}").readlink()
        if found != self.path or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Refusal(f"artifact '{self.name}' is not a file in the directory for artifacts")
        return file


class Refusal(Exception):
    """A request of a tool that can't be fulfilled, however often it is repeated."""


class Effects(Protocol):
    """What is kept beyond an attempt: steps that a retry must not repeat, and artifacts.

    The tool receives a `Refusal` as a ValueError with the same message, and any other exception as a
    ConnectionError, which is retried unless the tool handles it.
    """

    async def recall(self, key: str) -> Any | None:
        """The result that `toolkit.once` has recorded under `key`, as `{"value": ...}`, or None."""

    async def record(self, key: str, value: Any) -> None:
        """Keep `value` under `key` for the later attempts of this run."""

    async def keep(self, capture: Capture) -> str | None:
        """Keep an artifact and return its reference, or None if nothing is kept."""

    async def fetch(self, reference: str, path: Path) -> None:
        """Write the artifact `reference` to the new file `path`.  Refusal if this call may not have it."""


class NothingKept:
    """For calls that are not recorded: each step is done again, and no artifact is kept."""

    async def recall(self, key: str) -> Any | None:
        """None: no step is recorded."""

    async def record(self, key: str, value: Any) -> None:
        """Do nothing."""

    async def keep(self, capture: Capture) -> str | None:
        """None: nothing is kept."""

    async def fetch(self, reference: str, path: Path) -> None:
        """Refuse: there are no artifacts."""
        raise Refusal(f"{reference:.80} is not an artifact that this call was given")


# -- what a call came to --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exit:
    """How the process of an attempt ended, and what it had used."""

    exit_code: int | None = None
    signal: str | None = None
    peak_rss_bytes: int | None = None
    cpu_seconds: float | None = None
    oom_killed: bool = False
    stacks: str = ""
    last_lines: tuple[str, ...] = ()


class Used(msgspec.Struct, frozen=True):
    """What a call used, as its process counts.

    Attributes:
        cpu_seconds: of the process and of its children that have ended; None if it has died, because then
            only what it used in all its runs is known.
        peak_bytes: the most memory (RSS) that the process ever had, perhaps in an earlier run.
    """

    cpu_seconds: float | None
    peak_bytes: int


class Returned(msgspec.Struct, frozen=True):
    """The tool returned.  `items` is the length of a result that is a list or came from a generator.

    `peak_rss_bytes` is the most memory that was measured, in runs with a limit on memory or processes.
    """

    value: Any
    items: int | None = None
    peak_rss_bytes: int | None = None
    used: Used | None = None


class Raised(msgspec.Struct, frozen=True):
    """The tool raised, or its result or import broke the contract; `traceback` has only the tool's frames.

    `peak_rss_bytes` as in `Returned`.
    """

    error_type: str
    message: str
    traceback: str = ""
    retryable: bool = False
    retry_after_seconds: float | None = None
    partial_results: Any | None = None
    peak_rss_bytes: int | None = None
    used: Used | None = None


@dataclass(frozen=True, slots=True)
class Died:
    """The process ended before it answered.  `reason` is a sentence for the record.

    It is `innocent` if it ended together with its parent, which is not the fault of this call.
    """

    reason: str
    exit: Exit
    innocent: bool = False


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt exceeded its time limit, and its process tree was ended."""

    timeout_seconds: float
    exit: Exit


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The attempt was cancelled, and its process tree was ended."""

    exit: Exit


Answer = Returned | Raised | Died | TimedOut | Cancelled


@dataclass(frozen=True, slots=True)
class Description:
    """What a tool says about itself, read in a subprocess.

    `parameters` is a JSON Schema object: `properties` (type, default, description), `required`,
    `additionalProperties`.  `neighbours` are the files in the tool's folder, relative to it, that its
    import has imported; none for a package.  `module` is the name that it was imported by, which is not its
    own if something else is imported by that.
    """

    name: str
    entry: str
    line: int
    kind: str
    summary: str
    parameters: Mapping[str, Any]
    returns: str = ""
    neighbours: tuple[str, ...] = ()
    module: str = ""


OURS = [Path(__file__).with_name(package) for package in ("child", "common")]

_MEANINGS = {
    "SIGSEGV": "a segmentation fault",
    "SIGABRT": "abort() was called",
    "SIGBUS": "a bus error",
    "SIGFPE": "an arithmetic error in native code",
    "SIGILL": "an illegal instruction",
}


def decode_status(status: int | None) -> tuple[int | None, str | None]:
    """Exit code and signal name, one of them None, from a status of wait(2)."""
    if status is None:
        return None, None
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return None, signal.Signals(number).name
        except ValueError:
            return None, f"SIG{number}"
    return os.waitstatus_to_exitcode(status), None


def exit_of(
    status: int | None,
    peak_rss_bytes: int | None,
    cpu_seconds: float | None,
    stacks: str,
    last_lines: Iterable[str],
) -> Exit:
    """How a process ended, from its status as in wait(2) and what it left; with the tool's stacks only."""
    code, number = decode_status(status)
    return Exit(
        code,
        number,
        peak_rss_bytes,
        cpu_seconds,
        stacks=without_ours(stacks),
        last_lines=tuple(last_lines),
    )


def without_ours(stacks: str) -> str:
    """A dump of faulthandler without the frames of the executor's code."""
    ours = tuple(f'File "{folder}{os.sep}' for folder in OURS)
    return "\n".join(line for line in stacks.splitlines() if not line.strip().startswith(ours))


def died_with_parent(exit_: Exit) -> bool:
    """Whether nothing is known about its end, because its parent was gone first."""
    return exit_.exit_code is None and exit_.signal is None and not exit_.oom_killed


def reason(exit_: Exit) -> str:
    """The sentence for a process that ended although the executor had not requested it."""
    if exit_.oom_killed:
        return "its process was killed by the kernel: memory had run out, the machine's or its container's"
    if exit_.signal == "SIGXCPU":
        return "CPU limit: the run used more CPU seconds than it is allowed"
    if exit_.signal is not None:
        meaning = _MEANINGS.get(exit_.signal)
        return f"its process was ended by {exit_.signal}" + (f" ({meaning})" if meaning else "")
    if exit_.exit_code is not None:
        return f"its process ended itself with exit code {exit_.exit_code} before it answered"
    return "its process ended together with the process that had started it"
