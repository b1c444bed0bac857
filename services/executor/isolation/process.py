"""One subprocess that serves one tool, as the executor sees it."""

import asyncio
import functools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.executor.isolation import calls, rpc, sandbox
from services.executor.isolation.calls import Call, Description, Effects, Exit, Module, Report
from services.executor.isolation.cgroups import ProcessGroup
from services.executor.isolation.common import process_tree, protocol
from services.executor.isolation.connection import Connection, Disconnected, Refused, close_all, socket_pair
from services.executor.isolation.output import Output
from services.executor.isolation.parent import MARK, ForkRequest, Parent
from services.executor.isolation.workdir import Workdir

OVERDUE_SECONDS = 3.0
"""The process that forked this one has so long, beyond the grace, to report its end."""

MAX_CHECKS = 2
FOLLOW_SECONDS = 0.02
"""From then on, a fork's log is read while it runs.  Most runs are over before."""

DISMISSAL_SECONDS = 0.2
"""A process that was dismissed has so long to exit by itself."""


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """What is the same for every process of a pool.

    Args:
        environ: all that a tool sees of the environment, besides what its call brings.
        limit_bytes: the most that parameters, a result or a partial item may have as JSON.
        log_bytes_per_second: what is printed faster than that slows down the process.
        max_runs: a process is replaced after so many runs.
        max_rss_bytes: a process that uses more memory after a run is replaced.
        grace_seconds: between SIGTERM and SIGKILL.
        directory: where the processes have their working directories.
        readable: what confined tools may read and execute besides their own files.
        overdue_seconds: see OVERDUE_SECONDS.
        detect_sandbox: finds out how a tool can be confined here.
    """

    environ: Mapping[str, str] = field(default_factory=dict)
    limit_bytes: int = 33_554_432
    log_bytes_per_second: int = 4_194_304
    max_runs: int = 1000
    max_rss_bytes: int | None = None
    grace_seconds: float = 0.25
    directory: Path = Path(tempfile.gettempdir())
    readable: tuple[Path, ...] = ()
    overdue_seconds: float = OVERDUE_SECONDS
    detect_sandbox: Callable[[], sandbox.Kind] = sandbox.detect


def confinement(module: Module, options: ProcessOptions, writable: Path) -> sandbox.Confinement | None:
    """What a process that serves `module` may reach; None if it is not confined.

    Raises SandboxUnavailableError if nothing here can confine it.
    """
    if module.sandbox is sandbox.Sandbox.OFF:
        return None
    if module.sandbox is sandbox.Sandbox.PROCESS:
        return sandbox.of_processes(module.capabilities)
    python = module.python or Path(sys.executable)
    return sandbox.of_tool(
        module.sandbox,
        file=module.path,
        python=python,
        temp=writable,
        environ=options.environ,
        environment=module.prefix,
        also=options.readable,
        kind=options.detect_sandbox(),
        capabilities=module.capabilities,
    )


def hashing(hash_seed: str) -> dict[str, str]:
    """The variable that has an interpreter, and those that it starts, use this hash seed."""
    return {"PYTHONHASHSEED": hash_seed} if hash_seed else {}


class LoadFailed(Exception):
    """The tool can't be imported or breaks the contract; `stale` if its file was changed just now."""

    def __init__(self, message: str, traceback: str, stale: bool) -> None:
        super().__init__(message)
        self.traceback = traceback
        self.stale = stale


