"""The jobs that every system runs: plain functions, which each system registers in its own way.

A copy of this file with a function's name is the executor's tool of that name.
"""

import contextlib
import ctypes
import os
import signal
import time


def stamp() -> int:
    """Return the time, in Unix nanoseconds."""
    return time.time_ns()


def large(size: int) -> str:
    """Return a result of `size` bytes."""
    return "x" * size


def nap(seconds: float) -> str:
    """Sleep; returns the times of the begin and the end."""
    begun = time.time_ns()
    time.sleep(seconds)
    return f"{begun} {time.time_ns()}"


def note(path: str, word: str) -> None:
    """Add a line to a file: the word, the process id, the time."""
    with open(path, "a") as file:  # noqa: PTH123 - as cheap as possible
        file.write(f"{word} {os.getpid()} {time.time_ns()}\n")


def work(path: str, seconds: float) -> int:
    """Sleep, and note the begin and the end."""
    note(path, "start")
    time.sleep(seconds)
    note(path, "end")
    return time.time_ns()


def hang(path: str, kind: str, seconds: float) -> int:
    """Hang for `seconds` in one of three ways."""
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
    """Loop in C, holding the interpreter's lock, with every signal ignored or blocked."""
    with contextlib.suppress(ValueError):  # only the main thread can set handlers
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    until = time.monotonic() + seconds
    any(map(until.__lt__, iter(time.monotonic, None)))
