"""Runs calls in subprocesses, no more at a time than it was made for."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import structlog

from services.executor.isolation import protocol
from services.executor.isolation.attempt import CANCEL, TIMEOUT, Attempt, Stopped, raised, returned
from services.executor.isolation.calls import (
    Answer, Call, Description, Died, Effects, Exit, Level, Module, Raised, Report,
)  # fmt: skip
from services.executor.isolation.connection import Disconnected, Refused
from services.executor.isolation.gate import Gate
from services.executor.isolation.process import LoadFailed, Process, Terms
from services.executor.isolation.stable import Stable
from shared.errors import ToolCrashedError, ToolError, ToolTimeoutError


class Pool:
    """Warm processes for tools: what a tool does to its process stays there.

    `capacity` bounds the calls under way; as many processes may be alive, plus
    one idle template per tool that runs at level `fork`.  Idle ones are ended
    after `idle_seconds`.  A process is recycled after `max_runs`, above
    `max_rss_bytes` and after a run that left something behind.  `environ` is all
    that a tool sees of the environment, besides what its call brings.
    """

    def __init__(
        self,
        *,
        capacity: int,
        idle_seconds: float = 300,
        max_runs: int = 1000,
        max_rss_bytes: int | None = None,
        grace_seconds: float = 0.25,
        environ: Mapping[str, str] | None = None,
        limit_bytes: int = 33_554_432,
        log_bytes_per_second: int = 4_194_304,
        log: Any = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a pool needs room for at least one process, not {capacity}")
        self.terms = Terms(
            environ=dict(environ or {}),
            limit_bytes=limit_bytes,
            log_bytes_per_second=log_bytes_per_second,
            max_runs=max_runs,
            max_rss_bytes=max_rss_bytes,
            grace_seconds=grace_seconds,
        )
        self._capacity = capacity
        self._idle_seconds = idle_seconds
        self._log = log or structlog.get_logger(__name__)
        self._gate = Gate(capacity)
        self._stable: Stable | None = None
        self._attempts: set[Attempt] = set()

    async def start(self) -> None:
        """Have the first fork server ready, so that the first call needn't wait for it."""
        if self._stable is None:
            self._stable = Stable(self.terms, self._capacity, self._idle_seconds, self._log)
            await self._stable.open()

    async def stop(self) -> None:
        """End everything; calls under way come to Cancelled.  Leaves no process, and may be repeated."""
        stable, self._stable = self._stable, None
        for attempt in list(self._attempts):
            attempt.stop(CANCEL)
        if stable is not None:
            await stable.close()

    async def describe(self, module: Module, timeout_seconds: float) -> Description:
        """What the tool says of itself.

        Raises ToolError, with the tool's traceback in the message, for a module
        that can't be imported or breaks the contract; ToolTimeoutError if its
        import takes too long; ToolCrashedError if it ends its process.
        """
        attempt = Attempt(timeout_seconds, self.terms.grace_seconds, None, None)
        try:
            with self._under_way(attempt):
                await attempt.enter(self._gate)
                try:
                    with attempt.within_time():
                        data = await self._describe(attempt, module)
                finally:
                    self._gate.leave()
        except LoadFailed as failed:
            raise ToolError("\n".join(filter(None, (str(failed), failed.traceback)))) from None
        except (Disconnected, Stopped):
            raise await self._undescribed(attempt, module) from None
        except OSError as error:
            raise ToolError(f"{module.path} can't be described: {error}") from error
        if "error" in data:
            raise ToolError(data["error"]["message"])
        return Description(**data)

    async def _describe(self, attempt: Attempt, module: Module) -> dict[str, Any]:
        stable = self._open_stable()
        process = await stable.warm(attempt, module)
        try:
            return await process.describe()
        finally:
            stable.give_back(process)

    async def _undescribed(self, attempt: Attempt, module: Module) -> ToolError:
        if attempt.verdict == TIMEOUT:
            return ToolTimeoutError(f"{module.path}: its import took more than {attempt.timeout_seconds:g} s")
        exit_ = await asyncio.shield(attempt.process.ended) if attempt.process else Exit()
        answer = attempt.judge(exit_)
        reason = answer.reason if isinstance(answer, Died) else "the pool was stopped"
        return ToolCrashedError("\n".join((f"{module.path} can't be imported: {reason}", *exit_.last_lines)))

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
        try:
            with self._under_way(attempt), attempt.until(cancel):
                await attempt.enter(self._gate)
                try:
                    with attempt.within_time():
                        return await self._run(attempt, call, params)
                finally:
                    self._gate.leave()
        except Stopped:
            return attempt.judge(Exit())

    def _encode(self, call: Call) -> bytes:
        params = protocol.encode_value(dict(call.params))
        limit_bytes = self.terms.limit_bytes
        if len(params) > limit_bytes:
            raise ValueError(f"they are {len(params)} bytes of JSON, and {limit_bytes} are allowed")
        return params

    async def _run(self, attempt: Attempt, call: Call, params: bytes) -> Answer:
        """Find or make a process and run the call; again when a warm process turned out unfit for it."""
        while True:
            try:
                process = await self._obtain(attempt, call)
            except LoadFailed as failed:
                return Raised("ToolError", str(failed), failed.traceback, retryable=failed.stale)
            except Disconnected:
                return await attempt.buried(attempt.process) if attempt.process else attempt.judge(Exit())
            except OSError as error:
                return Died(f"no process could be started for it: {error}", Exit())
            answer = await self._perform(attempt, process, call, params)
            if answer is not None:
                return answer

    async def _obtain(self, attempt: Attempt, call: Call) -> Process:
        stable = self._open_stable()
        match call.level:
            case Level.WARM:
                return await stable.warm(attempt, call.module)
            case Level.FORK:
                return await stable.forked(attempt, call.module)
            case Level.SPAWN:
                return await stable.fresh(attempt, call.module)

    async def _perform(self, attempt: Attempt, process: Process, call: Call, params: bytes) -> Answer | None:
        """The call's answer, or None when the process refused to begin."""
        keep = call.level is Level.WARM
        try:
            answer = returned(await process.call(call, params, single=not keep))
        except Refused as refused:
            if refused.error.get("code") == protocol.NO_LONGER_FIT:
                keep = False
                return None
            answer = raised(refused.error)
        except Disconnected:
            return await attempt.buried(process)
        finally:
            self._leave(attempt, process, keep)
        return await attempt.buried(process) if attempt.verdict else answer

    def _leave(self, attempt: Attempt, process: Process, keep: bool) -> None:
        process.listen(None, None)
        stable = self._stable
        if keep and stable is not None and not attempt.verdict:
            stable.give_back(process)
        elif not attempt.verdict:
            process.dismiss()

    def _open_stable(self) -> Stable:
        if self._stable is None:
            raise Stopped
        return self._stable

    @contextlib.contextmanager
    def _under_way(self, attempt: Attempt) -> Iterator[None]:
        if self._stable is None:
            attempt.stop(CANCEL)
        self._attempts.add(attempt)
        try:
            yield
        finally:
            self._attempts.discard(attempt)
