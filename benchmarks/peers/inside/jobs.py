"""The jobs that every system runs.  Plain functions, so that each registers them in its own way.

Also our tools: a copy of this file under a function's name is a tool of that name.
"""

import contextlib
import ctypes
import os
import signal
import time


def stamp() -> int:
    """Next to nothing: when it ran, in unix nanoseconds."""
    return time.time_ns()


def large(size: int) -> str:
    """A result of so many bytes."""
    return "x" * size


def nap(seconds: float) -> str:
    """Sleep as something does that waits for others; when that began and ended."""
    begun = time.time_ns()
    time.sleep(seconds)
    return f"{begun} {time.time_ns()}"


def note(path: str, word: str) -> None:
    """Add a line to a file: the word, who, when."""
    with open(path, "a") as file:  # noqa: PTH123 - as lean as can be
        file.write(f"{word} {os.getpid()} {time.time_ns()}\n")


def work(path: str, seconds: float) -> int:
    """Sleep, and let it be known that it began and that it ended."""
    note(path, "start")
    time.sleep(seconds)
    note(path, "end")
    return time.time_ns()


def hang(path: str, kind: str, seconds: float) -> int:
    """Do not answer for so long, in one of three ways; what is not ended by then has had its way."""
    note(path, "start")
    try:
        match kind:
            case "spin":
                _spin(seconds)
            case "sleep":
                ctypes.CDLL(None).sleep(int(seconds))
            case "loop":
                _loop(seconds)
    finally:
        note(path, "end")
    return time.time_ns()


def _spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def _loop(seconds: float) -> None:
    """In C, holding the interpreter's lock, deaf to every signal that can be ignored."""
    with contextlib.suppress(ValueError):  # only the main thread may say so for all
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    until = time.monotonic() + seconds
    any(map(until.__lt__, iter(time.monotonic, None)))
