"""What a tool may say to the executor while it runs: `from shared import toolkit`.

Standard library only, Python 3.9 and later.  Run by hand, outside the executor,
everything here does something harmless: progress, metrics and partial items are
printed to stderr, `once` simply calls, and `run` describes a run that nobody
recorded.  Only the process that the executor calls is heard; in processes that a
tool starts itself, these functions behave as if run by hand.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Callable, TypeVar

T = TypeVar("T")

_executor: Any = None


def progress(done: float, total: float | None = None, message: str = "") -> None:
    """Say how far the run is: `done` of `total` units of whatever the tool counts.

    May be called as often as is convenient; of several within a moment the
    executor passes on the last.
    """
    if _is_heard():
        _executor.progress(done, total, message)
    else:
        _print(
            f"progress {done}"
            + (f"/{total}" if total is not None else "")
            + (f" {message}" if message else "")
        )


def metric(name: str, value: float, **tags: Any) -> None:
    """Report a named value; the tags say what it belongs to."""
    if _is_heard():
        _executor.metric(name, value, tags)
    else:
        _print(f"metric {name}={value}" + "".join(f" {tag}={tags[tag]}" for tag in tags))


def partial(item: Any) -> None:
    """Hand over one item of the result now: it is kept even if the run fails later.

    A generator tool does this with every item that it yields.
    """
    if _is_heard():
        _executor.partial(item)
    else:
        _print(f"partial {item!r}")


def artifact(name: str, content: bytes | str | os.PathLike[str], media_type: str | None = None) -> str | None:
    """Keep bytes, or the file at a path as it is now, as an artifact of the run.

    When this returns, it is kept, whatever becomes of the run.  Of several with the
    same name the last one counts.  Without a media type, the name's ending tells it.

    Returns:
        Its reference (`data:` when it is small, else `cas://`); None where nothing is kept.
    """
    if _is_heard():
        reference: str | None = _executor.artifact(name, content, media_type)
        return reference
    size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
    _print(f"artifact {name} ({size} bytes, not kept)")
    return None


def artifact_path(reference: str) -> str:
    """The path of a file with the content of an artifact that this call was given by reference.

    The file is the call's own and is removed after it.
    """
    if _is_heard():
        path: str = _executor.fetch(reference)
        return path
    if not reference.startswith("data:"):
        raise FileNotFoundError(f"{reference!r:.80} can be read in a run of the executor only")
    path = os.path.join(run.temp_directory, f"artifact-{time.monotonic_ns()}")
    with open(path, "wb") as file:
        file.write(_inline(reference))
    return path


def read_artifact(reference: str) -> bytes:
    """The content of an artifact that this call was given by reference."""
    if reference.startswith("data:"):
        return _inline(reference)
    with open(artifact_path(reference), "rb") as file:
        return file.read()


def once(key: str, function: Callable[[], T]) -> T:
    """Call `function` unless an earlier attempt of this run did; either way, return its result.

    For a step that a retry must not repeat.  The result is recorded as JSON, so
    a later attempt gets lists for tuples.  The record is written right after the
    call: only a crash between the two can make a retry repeat the step.
    """
    if _is_heard():
        result: T = _executor.once(key, function)
        return result
    return function()


class _Run:
    """The run under way, as far as the tool may know it."""

    _directory = ""

    @property
    def id(self) -> str:
        """The same for every attempt of a run."""
        return str(_fact("run_id", "by-hand"))

    @property
    def experiment_id(self) -> str:
        """The experiment that the run belongs to."""
        return str(_fact("experiment_id", "by-hand"))

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return int(_fact("attempt", 1))

    @property
    def seed(self) -> int | None:
        """The seed of the run's random generators, if it was given one."""
        seed: int | None = _fact("seed", None)
        return seed

    @property
    def temp_directory(self) -> str:
        """A directory of this attempt alone, removed after it; also the working directory."""
        return str(_fact("temp", None) or self._directory_by_hand())

    @property
    def deadline(self) -> float:
        """When the attempt will be ended, on the clock of `time.monotonic()`; infinity without a limit."""
        return float(_fact("deadline", float("inf")))

    @property
    def remaining_seconds(self) -> float:
        """How long the attempt may still take."""
        return max(0.0, self.deadline - time.monotonic())

    def _directory_by_hand(self) -> str:
        if not self._directory:
            import atexit
            import shutil
            import tempfile

            self._directory = tempfile.mkdtemp(prefix="fullsend-")
            atexit.register(shutil.rmtree, self._directory, ignore_errors=True)
        return self._directory


run = _Run()


def _attach(executor: Any) -> None:
    """Called by the executor's side of the process when it lets a tool import this module."""
    global _executor
    _executor = executor


def _is_heard() -> bool:
    return _executor is not None and _executor.run is not None


def _fact(name: str, otherwise: Any) -> Any:
    return _executor.run.get(name, otherwise) if _is_heard() else otherwise


def _inline(reference: str) -> bytes:
    """The bytes in a `data:` reference."""
    import base64

    return base64.b64decode(reference.partition(",")[2], validate=True)


def _print(text: str) -> None:
    print(text, file=sys.stderr)
