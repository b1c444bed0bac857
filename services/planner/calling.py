"""Calls functions that somebody else wrote, synchronous or not: whatever they raise is a value here."""

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.executor.threads import in_thread

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a function returned, or what it raised."""

    value: Any = None
    error: BaseException | None = None


async def ask(function: Callable[..., Any], *args: Any) -> Answer:
    """The answer of a function; a synchronous one is called in a thread of its own.

    Whoever cancels this is no longer kept waiting, but nothing ends a thread: a
    synchronous function goes on until it returns, or the process ends.

    Raises:
        CancelledError: this was cancelled; what the function raises of that kind is an answer.
        KeyboardInterrupt: somebody at the keyboard wants the end.
    """
    if not _is_async(function):
        answer = await _in_thread(function, *args)
        if not inspect.isawaitable(answer.value):
            return answer
        return await _awaited(lambda: answer.value)
    return await _awaited(lambda: function(*args))


def run_to_end(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine and return what it returns, wherever this is called from.

    Inside a running event loop it gets a loop in a thread of its own, and the caller's
    loop stands still meanwhile, as with every synchronous call.
    """
    return _Elsewhere(work).result() if _is_in_a_loop() else _run(work)


def _is_in_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # What the main coroutine of asyncio.run() returns is formatted when its signal handler is looked
    # up (enum says what is no member), which takes longer than a small plan.  So it returns nothing.
    returned: list[T] = []

    async def main() -> None:
        returned.append(await work())

    asyncio.run(main())
    return returned[0]


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004, for objects that are called like functions
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


async def _awaited(function: Callable[[], Any]) -> Answer:
    try:
        return Answer(await function())
    except KeyboardInterrupt:
        raise
    except asyncio.CancelledError as exc:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return Answer(error=exc)
    except BaseException as exc:
        return Answer(error=exc)


async def _in_thread(function: Callable[..., Any], *args: Any) -> Answer:
    def answered() -> Answer:
        try:
            return Answer(function(*args))
        except BaseException as exc:
            return Answer(error=exc)

    return await in_thread(answered)


class _Elsewhere(Generic[T]):
    """A coroutine in an event loop of its own, in a thread of its own."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._work = work
        self._values: list[T] = []
        self._error: BaseException | None = None
        self._cancel: Callable[[], object] = lambda: None

    def result(self) -> T:
        """What it returns; if the wait for it is interrupted, it is cancelled first."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run,), name="fullsend-plan", daemon=True)
        thread.start()
        try:
            thread.join()
        except BaseException:
            self._cancel()
            thread.join()
            raise
        if self._error is not None:
            raise self._error
        return self._values[0]

    def _run(self) -> None:
        try:
            self._values.append(_run(self._cancellable))
        except BaseException as exc:
            self._error = exc

    async def _cancellable(self) -> T:
        loop, current = asyncio.get_running_loop(), asyncio.current_task()
        assert current is not None, "coroutines run in tasks"

        def cancel() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(current.cancel)

        self._cancel = cancel
        return await self._work()
