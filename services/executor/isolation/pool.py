"""Runs calls in subprocesses, at most a given number at a time."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import structlog
from msgspec import structs

from services.executor.isolation import rpc, sandbox
from services.executor.isolation.attempt import CANCEL, TIMEOUT, Attempt, Semaphore, Stopped
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
    seeded,
)  # fmt: skip
from services.executor.isolation.common import kernel, protocol
from services.executor.isolation.connection import Disconnected, Refused
from services.executor.isolation.forkserver import ForkServer
from services.executor.isolation.process import OVERDUE_SECONDS, LoadFailed, Process, ProcessOptions
from services.executor.isolation.processes import Processes
from services.executor.isolation.resource_limits import LimitMonitor, OomKills
from shared.errors import SandboxUnavailableError, ToolCrashedError, ToolError, ToolTimeoutError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a pool holds at one moment.

    `calls` are under way or wait for one of the slots, of which `free_slots` are free.  `alive` are all
    processes, among them those that are `idle`, the `templates`, and the forks that wait for a call,
    `preforked`.  `sizes` has the number of entries in each collection.
    """

    calls: int
    free_slots: int
    alive: frozenset[Process]
    idle: tuple[Process, ...]
    templates: tuple[Process, ...]
    preforked: tuple[Process, ...]
    fork_servers: tuple[ForkServer, ...]
    directory: Path
    sizes: Mapping[str, int]


