"""What goes into an isolated call and what comes out: plain values, no process in sight."""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec

from services.executor.isolation.sandbox import Sandbox


class Level(StrEnum):
    """How much a run shares with the runs before it."""

    WARM = "warm"
    FORK = "fork"
    SPAWN = "spawn"


@dataclass(frozen=True, slots=True)
class Module:
    """A tool's code as it was when it was looked up.

    `digest` is the SHA-256 of the file, of a package that of its manifest; a process
    serves one digest only.  `main` is the SHA-256 of a package's `__init__.py`, at `path`.
    `python` is the interpreter of the tool's own environment, `environment`
    that environment's digest; empty for the service's own interpreter.
    `sandbox` is what its processes are kept from, while they import it already.
    `key` is what two modules must have in common to be served by the same process.
    """

    name: str
    path: Path
    digest: str
    python: Path | None = None
    environment: str = ""
    sandbox: Sandbox = Sandbox.OFF
    main: str = ""
    key: tuple[str, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Every call asks for the key several times, so it is made once."""
        code = (self.name, str(self.path), self.digest)
        key = (*code, str(self.python or ""), self.environment, self.sandbox.value)
        object.__setattr__(self, "key", key)


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use, its whole process tree together; None means no limit."""

    memory_bytes: int | None = None
    cpu_seconds: int | None = None
    file_size_bytes: int | None = None
    open_files: int | None = None
    processes: int | None = None


NO_LIMITS = Limits()
"""Most runs have none, and then this very object says so."""


class Call(msgspec.Struct, frozen=True):
    """One attempt of one run: which code, with what, for how long.

    `entry` names another function of the module than the one that makes it a tool.
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


# -- what a tool says while it runs ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of work; `total` is None when the tool can't know it."""

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
    """One item of the result, kept even when the run fails later."""

    item: Any


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line that the tool, or anything below it, printed.  `at` is unix seconds."""

    at: float
    stream: str
    text: str


Event = Progress | Metric | Partial | LogLine
Report = Callable[[Event], None]
"""Receives events in the order they happened; must not block."""


@dataclass(frozen=True, slots=True)
class Capture:
    """A file that the tool wants kept, captured at the moment it said so.

    The tool waits until it is kept, and the file is gone afterwards.  `size_bytes`
    and `sha256` are the tool's word.
    """

    name: str
    path: Path
    size_bytes: int
    sha256: str
    media_type: str | None = None

    def open(self) -> BinaryIO:
        """The content.  Refusal or OSError if the tool has put anything but a file in its place."""
        file = os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        found = Path(f"/proc/self/fd/{file.fileno()}").readlink()
        if found != self.path or not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise Refusal(f"artifact '{self.name}' is not a file in the place for artifacts")
        return file


class Refusal(Exception):
    """What a tool asks for can't be had, however often it asks."""


class Effects(Protocol):
    """What outlives an attempt: steps that a retry must not repeat, and artifacts.

    A `Refusal` reaches the tool as a ValueError with the same words, whatever else these
    raise as a ConnectionError, which is worth a retry unless the tool knows better.
    """

    async def recall(self, key: str) -> Any | None:
        """The recorded result of `toolkit.once` under `key` wrapped as `{"value": ...}`, or None."""

    async def record(self, key: str, value: Any) -> None:
        """Keep `value` under `key` for the later attempts of this run."""

    async def keep(self, capture: Capture) -> str | None:
        """Keep an artifact; its reference, None where nothing is kept."""

    async def fetch(self, reference: str, path: Path) -> None:
        """Write what `reference` names into the new file at `path`, if this call may have it."""


class NothingKept:
    """For calls that nobody records: every step is done anew, and no artifact is kept."""

    async def recall(self, key: str) -> Any | None:
        """None: no step was done."""

    async def record(self, key: str, value: Any) -> None:
        """Forget it."""

    async def keep(self, capture: Capture) -> str | None:
        """None: it is not kept."""

    async def fetch(self, reference: str, path: Path) -> None:
        """Refuse: there is nothing."""
        raise Refusal(f"{reference:.80} is not an artifact that this call was given")


# -- what a call came to --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exit:
    """How the process of an attempt ended, and what it had used by then."""

    exit_code: int | None = None
    signal: str | None = None
    peak_rss_bytes: int | None = None
    cpu_seconds: float | None = None
    oom_killed: bool = False
    stacks: str = ""
    last_lines: tuple[str, ...] = ()


class Returned(msgspec.Struct, frozen=True):
    """The tool returned.  `items` counts the result when it is a list or came from a generator.

    `peak_rss_bytes` is the most that its processes were seen to hold; only a run whose
    memory or processes are limited is looked at.
    """

    value: Any
    items: int | None = None
    peak_rss_bytes: int | None = None


class Raised(msgspec.Struct, frozen=True):
    """The tool raised, or its result or import broke the contract; `traceback` has no frame of ours.

    `peak_rss_bytes` as in `Returned`.
    """

    error_type: str
    message: str
    traceback: str = ""
    retryable: bool = False
    retry_after_seconds: float | None = None
    partial_results: Any | None = None
    peak_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Died:
    """The process ended before it answered.  `reason` is a sentence for the record.

    `innocent` when it went down with the process that had started it, whoever's fault that was.
    """

    reason: str
    exit: Exit
    innocent: bool = False


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The attempt went over its limit and its process tree was ended."""

    timeout_seconds: float
    exit: Exit


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Somebody asked for the attempt's end; its process tree is gone."""

    exit: Exit


Answer = Returned | Raised | Died | TimedOut | Cancelled


@dataclass(frozen=True, slots=True)
class Description:
    """What a tool says of itself, read by a child.

    `parameters` is a JSON Schema object: `properties` (type, default,
    description), `required`, `additionalProperties`.  `neighbours` are the files beside
    the tool's own, relative to its folder, that its import has imported; none for a package.
    """

    name: str
    entry: str
    line: int
    kind: str
    summary: str
    parameters: Mapping[str, Any]
    returns: str = ""
    neighbours: tuple[str, ...] = ()
