"""One call on its way through the pool: what may stop it, and what it came to."""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from services.executor.isolation.calls import (
    Answer, Cancelled, Died, Effects, Exit, LogLine, Raised, Report, Returned, TimedOut,
)  # fmt: skip
from services.executor.isolation.gate import Gate
from services.executor.isolation.process import Process

TIMEOUT = "timeout"
CANCEL = "cancel"

_SIGNALS = {
    "SIGSEGV": "a segmentation fault",
    "SIGABRT": "abort() was called",
    "SIGBUS": "a bus error",
    "SIGFPE": "an arithmetic error in native code",
    "SIGILL": "an illegal instruction",
}


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
        self._grace_seconds = grace_seconds
        self._turn: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()

    def stop(self, verdict: str) -> None:
        """End the attempt; the first verdict counts."""
        if self.verdict:
            return
        self.verdict = verdict
        if self._turn is not None and not self._turn.done():
            self._turn.set_exception(Stopped())
        if self.process is not None:
            self.process.end(grace_seconds=self._grace_seconds, stacks=True)

    @contextlib.contextmanager
    def until(self, cancel: asyncio.Event | None) -> Iterator[None]:
        """Stop when `cancel` is set."""
        if cancel is None:
            yield
            return
        if cancel.is_set():
            self.stop(CANCEL)
        watcher = self._loop.create_task(cancel.wait())
        watcher.add_done_callback(lambda done: None if done.cancelled() else self.stop(CANCEL))
        try:
            yield
        finally:
            watcher.cancel()

    @contextlib.contextmanager
    def within_time(self) -> Iterator[None]:
        """Stop when the time limit, counted from here, is over."""
        timer = self._loop.call_later(self.timeout_seconds, self.stop, TIMEOUT)
        try:
            yield
        finally:
            timer.cancel()

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

    async def buried(self, process: Process) -> Answer:
        """What it comes to that the process ended before it answered."""
        exit_ = await asyncio.shield(process.ended)
        if self.peak_rss_bytes > (exit_.peak_rss_bytes or 0):
            exit_ = replace(exit_, peak_rss_bytes=self.peak_rss_bytes)
        if self.report is not None:
            for line in exit_.stacks.splitlines():
                self.report(LogLine(time.time(), "stacks", line))
        return self.judge(exit_, process.broken)

    def judge(self, exit_: Exit, broken: str = "") -> Answer:
        """The answer for an attempt that ended like this."""
        if self.verdict == TIMEOUT:
            return TimedOut(self.timeout_seconds, exit_)
        if self.verdict == CANCEL:
            return Cancelled(exit_)
        return Died(
            self.verdict or (f"its process was ended because {broken}" if broken else _reason(exit_)), exit_
        )


def _reason(exit_: Exit) -> str:
    if exit_.oom_killed:
        return "its process was killed by the kernel, which had run out of memory"
    if exit_.signal == "SIGXCPU":
        return "CPU limit: the run used more CPU seconds than it is allowed"
    if exit_.signal is not None:
        meaning = _SIGNALS.get(exit_.signal)
        return f"its process was ended by {exit_.signal}" + (f" ({meaning})" if meaning else "")
    if exit_.exit_code is not None:
        return f"its process ended itself with exit code {exit_.exit_code} before it answered"
    return "the process that had started it was gone, and it with that one"


def returned(result: Any) -> Answer:
    """The tool's result from its answer on the wire."""
    return Returned(result["value"], result["items"])


def raised(error: dict[str, Any]) -> Raised:
    """The tool's exception from its answer on the wire."""
    data = error.get("data") or {}
    return Raised(
        error_type=str(data.get("error_type", "ToolError")),
        message=str(data.get("message", error.get("message", ""))),
        traceback=str(data.get("traceback", "")),
        retryable=data.get("retryable") is True,
        retry_after_seconds=data.get("retry_after_seconds"),
        partial_results=data.get("partial_results"),
    )
