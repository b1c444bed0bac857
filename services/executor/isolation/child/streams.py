"""Standard input, output and error: the descriptors, and what Python has made of them."""

from __future__ import annotations

import fcntl
import io
import operator
import sys
from typing import Any

_NAMES = ("stdin", "stdout", "stderr")
_SETTINGS = ("encoding", "errors", "line_buffering", "write_through")
_of_stream = operator.attrgetter("closed", *_SETTINGS)
_MARKS = {0: 40, 1: 41, 2: 42}


def writer(descriptor: int) -> Any:
    """A line-buffered text stream, so that a run's log can be followed while it runs."""
    return open(descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)


class Streams:
    """What they were when this was made.

    Which open file is behind a descriptor is told by a mark: the signal that the kernel
    would send when that file becomes ready, had anybody asked for it.  Nobody does, it
    stays with the open file, and it is read in a fifth of the time that `fstat` takes.
    """

    def __init__(self) -> None:
        self._open = [descriptor for descriptor, mark in _MARKS.items() if _set_mark(descriptor, mark)]
        self._questions = [fcntl.F_GETSIG] * len(self._open)
        self._marks = list(map(fcntl.fcntl, self._open, self._questions))
        self._streams = [getattr(sys, name) for name in _NAMES if _is_ours(getattr(sys, name))]
        self._settings = list(map(_of_stream, self._streams))

    def restore(self) -> str:
        """Undo what a run has changed; why that is not possible, if it isn't, unless it raises."""
        if list(map(fcntl.fcntl, self._open, self._questions)) != self._marks:
            return "the run redirected its standard input, output or error"
        if list(map(_of_stream, self._streams)) != self._settings:
            return self._reconfigure()
        return ""

    def _reconfigure(self) -> str:
        """The same objects as before: handlers of `logging` that the import made have hold of them."""
        for stream, before in zip(self._streams, self._settings):  # noqa: B905 - strict= needs Python 3.10
            if stream.closed:
                return f"the run closed {stream.name}"
            stream.reconfigure(**dict(zip(_SETTINGS, before[1:])))  # noqa: B905 - as above
        return ""


def _set_mark(descriptor: int, mark: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, mark)
    except OSError:
        return False
    return True


def _is_ours(stream: Any) -> bool:
    """Whether it is a stream of Python's, and not what the tool has put in its place."""
    return isinstance(stream, io.TextIOWrapper) and not stream.closed
