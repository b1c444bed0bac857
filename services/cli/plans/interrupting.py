"""Ctrl-C and SIGTERM: the first one asks for the end, the second one doesn't wait for it."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

from services.planner.cancellation import CancellationToken

ONCE_MORE = "ending what runs; once more ends it at once"


@contextlib.contextmanager
def interruptible(
    token: CancellationToken, say: Callable[[str], None], restore: Callable[[], None] = lambda: None
) -> Iterator[list[int]]:
    """In the block the first signal cancels the token, and the second ends this process.

    Args:
        token: of what is under way.
        say: tells the user.
        restore: leaves the terminal as it was.

    Yields:
        What came.
    """
    loop, came = asyncio.get_running_loop(), list[int]()

    def interrupt(number: int) -> None:
        if came:
            restore()
            leave(128 + number)  # the subprocesses end with it; what is left is noted as running
        came.append(number)
        token.cancel("interrupted")
        say(ONCE_MORE)

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield came
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


def leave(code: int) -> None:
    """End this process, and don't wait for threads, which nothing else ends."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
            stream.flush()
    os._exit(code)
