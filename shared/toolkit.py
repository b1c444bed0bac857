"""Functions with which a running tool reports to the executor: `from shared import toolkit`.

They need only the standard library of Python 3.9 or later.  Outside the executor they do something
harmless: progress, metrics and partial items are printed to stderr, `once` only calls its function,
and `run` describes a run that is not recorded.  The executor is connected to the process in which it
calls the tool; in processes that the tool starts, these functions behave as outside the executor.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Callable, TypeVar

T = TypeVar("T")

_executor: Any = None


def progress(done: float, total: float | None = None, message: str = "") -> None:
    """Report that `done` of `total` units are done, in whatever unit the tool counts.

    May be called at any rate; of several calls in quick succession, the executor publishes the last.

    Args:
        done: the units that are done.
        total: all units; None if unknown.
        message: what the tool is doing.
    """
    if _is_connected():
        _executor.progress(done, total, message)
    else:
        _print(
            f"progress {done}"
            + (f"/{total}" if total is not None else "")
            + (f" {message}" if message else "")
        )


def metric(name: str, value: float, **tags: Any) -> None:
    """Report a metric.

    Args:
        name: the name of the metric.
        value: its value.  One that is infinite or NaN is published as null, with `not_finite`.
        tags: what the value belongs to.
    """
    if _is_connected():
        _executor.metric(name, value, tags)
    else:
        _print(f"metric {name}={value}" + "".join(f" {tag}={tags[tag]}" for tag in tags))


def partial(item: Any) -> None:
    """Keep one item now, whatever happens later: over all attempts, and however the run ends.

    Items that a generator yields are kept likewise if the run fails; they need no call.
    """
    if _is_connected():
        _executor.partial(item)
    else:
        _print(f"partial {item!r}")


def artifact(name: str, content: bytes | str | os.PathLike[str], media_type: str | None = None) -> str | None:
    """Store bytes, or the present content of a file, as an artifact of the run.

    The artifact is stored when this returns, even if the run fails later.

    Args:
        name: the name of the artifact; an earlier one of the same name is replaced.
        content: the bytes, or the path of a file.
        media_type: the type of the content; by default, from the ending of the name.

    Returns:
        The artifact's reference (`data:` for a small one, otherwise `cas://`); None outside the executor.
    """
    if _is_connected():
        reference: str | None = _executor.artifact(name, content, media_type)
        return reference
    size = len(content) if isinstance(content, bytes) else os.path.getsize(content)
    _print(f"artifact {name} ({size} bytes, not kept)")
    return None


def artifact_path(reference: str) -> str:
    """Return the path of a file with the content of an artifact that a parameter refers to.

    The file belongs to this call and is removed after it.

    Raises:
        FileNotFoundError: outside the executor, unless the content is in the reference.
    """
    if _is_connected():
        path: str = _executor.fetch(reference)
        return path
    if not reference.startswith("data:"):
        raise FileNotFoundError(f"{reference!r:.80} can only be read in a run of the executor")
    path = os.path.join(run.temp_directory, f"artifact-{time.monotonic_ns()}")
    with open(path, "wb") as file:
        file.write(_inline(reference))
    return path


def read_artifact(reference: str) -> bytes:
    """Return the content of an artifact that a parameter refers to."""
    if reference.startswith("data:"):
        return _inline(reference)
    with open(artifact_path(reference), "rb") as file:
        return file.read()


def once(key: str, function: Callable[[], T]) -> T:
    """Return the result of `function`, which is called only once per run.

    For a step that a retry must not repeat: a later attempt gets the recorded result.  The result is
    recorded as JSON right after the call, so a tuple comes back as a list.  Only a crash between the
    call and the record makes a retry repeat the step.

    Args:
        key: the name of the step.
        function: the step; its result must be a JSON value.
    """
    if _is_connected():
        result: T = _executor.once(key, function)
        return result
    return function()


class _Run:
    """The current run."""

    _directory = ""

    @property
    def id(self) -> str:
        """The id of the run; all its attempts have the same."""
        return str(_fact("run_id", "by-hand"))

    @property
    def experiment_id(self) -> str:
        """The experiment that the run belongs to."""
        return str(_fact("experiment_id", "by-hand"))

    @property
    def attempt(self) -> int:
        """The number of the attempt, from 1."""
        return int(_fact("attempt", 1))

    @property
    def seed(self) -> int | None:
        """The seed of the run's random generators, or None."""
        seed: int | None = _fact("seed", None)
        return seed

    @property
    def temp_directory(self) -> str:
        """The working directory: it belongs to this attempt and is removed after it."""
        return str(_fact("temp", None) or self._directory_by_hand())

    @property
    def deadline(self) -> float:
        """The time limit of the attempt, on the clock of `time.monotonic()`; infinity if there is none."""
        return float(_fact("deadline", float("inf")))

    @property
    def remaining_seconds(self) -> float:
        """Seconds until the deadline, at least 0."""
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
    """Connect this module to the executor; the executor's part of the process calls this."""
    global _executor
    _executor = executor


def _is_connected() -> bool:
    return _executor is not None and _executor.run is not None


def _fact(name: str, otherwise: Any) -> Any:
    return _executor.run.get(name, otherwise) if _is_connected() else otherwise


def _inline(reference: str) -> bytes:
    """The bytes in a `data:` reference."""
    import base64

    return base64.b64decode(reference.partition(",")[2], validate=True)


def _print(text: str) -> None:
    print(text, file=sys.stderr)