class Pool:
    """Runs calls in processes that have their tool loaded; what a tool does to its process stays there.

    When there is no room for another process, the one that has been idle longest is ended.  A process is
    replaced after `max_runs`, above `max_rss_bytes`, and after a run that left something behind.  Besides,
    each tool that runs at level `fork`, `capacity` tools at most, has a template and up to MAX_PREFORKED
    forks of it that wait for a call.

    Args:
        capacity: the most calls that are under way.
        room: the most processes that may be alive, `capacity` by default.
        idle_seconds: a process, template or fork server that is idle for so long is ended.
        max_runs, max_rss_bytes, grace_seconds, environ, limit_bytes, log_bytes_per_second, readable,
            overdue_seconds, detect_sandbox: as in `ProcessOptions`.
        log: what logger to use.

    Raises:
        ValueError: `capacity` or `room` is too small.
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
        overdue_seconds: float = OVERDUE_SECONDS,
        detect_sandbox: Callable[[], sandbox.Kind] = sandbox.detect,
        log: Any = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        if room is not None and room < capacity:
            raise ValueError(f"{capacity} calls at once need as many processes, but there is room for {room}")
        self.options = ProcessOptions(
            environ=dict(environ or {}),
            limit_bytes=limit_bytes,
            log_bytes_per_second=log_bytes_per_second,
            max_runs=max_runs,
            max_rss_bytes=max_rss_bytes,
            grace_seconds=grace_seconds,
            readable=tuple(readable),
            overdue_seconds=overdue_seconds,
            detect_sandbox=detect_sandbox,
        )
        self._capacity = capacity
        self._room = room or capacity
        self._idle_seconds = idle_seconds
        self._log = log or structlog.get_logger(__name__)
        self._slots = Semaphore(capacity)
        self._processes: Processes | None = None
        self._attempts: set[Attempt] = set()
        self._oom_kills = OomKills()

    async def start(self) -> None:
        """Start the first fork server, so that the first call needn't wait for it.

        From then on, other processes of the same user can't look into this one's memory and environment.
        """
        if self._processes is None:
            kernel.set_dumpable(False)
            self._processes = Processes(
                self.options, self._room, self._capacity, self._idle_seconds, self._log
            )
            await self._processes.open()

    async def stop(self) -> None:
        """End everything; calls under way return Cancelled.  Leaves no process; may be repeated."""
        processes, self._processes = self._processes, None
        for attempt in list(self._attempts):
            attempt.stop(CANCEL)
        if processes is not None:
            await processes.close()
        self._oom_kills.close()

    @property
    def processes(self) -> Processes:
        """The processes of a pool that has started.  Stopped if it has not, or no longer."""
        if self._processes is None:
            raise Stopped
        return self._processes

    def counts(self) -> dict[str, int]:
        """How many processes are `busy` with a call, `starting` for one, or `idle` (templates included)."""
        serving = {attempt.process for attempt in self._attempts if attempt.process is not None}
        starting = sum(not process.loaded for process in serving)
        alive = len(self._processes.alive) if self._processes is not None else 0
        return {
            "idle": max(0, alive - len(serving)),
            "busy": len(serving) - starting,
            "starting": starting,
        }

    def inspect(self) -> PoolState:
        """What the pool holds now.  Stopped if it has not started."""
        processes = self.processes
        return PoolState(
            calls=len(self._attempts),
            free_slots=self._slots.free,
            alive=frozenset(processes.alive),
            idle=tuple(processes.idle.all()),
            templates=tuple(processes.templates.all()),
            preforked=tuple(processes.templates.preforked()),
            fork_servers=tuple(processes.fork_servers.alive),
            directory=processes.directory.path,
            sizes=processes.sizes(),
        )

    # -- describing -----------------------------------------------------------------------

    async def describe(self, module: Module, timeout_seconds: float) -> Description:
        """What the tool says about itself.

        Raises:
            ToolError: the module can't be imported or breaks the contract; with the tool's traceback.
            ToolTimeoutError: its import takes too long.
            ToolCrashedError: its import ends its process.
        """
        attempt = Attempt(timeout_seconds, self.options.grace_seconds, None, None)
        try:
            return await self._admit(attempt, None, lambda: self._describe(attempt, module))
        except LoadFailed as failed:
            raise ToolError("\n".join(filter(None, (str(failed), failed.traceback)))) from None
        except (Disconnected, Stopped):
            raise await self._describe_error(attempt, module) from None
        except OSError as error:
            raise ToolError(f"{module.path} can't be described: {error}") from error

    async def _describe(self, attempt: Attempt, module: Module) -> Description:
        processes = self.processes
        while True:
            process = await processes.warm(attempt, module)
            try:
                description = await process.describe()
            except LoadFailed:
                processes.give_back(process)
                raise
            except Disconnected:
                if not attempt.may_repeat(process):
                    raise
            else:
                processes.give_back(process)
                return description

    async def _describe_error(self, attempt: Attempt, module: Module) -> ToolError:
        if attempt.verdict == TIMEOUT:
            return ToolTimeoutError(f"{module.path}: its import took more than {attempt.timeout_seconds:g} s")
        exit_ = await asyncio.shield(attempt.process.ended) if attempt.process else Exit()
        answer = attempt.judge(exit_)
        reason = answer.reason if isinstance(answer, Died) else "the pool was stopped"
        return ToolCrashedError("\n".join((f"{module.path} can't be imported: {reason}", *exit_.last_lines)))

    # -- calling --------------------------------------------------------------------------

    async def call(
        self,
        call: Call,
        report: Report,
        *,
        effects: Effects | None = None,
        cancel: asyncio.Event | None = None,
    ) -> Answer:
        """Run the tool once and return what it came to.  Whatever the tool does, this raises nothing.

        The time limit, which includes the import, counts from when there is a free slot.  Setting `cancel`,
        or cancelling the task, ends the process tree.

        Args:
            call: what to run.
            report: receives what the tool reports and prints while it runs.
            effects: keeps artifacts and the results of steps; by default, nothing is kept.
            cancel: ends the call when it is set.
        """
        if call.seed is not None:
            call = structs.replace(call, module=seeded(call.module))
        try:
            params = self._encode(call)
        except (ValueError, TypeError, RecursionError) as error:
            return Raised("ToolParameterError", f"the parameters can't be sent to the tool: {error}")
        attempt = Attempt(call.timeout_seconds, self.options.grace_seconds, report, effects)
        monitor = LimitMonitor(attempt, call.limits)
        try:
            return monitor.completed(
                await self._admit(attempt, cancel, lambda: self._run(attempt, monitor, call, params))
            )
        except Stopped:
            return attempt.judge(Exit())
        finally:
            monitor.close()

    async def _admit(
        self, attempt: Attempt, cancel: asyncio.Event | None, work: Callable[[], Awaitable[T]]
    ) -> T:
        """Do the work when there is a free slot; nothing of it goes on after this returns."""
        if self._processes is None:
            attempt.stop(CANCEL)
        attempt.stop_on(cancel)
        self._attempts.add(attempt)
        try:
            await attempt.acquire(self._slots)
            attempt.start_clock()
            try:
                return await work()
            except asyncio.CancelledError:
                await self._abandon(attempt)
                raise
            finally:
                self._slots.release()
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
        limit_bytes = self.options.limit_bytes
        if len(params) > limit_bytes:
            raise ValueError(f"they are {len(params)} bytes of JSON, and {limit_bytes} are allowed")
        return params

    async def _run(self, attempt: Attempt, monitor: LimitMonitor, call: Call, params: bytes) -> Answer:
        """Call a process; another one if it was unfit, or ended before the call began."""
        attempt.oom_kills_before = self._oom_kills.so_far(asyncio.get_running_loop().time())
        while True:
            try:
                process = await self._obtain(attempt, call)
            except LoadFailed as failed:
                return Raised("ToolError", str(failed), failed.traceback, retryable=failed.stale)
            except Disconnected:
                if attempt.process is None:
                    return attempt.judge(Exit())
                return await self._answer_to_death(attempt, attempt.process)
            except SandboxUnavailableError as error:
                return Raised(type(error).__name__, str(error))
            except OSError as error:
                return Died(f"no process could be started for it: {error}", Exit())
            if call.limits.processes is not None:
                await monitor.enclose()
            monitor.begin()
            answer = await self._perform(attempt, process, call, params)
            if answer is not None:
                return answer

    def _obtain(self, attempt: Attempt, call: Call) -> Awaitable[Process]:
        match call.level:
            case Level.WARM:
                return self.processes.warm(attempt, call.module)
            case Level.FORK:
                return self.processes.forked(attempt, call.module)
            case Level.SPAWN:
                return self.processes.fresh(attempt, call.module)

    async def _perform(self, attempt: Attempt, process: Process, call: Call, params: bytes) -> Answer | None:
        """The call's answer, or None if the process refused to begin or ended before."""
        keep = call.level is Level.WARM
        try:
            answer = await self._answer(process, call, params, single=not keep)
        except Disconnected:
            return None if attempt.may_repeat(process) else await self._answer_to_death(attempt, process)
        except ValueError as error:
            process.connection.close(f"it broke the protocol: {error}")
            return await self._answer_to_death(attempt, process)
        if attempt.verdict:
            return await self._answer_to_death(attempt, process)
        process.attach(None, None)
        if answer is None:
            self.processes.refused(process)
        elif keep:
            self.processes.give_back(process)
        else:
            self.processes.dismiss(process)
        return answer

    async def _answer(self, process: Process, call: Call, params: bytes, *, single: bool) -> Answer | None:
        try:
            return rpc.returned(await process.call(call, params, single=single))
        except Refused as refused:
            if refused.error.get("code") == protocol.NO_LONGER_FIT:
                process.retired = process.retired or str(refused)
                return None
            return rpc.raised(refused.error)
        finally:
            process.finish()

    async def _answer_to_death(self, attempt: Attempt, process: Process) -> Answer:
        """The answer for a process that ended before it answered, once nothing of it is left."""
        exit_ = await asyncio.shield(process.ended)
        unexpected = exit_.signal == "SIGKILL" and not attempt.verdict and not process.fate
        if unexpected and self._oom_kills.explain(attempt.oom_kills_before):
            exit_ = replace(exit_, oom_killed=True)
        return attempt.answer_to_death(exit_, process.fate)
