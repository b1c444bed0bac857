"""What goes into an isolated call and what comes out: plain values, no process in sight."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from services.executor.isolation.sandbox import Sandbox


class Level(StrEnum):
    """How much a run shares with the runs before it."""

    WARM = "warm"
    FORK = "fork"
    SPAWN = "spawn"


@dataclass(frozen=True, slots=True)
class Module:
    """A tool's code as it was when it was looked up.

    `digest` is the SHA-256 of the file; a process serves one digest only.
    `python` is the interpreter of the tool's own environment, `environment`
    that environment's digest; empty for the service's own interpreter.
    `sandbox` is what its processes are kept from, while they import it already.
    """

    name: str
    path: Path
    digest: str
    python: Path | None = None
    environment: str = ""
    sandbox: Sandbox = Sandbox.OFF

    @property
    def key(self) -> tuple[str, ...]:
        """What two modules must have in common to be served by the same process."""
        code = (self.name, str(self.path), self.digest)
        return *code, str(self.python or ""), self.environment, self.sandbox.value


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


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of one run: which code, with what, for how long."""

    module: Module
    run_id: str
    experiment_id: str
    attempt: int
    params: Mapping[str, Any]
    timeout_seconds: float
    level: Level = Level.WARM
    limits: Limits = NO_LIMITS
    seed: int | None = None
    environ: Mapping[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that the tool wants kept, captured at the moment it said so.

    The file at `path` is nobody else's and is removed with the process or at the
    next run, so whoever keeps it moves or links it before the call's answer.
    """

    name: str
    path: Path
    size_bytes: int
    sha256: str
    media_type: str


Event = Progress | Metric | Partial | Artifact | LogLine
Report = Callable[[Event], None]
"""Receives events in the order they happened; must not block."""


class Effects(Protocol):
    """Remembers the steps of a run that a retry must not repeat (`toolkit.once`)."""

    async def recall(self, key: str) -> Any | None:
        """The recorded result under `key` wrapped as `{"value": ...}`, or None."""

    async def record(self, key: str, value: Any) -> None:
        """Keep `value` under `key` for the later attempts of this run."""


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


@dataclass(frozen=True, slots=True)
class Returned:
    """The tool returned.  `items` counts the result when it is a list or came from a generator."""

    value: Any
    items: int | None = None


@dataclass(frozen=True, slots=True)
class Raised:
    """The tool raised, or its result or import broke the contract; `traceback` has no frame of ours."""

    error_type: str
    message: str
    traceback: str = ""
    retryable: bool = False
    retry_after_seconds: float | None = None
    partial_results: Any | None = None


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
    description), `required`, `additionalProperties`.
    """

    name: str
    entry: str
    line: int
    kind: str
    summary: str
    parameters: Mapping[str, Any]
    returns: str = ""
