"""Threads for what waits on a disk or a network: bounded, and waited for by nobody at the end."""

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `function` returns or raises, from a thread of its own.

    Whoever cancels this is no longer kept waiting, but nothing ends a thread: it goes on
    alone.  It is a daemon, so that it keeps no process from ending, unlike those of
    `asyncio.to_thread`.
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
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know any more
            loop.call_soon_threadsafe(settle, *what)

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), name="fullsend-blocking", daemon=True).start()
    return await answer


class Threads:
    """Runs blocking calls in threads, at most `count` of them at once."""

    def __init__(self, count: int) -> None:
        self._places = asyncio.Semaphore(count)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""
        async with self._places:
            return await in_thread(function, *args, **kwargs)


def _succeed(answer: "asyncio.Future[T]", value: T) -> None:
    if not answer.done():
        answer.set_result(value)


def _fail(answer: "asyncio.Future[T]", exc: BaseException) -> None:
    if not answer.done():
        answer.set_exception(exc)
