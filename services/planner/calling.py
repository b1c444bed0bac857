"""Calls functions that somebody else wrote, synchronous or not: whatever they raise is a value here."""

import asyncio
import contextlib
import contextvars
import dis
import functools
import inspect
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from types import CodeType, TracebackType
from typing import Any, Final, Generic, TypeVar

from shared.threads import in_thread

T = TypeVar("T")

LOOK_SECONDS = 0.1


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
        KeyboardInterrupt, SystemExit: a signal came while the function ran; what it raises itself of
            these kinds is an answer.  A task that it starts, though, ends the event loop by
            them; only `run_to_end` goes on then.
    """
    if not _is_async(function):
        answer = await _in_thread(function, *args)
        if not inspect.isawaitable(answer.value):
            return answer
        return await _awaited(lambda: answer.value)
    return await _awaited(lambda: function(*args))


def answer_of(work: asyncio.Task[Answer]) -> Answer:
    """What a task that has asked was answered.

    If what the function waits for fails with `GeneratorExit`, Python closes whoever waits, also those
    that would have caught it; and a function may cancel the task that it runs in.  Then this is
    the first who can tell.
    """
    try:
        return work.result()
    except (GeneratorExit, asyncio.CancelledError) as exc:
        return Answer(error=exc)


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

    with asyncio.Runner() as runner:
        running = runner.get_loop().create_task(main())
        while not running.done():
            try:
                runner.run(_end_of(running))
            except (KeyboardInterrupt, SystemExit) as exc:
                # From a task that was started by somebody else's function, and who waits for it has it too.
                if running.done() or running.cancelling() or _is_of_a_signal(exc):
                    raise
        running.result()
    return returned[0]


async def _end_of(running: asyncio.Task[None]) -> None:
    try:
        await asyncio.wait({running})
    except asyncio.CancelledError:
        running.cancel()
        await asyncio.wait({running})
        raise


def _is_async(function: Callable[..., Any]) -> bool:
    called = getattr(function, "__call__", None)  # noqa: B004, for objects that are called like functions
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


async def _awaited(function: Callable[[], Any]) -> Answer:
    try:
        return Answer(await function())
    except asyncio.CancelledError as exc:
        current = asyncio.current_task()
        if current is not None and current.cancelling():
            raise
        return Answer(error=exc)
    except (KeyboardInterrupt, SystemExit) as exc:
        if _is_of_a_signal(exc):
            raise
        return Answer(error=exc)
    except BaseException as exc:
        return Answer(error=exc)


_RAISE: Final = dis.opmap["RAISE_VARARGS"]


def _is_of_a_signal(error: BaseException) -> bool:
    """Whether it came over the function from outside, and is not what the function itself raised.

    Handlers of signals are called in the midst of whatever the main thread does.  One written in
    Python is among the frames.  Python's own for Ctrl-C has none: then the innermost
    frame was at anything but a `raise`.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    places = list(_places(error.__traceback__))
    if not {code for code, _ in places}.isdisjoint(_handlers()):
        return True
    code, at = places[-1]
    return isinstance(error, KeyboardInterrupt) and code.co_code[at] != _RAISE


def _places(trace: TracebackType | None) -> Iterator[tuple[CodeType, int]]:
    """Where it came by, the innermost last: the code of each frame, and which instruction it was at."""
    while trace is not None:
        yield trace.tb_frame.f_code, trace.tb_lasti
        trace = trace.tb_next


def _handlers() -> Iterator[CodeType]:
    """The code of what is called for signals."""
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while isinstance(handler, functools.partial):
            handler = handler.func
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            yield code


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
        """What it returns; it is cancelled first if the wait is interrupted, or the caller cancelled."""
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(self._run,), name="fullsend-plan", daemon=True)
        thread.start()
        try:
            self._wait(thread)
        except BaseException:
            self._cancel()
            thread.join()
            raise
        if self._error is not None:
            raise self._error
        return self._values[0]

    def _wait(self, thread: threading.Thread) -> None:
        # The first Ctrl-C only cancels the caller's task, which its loop can't tell it while it stands still.
        caller = asyncio.current_task()
        before = caller.cancelling() if caller is not None else 0
        while thread.is_alive():
            thread.join(LOOK_SECONDS)
            if caller is not None and caller.cancelling() > before:
                self._cancel()
                thread.join()

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
