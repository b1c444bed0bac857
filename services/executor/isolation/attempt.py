"""One call on its way through the pool: what may stop it, and what it came to."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.executor.isolation import exit_status
from services.executor.isolation.calls import (
    Answer,
    Cancelled,
    Died,
    Effects,
    Exit,
    LogLine,
    Raised,
    Report,
    Returned,
    TimedOut,
)  # fmt: skip
from services.executor.isolation.common import protocol
from services.executor.isolation.process import Process

TIMEOUT = "timeout"
CANCEL = "cancel"
CANCEL_WATCH_SECONDS = 0.005
"""A call that is over sooner, as most warm ones are, is spared the task that waits for its cancellation."""

MAX_UNHEARD = 3


class Stopped(Exception):
    """The attempt was stopped before it had a process."""


class Gate:
    """Like a semaphore whose queue can be looked at and whose waiters can be sent away."""

    def __init__(self, places: int) -> None:
        self.free = places
        self._queue: deque[asyncio.Future[None]] = deque()

    def try_enter(self) -> bool:
        """Take a place if there is one and nobody is waiting for it."""
        if self.free > 0:
            self.free -= 1
            return True
        return False

    def queue(self) -> asyncio.Future[None]:
        """A future that is done when the caller has been given a place."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        return turn

    def leave(self) -> None:
        """Give the place to whoever waits the longest, or keep it for the next."""
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.free += 1


class Attempt:
    """Somebody's call, from the queue for a place to its answer.

    `stop` may come at any moment: it sends the attempt away from whatever queue
    it stands in, or ends the process that it occupies.
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
        self.unheard = 0
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
            self._call_later(CANCEL_WATCH_SECONDS, self._wait_for, cancel)

    def start_clock(self) -> None:
        """Stop when the time limit, counted from now, is over."""
        self._call_later(self.timeout_seconds, self.stop, TIMEOUT)

    def _call_later(self, seconds: float, act: Callable[..., None], argument: object) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, act, argument))

    def _wait_for(self, cancel: asyncio.Event) -> None:
        self._watcher = asyncio.get_running_loop().create_task(cancel.wait())
        self._watcher.add_done_callback(lambda done: None if done.cancelled() else self.stop(CANCEL))

    def close(self) -> None:
        """Nothing stops the attempt any more."""
        for timer in self._timers:
            timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()

    async def enter(self, gate: Gate) -> None:
        """Wait for a place behind `gate`; Stopped if the attempt is over first."""
        if self.verdict:
            raise Stopped
        if gate.try_enter():
            return
        self._turn = turn = gate.queue()
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                gate.leave()
            raise
        finally:
            self._turn = None

    def occupy(self, process: Process) -> None:
        """From now on, stopping the attempt ends this process."""
        self.process = process
        process.listen(self.report, self.effects)
        if self.verdict:
            process.end(grace_seconds=0)

    def may_try_again(self, process: Process) -> bool:
        """Whether the process ended, unasked, before the call had begun, which so can't be to blame."""
        self.unheard += 1
        return process.went_unheard and not self.verdict and self.unheard <= MAX_UNHEARD

    def buried(self, exit_: Exit, fate: str) -> Answer:
        """What it comes to that the process ended before it answered."""
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
        return Died(
            known or exit_status.reason(exit_),
            exit_,
            innocent=not known and exit_status.went_down_with(exit_),
        )


def returned(result: Any) -> Returned:
    """The tool's result from its answer on the wire; ValueError if that is no such answer."""
    match result:
        case {"value": value, "items": int() | None as items}:
            return Returned(value, items)
        case _:
            raise ValueError("a result without value and items")


def raised(error: dict[str, Any]) -> Raised:
    """The tool's exception from its answer on the wire; ValueError if that is no such answer."""
    match error:
        case {
            "code": protocol.RAISED,
            "data": {
                "error_type": str(error_type),
                "message": str(message),
                "traceback": str(traceback),
                "retryable": bool(retryable),
                "retry_after_seconds": float() | int() | None as retry_after_seconds,
                **rest,
            },
        } if retry_after_seconds is None or 0 <= retry_after_seconds < math.inf:
            partial = rest.get("partial_results")
            return Raised(error_type, message, traceback, retryable, retry_after_seconds, partial)
        case _:
            raise ValueError("an error that no tool raised")
