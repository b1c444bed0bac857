"""One call of a tool: what may stop it, and what it came to."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

from services.executor.isolation import calls
from services.executor.isolation.calls import (
    Answer,
    Call,
    Cancelled,
    Died,
    Effects,
    Exit,
    LogLine,
    Report,
    TimedOut,
)
from services.executor.isolation.process import Process

TIMEOUT = "timeout"
CANCEL = "cancel"
CANCEL_WATCH_SECONDS = 0.005
"""Calls that are over sooner, as most warm ones are, need no task that waits for their cancellation."""

MAX_MISSED = 3
"""A call that no process has read is made again so many times."""


class Stopped(Exception):
    """The attempt was stopped before it had a process."""


class Semaphore:
    """Admits a limited number at a time, first come, first served; a waiter can be turned away."""

    def __init__(self, slots: int) -> None:
        self.free = slots
        self._queue: deque[asyncio.Future[None]] = deque()

    def try_acquire(self) -> bool:
        """Take a slot if there is a free one."""
        if self.free > 0:
            self.free -= 1
            return True
        return False

    def join_queue(self) -> asyncio.Future[None]:
        """A future that is done once the caller has a slot.  Setting an exception on it leaves the queue."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        return turn

    def release(self) -> None:
        """Give the slot to whoever has waited longest, or keep it for the next."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class Caller(Protocol):
    """Calls a tool in isolation."""

    async def call(
        self,
        call: Call,
        report: Report,
        *,
        effects: Effects | None = None,
        cancel: asyncio.Event | None = None,
    ) -> Answer:
        """Never raises for anything the tool does."""


class Attempt:
    """A call from its wait for a slot to its answer.

    `stop` may be called at any moment: it takes the attempt out of the queue that it waits in, or ends the
    process that it uses.
    """

    def __init__(
        self, timeout_seconds: float, grace_seconds: float, report: Report | None, effects: Effects | None
    ):
        self.timeout_seconds = timeout_seconds
        self.report = report
        self.effects = effects
        self.verdict = ""
        self.process: Process | None = None
        self.peak_rss_bytes = 0
        self.oom_kills_before = 0
        self._missed = 0
        self._grace_seconds = grace_seconds
        self._timers: list[asyncio.TimerHandle] = []
        self._turn: asyncio.Future[None] | None = None
        self._watcher: asyncio.Task[Any] | None = None

    def stop(self, verdict: str) -> None:
        """End the attempt; the first verdict counts."""
        if self.verdict:
            return
        self.verdict = verdict
        if self._turn is not None and not self._turn.done():
            self._turn.set_exception(Stopped())
        if self.process is not None:
            self.process.end(grace_seconds=self._grace_seconds, stacks=True)

    def stop_on(self, cancel: asyncio.Event | None) -> None:
        """Stop when `cancel` is set, at most CANCEL_WATCH_SECONDS later."""
        if cancel is None:
            return
        if cancel.is_set():
            self.stop(CANCEL)
        else:
            self._call_later(CANCEL_WATCH_SECONDS, self._watch, cancel)

    def start_clock(self) -> None:
        """Stop when the time limit, counted from now, is over."""
        self._call_later(self.timeout_seconds, self.stop, TIMEOUT)

    def _call_later(self, seconds: float, act: Callable[..., None], argument: object) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, act, argument))

    def _watch(self, cancel: asyncio.Event) -> None:
        self._watcher = asyncio.get_running_loop().create_task(cancel.wait())
        self._watcher.add_done_callback(lambda done: None if done.cancelled() else self.stop(CANCEL))

    def close(self) -> None:
        """The attempt is over: nothing stops it any more."""
        for timer in self._timers:
            timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def acquire(self, semaphore: Semaphore) -> None:
        """Wait for a slot.  Stopped if the attempt is over before there is one."""
        if self.verdict:
            raise Stopped
        if semaphore.try_acquire():
            return
        self._turn = turn = semaphore.join_queue()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                semaphore.release()
            raise
        finally:
            self._turn = None

    def use(self, process: Process) -> None:
        """From now on, stopping the attempt ends this process, whose reports belong to the attempt."""
        self.process = process
        process.attach(self.report, self.effects)
        if self.verdict:
            process.end(grace_seconds=0)

    def may_repeat(self, process: Process) -> bool:
        """Whether the process ended by itself before the call had begun, so that the call is not to blame."""
        self._missed += 1
        return process.missed_the_call and not self.verdict and self._missed <= MAX_MISSED

    def answer_to_death(self, exit_: Exit, fate: str) -> Answer:
        """The answer for a process that ended before it answered; its stacks go to the log."""
        if self.peak_rss_bytes > (exit_.peak_rss_bytes or 0):
            exit_ = replace(exit_, peak_rss_bytes=self.peak_rss_bytes)
        if self.report is not None:
            for line in exit_.stacks.splitlines():
                self.report(LogLine(time.time(), "stacks", line))
        return self.judge(exit_, fate)

    def judge(self, exit_: Exit, fate: str = "") -> Answer:
        """The answer for an attempt that ended like this."""
        if self.verdict == TIMEOUT:
            return TimedOut(self.timeout_seconds, exit_)
        if self.verdict == CANCEL:
            return Cancelled(exit_)
        known = self.verdict or fate
        reason = known or calls.reason(exit_)
        return Died(reason, exit_, innocent=not known and calls.died_with_parent(exit_))
