"""Threads for what waits on a disk or a network: bounded, and waited for by nobody at the end."""

import asyncio
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Threads:
    """Runs blocking calls, at most `count` of them at once.

    A call whose awaiting was cancelled goes on alone; its thread is a daemon, so that a
    server that doesn't answer keeps no process from ending.
    """

    def __init__(self, count: int) -> None:
        self._places = asyncio.Semaphore(count)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `function` returns or raises."""
        loop = asyncio.get_running_loop()
        async with self._places:
            answer: asyncio.Future[T] = loop.create_future()

            def work() -> None:
                try:
                    value = function(*args, **kwargs)
                except BaseException as exc:
                    _tell(loop, _fail, answer, exc)
                else:
                    _tell(loop, _succeed, answer, value)

            threading.Thread(target=work, name=f"blocking {function!r:.80}", daemon=True).start()
            return await answer


def _tell(loop: asyncio.AbstractEventLoop, tell: Callable[..., None], *args: object) -> None:
    try:
        loop.call_soon_threadsafe(tell, *args)
    except RuntimeError:  # the loop is closed: nobody wants to know any more
        return


def _succeed(answer: "asyncio.Future[T]", value: T) -> None:
    if not answer.done():
        answer.set_result(value)


def _fail(answer: "asyncio.Future[T]", exc: BaseException) -> None:
    if not answer.done():
        answer.set_exception(exc)
