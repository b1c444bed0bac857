"""One call on its way through the pool: what may stop it, and what it came to."""

import asyncio
import math
import time
from dataclasses import replace
from typing import Any

from services.executor.isolation import exits, protocol
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
from services.executor.isolation.gate import Gate
from services.executor.isolation.process import Process

TIMEOUT = "timeout"
CANCEL = "cancel"
NEVER = math.inf
FOLLOW_SECONDS = 0.005
MAX_UNHEARD = 3


class Stopped(Exception):
    """The attempt was stopped before it had a process."""


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
        self.due_at = NEVER
        self._grace_seconds = grace_seconds
        self._deadline = NEVER
        self._turn: asyncio.Future[None] | None = None
        self._cancel: asyncio.Event | None = None
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

    def follow(self, cancel: asyncio.Event | None, now: float) -> None:
        """Stop when `cancel` is set, at most FOLLOW_SECONDS later: only what lasts is worth a task."""
        if cancel is None:
            return
        if cancel.is_set():
            self.stop(CANCEL)
        self._cancel = cancel
        self.due_at = now + FOLLOW_SECONDS

    def start_clock(self, now: float) -> None:
        """Stop when the time limit, counted from `now`, is over."""
        self._deadline = now + self.timeout_seconds
        self.due_at = min(self.due_at, self._deadline)

    def look(self, now: float) -> None:
        """Do what is due, and say in `due_at` when to look again."""
        is_over = now >= self._deadline
        self.due_at = self._deadline = NEVER if is_over else self._deadline
        if self._cancel is not None:
            self._watcher = asyncio.get_running_loop().create_task(self._cancel.wait())
            self._watcher.add_done_callback(lambda done: None if done.cancelled() else self.stop(CANCEL))
            self._cancel = None
        if is_over:
            self.stop(TIMEOUT)

    def close(self) -> None:
        """Nothing stops the attempt any more."""
        self.due_at = self._deadline = NEVER
        self._cancel = None
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
        return Died(known or exits.reason(exit_), exit_, innocent=not known and exits.went_down_with(exit_))


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
