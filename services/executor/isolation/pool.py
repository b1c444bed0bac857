"""Runs calls in subprocesses, no more at a time than it was made for."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import structlog

from services.executor.isolation.attempt import CANCEL, TIMEOUT, Attempt, Gate, Stopped, raised, returned
from services.executor.isolation.calls import (
    Answer,
    Call,
    Description,
    Died,
    Effects,
    Exit,
    Level,
    Module,
    Raised,
    Report,
)  # fmt: skip
from services.executor.isolation.common import protocol
from services.executor.isolation.connection import Disconnected, Refused
from services.executor.isolation.oom import OomKills
from services.executor.isolation.process import LoadFailed, Process
from services.executor.isolation.processes import Stable
from services.executor.isolation.resource_limits import Watch
from services.executor.isolation.terms import Terms
from shared.errors import SandboxUnavailableError, ToolCrashedError, ToolError, ToolTimeoutError

T = TypeVar("T")


class Pool:
    """Warm processes for tools: what a tool does to its process stays there.

    `capacity` bounds the calls under way, `room` (by default as many) the processes that
    may be alive.  When there is no room for another, the one that is idle the longest is ended.
    Besides, each tool that runs at level `fork` has an idle template and up to MAX_STANDBYS forks
    of it that stand by, of `capacity` tools at most.
    Idle ones are ended after `idle_seconds`, and so is what starts the
    processes of an environment when there are none any more.  A process is recycled
    after `max_runs`, above `max_rss_bytes` and after a run that left something
    behind.  `environ` is all that a tool sees of the environment, besides what its
    call brings; `readable` is what confined tools may read and execute besides their own.
    """

    def __init__(
        self,
        *,
        capacity: int,
        room: int | None = None,
        idle_seconds: float = 300,
        max_runs: int = 1000,
        max_rss_bytes: int | None = None,
        grace_seconds: float = 0.25,
        environ: Mapping[str, str] | None = None,
        limit_bytes: int = 33_554_432,
        log_bytes_per_second: int = 4_194_304,
        readable: Sequence[Path] = (),
        log: Any = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a pool needs room for at least one process, not {capacity}")
        if room is not None and room < capacity:
            raise ValueError(f"{capacity} calls at once need as many processes, and there is room for {room}")
        self.terms = Terms(
            environ=dict(environ or {}),
            limit_bytes=limit_bytes,
            log_bytes_per_second=log_bytes_per_second,
            max_runs=max_runs,
            max_rss_bytes=max_rss_bytes,
            grace_seconds=grace_seconds,
            readable=tuple(readable),
        )
        self._capacity = capacity
        self._room = room or capacity
        self._idle_seconds = idle_seconds
        self._log = log or structlog.get_logger(__name__)
        self._gate = Gate(capacity)
        self._stable: Stable | None = None
        self._attempts: set[Attempt] = set()
        self._oom_kills = OomKills()

    async def start(self) -> None:
        """Have the first fork server ready, so that the first call needn't wait for it."""
        if self._stable is None:
            self._stable = Stable(self.terms, self._room, self._capacity, self._idle_seconds, self._log)
            await self._stable.open()

    async def stop(self) -> None:
        """End everything; calls under way come to Cancelled.  Leaves no process, and may be repeated."""
        stable, self._stable = self._stable, None
        for attempt in list(self._attempts):
            attempt.stop(CANCEL)
        if stable is not None:
            await stable.close()
        self._oom_kills.close()

    def counts(self) -> dict[str, int]:
        """How many processes are `busy` with a call, `starting` for one, or `idle` (or to be forked from)."""
        serving = {attempt.process for attempt in self._attempts if attempt.process is not None}
        starting = sum(not process.loaded for process in serving)
        alive = len(self._stable._alive) if self._stable is not None else 0
        return {
            "idle": max(0, alive - len(serving)),
            "busy": len(serving) - starting,
            "starting": starting,
        }

    async def describe(self, module: Module, timeout_seconds: float) -> Description:
        """What the tool says of itself.

        Raises ToolError, with the tool's traceback in the message, for a module
        that can't be imported or breaks the contract; ToolTimeoutError if its
        import takes too long; ToolCrashedError if it ends its process.
        """
        attempt = Attempt(timeout_seconds, self.terms.grace_seconds, None, None)
        try:
            return await self._admit(attempt, None, lambda: self._describe(attempt, module))
        except LoadFailed as failed:
            raise ToolError("\n".join(filter(None, (str(failed), failed.traceback)))) from None
        except (Disconnected, Stopped):
            raise await self._undescribed(attempt, module) from None
        except OSError as error:
            raise ToolError(f"{module.path} can't be described: {error}") from error

    async def _describe(self, attempt: Attempt, module: Module) -> Description:
        stable = self._open_stable()
        while True:
            process = await stable.warm(attempt, module)
            try:
                description = await process.describe()
            except LoadFailed:
                stable.give_back(process)
                raise
            except Disconnected:
                if not attempt.may_try_again(process):
                    raise
            else:
                stable.give_back(process)
                return description

    async def _undescribed(self, attempt: Attempt, module: Module) -> ToolError:
        if attempt.verdict == TIMEOUT:
            return ToolTimeoutError(f"{module.path}: its import took more than {attempt.timeout_seconds:g} s")
        exit_ = await asyncio.shield(attempt.process.ended) if attempt.process else Exit()
        answer = attempt.judge(exit_)
        reason = answer.reason if isinstance(answer, Died) else "the pool was stopped"
        return ToolCrashedError("\n".join((f"{module.path} can't be imported: {reason}", *exit_.last_lines)))

    async def make_ready(self, module: Module, level: Level, timeout_seconds: float) -> None:
        """Have a process ready for a call to come, if one can be spared; what is wrong, the call will say."""
        with contextlib.suppress(LoadFailed, Disconnected, Stopped, SandboxUnavailableError, OSError):
            await self._open_stable().make_ready(module, level, timeout_seconds)

    async def call(
        self,
        call: Call,
        report: Report,
        *,
        effects: Effects | None = None,
        cancel: asyncio.Event | None = None,
    ) -> Answer:
        """Run the tool once, and say what came of it; whatever the tool does, this doesn't raise.

        The time limit counts from the moment there is a free place, the import
        included.  Setting `cancel`, or cancelling the task, ends the process tree.
        """
        try:
            params = self._encode(call)
        except (ValueError, TypeError, RecursionError) as error:
            return Raised("ToolParameterError", f"the parameters can't be sent to the tool: {error}")
        attempt = Attempt(call.timeout_seconds, self.terms.grace_seconds, report, effects)
        watch = Watch(attempt, call.limits)
        try:
            return watch.completed(
                await self._admit(attempt, cancel, lambda: self._run(attempt, watch, call, params))
            )
        except Stopped:
            return attempt.judge(Exit())
        finally:
            watch.close()

    async def _admit(
        self, attempt: Attempt, cancel: asyncio.Event | None, work: Callable[[], Awaitable[T]]
    ) -> T:
        """Do the work when there is a free place; nothing of it goes on after this."""
        if self._stable is None:
            attempt.stop(CANCEL)
        attempt.stop_on(cancel)
        self._attempts.add(attempt)
        try:
            await attempt.enter(self._gate)
            attempt.start_clock()
            try:
                return await work()
            except asyncio.CancelledError:
                await self._abandon(attempt)
                raise
            finally:
                self._gate.leave()
        finally:
            attempt.close()
            self._attempts.discard(attempt)

    async def _abandon(self, attempt: Attempt) -> None:
        """Nobody waits for the answer any more: end the process, and wait until it is gone."""
        attempt.stop(CANCEL)
        if attempt.process is not None:
            await asyncio.shield(attempt.process.ended)

    def _encode(self, call: Call) -> bytes:
        params = protocol.encode_value(dict(call.params))
        limit_bytes = self.terms.limit_bytes
        if len(params) > limit_bytes:
            raise ValueError(f"they are {len(params)} bytes of JSON, and {limit_bytes} are allowed")
        return params

    async def _run(self, attempt: Attempt, watch: Watch, call: Call, params: bytes) -> Answer:
        """Find or make a process and run the call; again if a process was unfit, or ended before it began."""
        attempt.oom_kills_before = self._oom_kills.so_far(asyncio.get_running_loop().time())
        while True:
            try:
                process = await self._obtain(attempt, call)
            except LoadFailed as failed:
                return Raised("ToolError", str(failed), failed.traceback, retryable=failed.stale)
            except Disconnected:
                return (
                    await self._buried(attempt, attempt.process) if attempt.process else attempt.judge(Exit())
                )
            except SandboxUnavailableError as error:
                return Raised(type(error).__name__, str(error))
            except OSError as error:
                return Died(f"no process could be started for it: {error}", Exit())
            watch.begin()
            answer = await self._perform(attempt, process, call, params)
            if answer is not None:
                return answer

    def _obtain(self, attempt: Attempt, call: Call) -> Awaitable[Process]:
        stable = self._open_stable()
        match call.level:
            case Level.WARM:
                return stable.warm(attempt, call.module)
            case Level.FORK:
                return stable.forked(attempt, call.module)
            case Level.SPAWN:
                return stable.fresh(attempt, call.module)

    async def _perform(self, attempt: Attempt, process: Process, call: Call, params: bytes) -> Answer | None:
        """The call's answer, or None when the process refused to begin or ended before."""
        keep = call.level is Level.WARM
        try:
            answer = await self._answer(process, call, params, single=not keep)
        except Disconnected:
            return None if attempt.may_try_again(process) else await self._buried(attempt, process)
        except ValueError as error:
            process.connection.close(f"it broke the protocol: {error}")
            return await self._buried(attempt, process)
        if attempt.verdict:
            return await self._buried(attempt, process)
        process.listen(None, None)
        if answer is None:
            self._open_stable().refused(process)
        elif keep:
            self._open_stable().give_back(process)
        else:
            self._open_stable().dismiss(process)
        return answer

    async def _answer(self, process: Process, call: Call, params: bytes, *, single: bool) -> Answer | None:
        try:
            return returned(await process.call(call, params, single=single))
        except Refused as refused:
            if refused.error.get("code") == protocol.NO_LONGER_FIT:
                process.retired = process.retired or str(refused)
                return None
            return raised(refused.error)
        finally:
            process.finish()

    async def _buried(self, attempt: Attempt, process: Process) -> Answer:
        """The answer for a process that ended first, once nothing of it is left."""
        exit_ = await asyncio.shield(process.ended)
        unexpected = exit_.signal == "SIGKILL" and not attempt.verdict and not process.fate
        if unexpected and self._oom_kills.explain(attempt.oom_kills_before):
            exit_ = replace(exit_, oom_killed=True)
        return attempt.buried(exit_, process.fate)

    def _open_stable(self) -> Stable:
        if self._stable is None:
            raise Stopped
        return self._stable
