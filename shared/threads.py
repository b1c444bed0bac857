"""Threads for calls that wait for a disk or a network.  Nothing waits for them when the process ends."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `function` in a thread of its own, and return its result or raise its error.

    Cancelling this returns at once, but does not end the thread.  It is a daemon thread: unlike those of
    `asyncio.to_thread`, it does not keep the process from ending.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            value = function(*args, **kwargs)
        except BaseException as exc:
            tell(_fail, answer, exc)
        else:
            tell(_succeed, answer, value)

    def tell(settle: Callable[..., None], *what: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, *what)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="fullsend-blocking", daemon=True).start()
    return await answer


class Threads:
    """Runs blocking calls in threads, at most `count` at once."""

    def __init__(self, count: int) -> None:
        self._places = asyncio.Semaphore(count)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in a thread, and return its result or raise its error."""
        async with self._places:
            return await in_thread(function, *args, **kwargs)


def _succeed(answer: "asyncio.Future[T]", value: T) -> None:
    if not answer.done():
        answer.set_result(value)


def _fail(answer: "asyncio.Future[T]", exc: BaseException) -> None:
    if not answer.done():
        answer.set_exception(exc)