class Process(Parent):
    """A subprocess, from before its fork until it is reaped.

    When the process ends, whatever awaits it raises Disconnected, and `exit` says how it ended.  Once a
    tool is loaded, and before its first call, it can fork others.
    """

    def __init__(self, module: Module, options: ProcessOptions, workdir: Workdir) -> None:
        super().__init__()
        self.module = module
        self.key = module.key
        self.options = options
        self.pid = 0
        self.loaded = False
        self.unforkable = ""
        self.shm_files = 0  # in its own /dev/shm after the import, which its forks share
        self.retired = ""
        self.idle_since = 0.0
        self.exit = Exit()
        self.fate = ""
        self.on_retired: Callable[[Process, str], None] | None = None
        self.on_ended: Callable[[Process], None] | None = None
        self.has_room = False
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.parent: Parent | None = None
        self.group: ProcessGroup | None = None
        self._forked: asyncio.Future[None] | None = None
        self._token = 0
        self._is_dismissed = False
        self._is_ending = False
        self._checks = 0
        self._overdue: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._messages = rpc.MessageHandler(module.name, workdir)
        self._output = Output(options.log_bytes_per_second, self._messages.handle_line)
        self.workdir = workdir
        self.confinement = confinement(module, options, workdir.path)
        self._directories = {"temp": workdir.temp, "artifacts": workdir.artifacts}

    # -- starting ------------------------------------------------------------------------

    def start(self, parent: Parent, *, fresh: bool = False) -> None:
        """Have `parent` fork this process.  Requests to it may be sent at once.

        Raises Disconnected if it was ended before.
        """
        if self.ended.done():
            raise Disconnected
        [self._token] = parent.fork([self._fork_request(parent)], fresh=fresh)
        self.follow()

    def _fork_request(self, parent: Parent) -> ForkRequest:
        descriptors = self._output.take_ends()
        try:
            ours, theirs = socket_pair()
        except OSError:
            close_all(descriptors)
            raise
        self.connection = Connection(ours, self.options.limit_bytes, self._receive, self._closed)
        self.parent = parent
        self.mark, self.namespace_pid = parent.mark, parent.namespace_pid
        workdir = self._directories if isinstance(parent, Process) else {}
        return ForkRequest(self, (theirs.detach(), *descriptors), workdir)

    def fork_all(self, forks: "Sequence[Process]") -> None:
        """Have this process, which has a tool loaded, fork these.  Their logs are not followed yet.

        Raises OSError, with none of them started, if there are too few descriptors for them.
        """
        requests: list[ForkRequest] = []
        try:
            for fork in forks:
                requests.append(fork._fork_request(self))
        except OSError:
            close_all([descriptor for request in requests for descriptor in request.descriptors])
            for fork in forks:
                fork.on_exited(None, None, None)
            raise
        for fork, token in zip(forks, self.fork(requests, fresh=False), strict=True):
            fork._token = token
            fork.loaded = True

    def follow(self) -> None:
        """From now on, pass on what it prints when it prints it, not only when its run is over."""
        if not self.ended.done():
            self._output.follow()

    def follow_later(self) -> None:
        """Follow it unless its run is over in a moment."""
        self._timer = asyncio.get_running_loop().call_later(FOLLOW_SECONDS, self.follow)

    def on_forked(self, pid: int) -> None:
        """Keep the process id: for logs and measurements, never for signals."""
        self.pid = pid
        if self._forked is not None and not self._forked.done():
            self._forked.set_result(None)

    async def known_pid(self) -> int:
        """Its process id, once it is forked; 0 if it never was."""
        if not self.pid and not self.ended.done():
            self._forked = self._forked or asyncio.get_running_loop().create_future()
            await self._forked
        return self.pid

    async def load(self) -> None:
        """Import the tool.  LoadFailed if it can't be imported or is no tool."""
        options = self.options
        params = {
            "name": self.module.name,
            "path": str(self.module.path),
            "digest": self.module.main or self.module.digest,
            "environ": {**options.environ, **hashing(self.module.hash_seed), MARK: self.mark},
            **self._directories,
            "limit_bytes": options.limit_bytes,
            "max_runs": options.max_runs,
            "max_rss_bytes": options.max_rss_bytes,
            "confinement": None if self.confinement is None else self.confinement.to_json(),
        }
        match await self._request("load", protocol.encode_value(params)):
            case {"error": {"message": str(message), "traceback": str(traceback), "stale": bool(stale)}}:
                raise LoadFailed(message, traceback, stale)
            case {"unforkable": str(unforkable)}:
                self.loaded = True
                self.unforkable = unforkable
            case _:
                raise self._broken("not an answer to `load`")

    async def describe(self) -> Description:
        """What the tool says about itself.  LoadFailed if it can't be called as a tool."""
        match await self._request("describe", b"{}"):
            case {"error": {"message": str(message)}}:
                raise LoadFailed(message, "", False)
            case answer:
                try:
                    return rpc.description(answer)
                except ValueError as error:
                    raise self._broken(str(error)) from None

    async def _request(self, method: str, params: bytes) -> Any:
        try:
            return await self.connection.request(method, params)
        except Refused:
            raise self._broken(f"it refused to {method}") from None

    def _broken(self, what: str) -> Disconnected:
        self.connection.close(f"it broke the protocol: {what}")
        return Disconnected()

    # -- one run -------------------------------------------------------------------------

    def attach(self, report: Report | None, effects: Effects | None) -> None:
        """From now on, what the process says belongs to this run."""
        self._messages.attach(report, effects)
        self._output.last_lines.clear()

    def call(self, call: Call, params: bytes, *, single: bool) -> asyncio.Future[Any]:
        """The tool's result; Refused with its exception, Disconnected if the process ends first.

        `single` has the process exit afterwards.  Call `finish` in any case.
        """
        head = protocol.encode_value(rpc.call_params(call, single=single))
        return self.connection.request("call", head[:-1] + b',"params":' + params + b"}")

    @property
    def missed_the_call(self) -> bool:
        """Whether it ended before it had read the call, so that the call can't have begun."""
        return self.connection.left_unread and not self._messages.has_message and not self.fate

    def finish(self) -> None:
        """The call is over: pass on what it printed, and remove what is left of its artifacts."""
        if not self.ended.done():
            self._output.drain()
        self._messages.remove_files()

    # -- messages ------------------------------------------------------------------------

    def _receive(self, message: dict[str, Any]) -> None:
        """Handle a message that is no answer.  The process is not trusted: nonsense ends it."""
        try:
            self._handle(message["method"], message.get("params") or {}, message.get("id"))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError) as error:
            raise protocol.ProtocolBroken(f"{type(error).__name__}: {error}") from None
        except RecursionError:
            raise protocol.ProtocolBroken("a message is nested too deeply") from None

    def _handle(self, method: Any, params: dict[str, Any], request_id: Any) -> None:
        match method:
            case "forked":
                self.handle_forked({"children": self._checked(params["children"])})
            case "exited":
                self.handle_exited(params)
            case "retire":
                self.retired = str(params["reason"]) or "it asked for it"
                if self.on_retired is not None:
                    self.on_retired(self, str(params["run_id"]))
            case "hello":
                if params["version"] != protocol.VERSION:
                    raise ValueError(f"it speaks version {params['version']}, not {protocol.VERSION}")
            case _:
                self._messages.handle(method, params, request_id, self.connection)

    def _checked(self, children: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Tokens and process ids of its children; 0 for those that are gone, whose ids others may get.

        ValueError if one is another's: what is measured and limited would be that other process.
        """
        if self.namespace_pid:  # the ids are those of its namespace, which has no others
            return list(children)
        parents = [process_tree.parent_of(int(pid)) for _, pid in children]
        if not {None, self.pid}.issuperset(parents):
            raise ValueError(f"it reports a process that is not its child: {children}")
        return [
            (token, 0 if parent is None else int(pid))
            for (token, pid), parent in zip(children, parents, strict=True)
        ]

    # -- ending --------------------------------------------------------------------------

    def end(self, *, grace_seconds: float, stacks: bool = False) -> None:
        """End the whole process tree; `ended` is done when it is gone."""
        self._is_ending = True
        if self.parent is None:
            self.on_exited(None, None, None)
        elif not self.ended.done():
            self.parent.end_child(self._token, grace_seconds, stacks=stacks)
            self._expect_end(grace_seconds)

    def _expect_end(self, grace_seconds: float) -> None:
        if self._overdue is None:
            seconds = grace_seconds + self.options.overdue_seconds
            self._overdue = asyncio.get_running_loop().call_later(seconds, self._check_parent)

    def _check_parent(self) -> None:
        self._overdue = None
        self._checks += 1
        if isinstance(self.parent, Process) and self._checks > MAX_CHECKS:
            self.parent.give_up()  # it answers but reaps nobody: a tool runs in its interpreter
        elif self.parent is not None:
            self.parent.check()
        self._expect_end(0)

    def give_up(self) -> None:
        """As a parent, this process doesn't answer any more: end it."""
        self.end(grace_seconds=0)

    def dismiss(self) -> None:
        """Let the process, which has nothing more to say, exit by itself.  It is ended if it doesn't."""
        self._is_dismissed = True
        self.connection.close()
        if self._timer is not None:
            self._timer.cancel()
        end = functools.partial(self.end, grace_seconds=0)
        self._timer = asyncio.get_running_loop().call_later(DISMISSAL_SECONDS, end)

    def _closed(self, reason: str) -> None:
        """Its end of the socket is closed: the process is dead, dying, or hides."""
        if reason:
            self.fate = f"its process was ended because {reason}"
        self.lose_children()
        if not self._is_ending and not self._is_dismissed:
            self.end(grace_seconds=0)

    def on_exited(
        self, status: int | None, peak_rss_bytes: int | None, cpu_seconds: float | None, problem: str = ""
    ) -> None:
        """Record how it ended, read what it left, and release everything it held."""
        if self.ended.done():
            return
        if problem:
            self.fate = f"no process could be started for it: {problem}"
        if not self._is_dismissed:
            self._read_the_rest()
            stacks, last_lines = self._output.stacks(), self._output.last_lines
            self.exit = calls.exit_of(status, peak_rss_bytes, cpu_seconds, stacks, last_lines)
        self.ended.set_result(self.exit)
        if self._forked is not None and not self._forked.done():
            self._forked.set_result(None)
        if self.group is not None:
            self.group.remove()
        if self.parent is not None:
            self.connection.close()
        self._output.close()
        self._messages.close()
        for timer in (self._overdue, self._timer):
            if timer is not None:
                timer.cancel()
        if isinstance(self.parent, Process) and status is not None:
            self.parent.workdir.take_back(self.workdir)
        else:
            self.workdir.remove()
        if self.on_ended is not None:
            self.on_ended(self)

    def _read_the_rest(self) -> None:
        """Pass on what it had said and printed before it ended."""
        if self.parent is not None:
            self.connection.drain()
        self._output.drain()
