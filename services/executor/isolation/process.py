"""One subprocess that serves one tool, as the executor sees it."""

import asyncio
import socket
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from services.executor.isolation import exits, protocol, sandbox, speech
from services.executor.isolation.calls import (
    NO_LIMITS,
    Call,
    Description,
    Effects,
    Event,
    Exit,
    Limits,
    LogLine,
    Module,
    NothingKept,
    Report,
)  # fmt: skip
from services.executor.isolation.connection import Connection, Disconnected, close_all
from services.executor.isolation.forkserver import MARK, Owner
from services.executor.isolation.output import Output
from services.executor.isolation.place import Place, remove
from services.executor.isolation.steps import Steps
from services.executor.isolation.terms import Terms

TOOLKIT = Path(__file__).parents[3] / "shared" / "toolkit.py"
log = structlog.get_logger(__name__)
DISMISSAL_SECONDS = 0.2
OVERDUE_SECONDS = 3.0


class LoadFailed(Exception):
    """The tool can't be imported or breaks the contract; `stale` when its file changed just now."""

    def __init__(self, message: str, traceback: str, stale: bool) -> None:
        super().__init__(message)
        self.traceback = traceback
        self.stale = stale


class Process(Owner):
    """A subprocess from its fork to its burial.

    Any await on it raises Disconnected when the process ends; `exit` then says
    how.  Once a tool is loaded, and before the first call, it can fork others.
    """

    def __init__(self, module: Module, terms: Terms, place: Place) -> None:
        super().__init__()
        self.module = module
        self.key = module.key
        self.terms = terms
        self.pid = 0
        self.loaded = False
        self.unforkable = ""
        self.retired = ""
        self.idle_since = 0.0
        self.exit = Exit()
        self.fate = ""
        self.on_retired: Any = None
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self.owner: Owner | None = None
        self._token = 0
        self._report: Report | None = None
        self._effects: Effects | None = None
        self._steps = Steps()
        self._dismissal: asyncio.TimerHandle | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._is_ending = False
        self._output = Output(terms.log_bytes_per_second, self._log)
        # All that a confined process may write to.
        self.place = place
        self.confinement = confinement(module, terms, place.path)
        self._artifacts = place.artifacts
        self._places = {"temp": place.temp, "artifacts": place.artifacts}
        self._has_files = False

    # -- birth ---------------------------------------------------------------------------

    def start(self, owner: Owner, *, fresh: bool = False) -> None:
        """Have `owner` fork this process; what is asked of it from now on waits until it is there.

        Disconnected if somebody ended it before it could begin.
        """
        if self.ended.done():
            raise Disconnected
        descriptors = self._output.take_ends()
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            close_all(descriptors)
            raise
        self.connection = Connection(ours, self.terms.limit_bytes, self._receive, self._closed)
        self.owner = owner
        self.mark, self.nest = owner.mark, owner.nest
        places = self._places if isinstance(owner, Process) else {}
        self._token = owner.fork([theirs.detach(), *descriptors], self, fresh=fresh, places=places)

    def on_forked(self, pid: int) -> None:
        """Keep the process id: for logs and for watching, never for signals."""
        self.pid = pid

    async def load(self) -> None:
        """Import the tool; LoadFailed if it can't be or is no tool."""
        params = {
            "name": self.module.name,
            "path": str(self.module.path),
            "digest": self.module.main or self.module.digest,
            "environ": {**self.terms.environ, MARK: self.mark},
            "toolkit": str(TOOLKIT),
            **self._places,
            "limit_bytes": self.terms.limit_bytes,
            "max_runs": self.terms.max_runs,
            "max_rss_bytes": self.terms.max_rss_bytes,
            "confinement": None if self.confinement is None else self.confinement.to_json(),
        }
        self._loaded(await self.connection.request("load", protocol.encode_value(params)))

    def _loaded(self, result: Any) -> None:
        match result:
            case {"error": {"message": str(message), "traceback": str(traceback), "stale": bool(stale)}}:
                raise LoadFailed(message, traceback, stale)
            case {"unforkable": str(unforkable)}:
                self.loaded = True
                self.unforkable = unforkable
            case _:
                self.connection.close("it broke the protocol: an answer to `load` that is none")
                raise Disconnected

    async def describe(self) -> Description:
        """What the tool says of itself; LoadFailed if it can't be called as a tool."""
        match await self.connection.request("describe", b"{}"):
            case {"error": {"message": str(message)}}:
                raise LoadFailed(message, "", False)
            case {"name": str(), "entry": str(), "parameters": dict()} as described:
                neighbours = tuple(map(str, described.pop("neighbours", ())))
                members = {str(key): value for key, value in described.items()}
                return Description(**members, neighbours=neighbours)
            case _:
                self.connection.close("it broke the protocol: a description that is none")
                raise Disconnected

    # -- one run -------------------------------------------------------------------------

    def listen(self, report: Report | None, effects: Effects | None) -> None:
        """From now on, what the process says goes to this run."""
        self._report, self._effects = report, effects
        self._output.last_lines.clear()

    def call(self, call: Call, params: bytes, *, single: bool) -> asyncio.Future[Any]:
        """The tool's result; Refused with its exception, Disconnected if the process ends first.

        Whatever comes of it, `finish` has to follow.
        """
        head = protocol.encode_value(self._terms_of(call, single=single))
        return self.connection.request("call", head[:-1] + b',"params":' + params + b"}")

    def finish(self) -> None:
        """The call is over: pass on what it printed, and remove what is left of its artifacts."""
        if not self.ended.done():
            self._output.drain()
        if self._has_files:
            self._has_files = False
            remove(self._artifacts)

    def _terms_of(self, call: Call, *, single: bool) -> dict[str, Any]:
        """All but the parameters; what doesn't apply is left out, since every byte is read twice."""
        terms: dict[str, Any] = {
            "run_id": call.run_id,
            "experiment_id": call.experiment_id,
            "attempt": call.attempt,
            "timeout_seconds": call.timeout_seconds,
        }
        if call.seed is not None:
            terms["seed"] = call.seed
        if call.entry:
            terms["entry"] = call.entry
        if call.environ:
            terms["environ"] = dict(call.environ)
        if call.limits is not NO_LIMITS:
            terms.update(_kernel_limits(call.limits))
        if single:
            terms["single"] = True
        return terms

    # -- what it says --------------------------------------------------------------------

    def _log(self, at: float, stream: str, text: str) -> None:
        self._tell(LogLine(at, stream, text))

    def _receive(self, message: dict[str, Any]) -> None:
        try:
            self._understand(message["method"], message.get("params") or {}, message.get("id"))
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise protocol.ProtocolBroken(
                f"{message.get('method')!r:.80}: {type(error).__name__}: {error}"
            ) from None

    def _understand(self, method: str, params: dict[str, Any], request_id: Any) -> None:
        match method:
            case "progress" | "metrics" | "partial":
                for event in speech.events(method, params):
                    self._tell(event)
            case "recall" | "record" | "keep" | "fetch":
                self._steps.answer(self._asked(method, params), request_id, self.connection)
            case "forked":
                self.announce(params)
            case "exited":
                self.bury(params)
            case "retire":
                self.retired = str(params["reason"]) or "it asked for it"
                if self.on_retired is not None:
                    self.on_retired(self, str(params["run_id"]))
            case "hello":
                if params["version"] != protocol.VERSION:
                    raise ValueError(f"it speaks version {params['version']}, not {protocol.VERSION}")
            case _:
                raise ValueError("no such method")

    def _asked(self, method: str, params: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """What answers a question of the toolkit."""
        effects = self._effects or NothingKept()
        match method:
            case "recall":
                return effects.recall(str(params["key"]))
            case "record":
                return effects.record(str(params["key"]), params.get("value"))
            case "keep":
                self._has_files = True
                return effects.keep(speech.capture(params, self._artifacts))
            case _:
                self._has_files = True
                return self._fetched(effects, str(params["reference"]), int(params["number"]))

    async def _fetched(self, effects: Effects, reference: str, number: int) -> str:
        path = Path(self._artifacts, str(number))
        await effects.fetch(reference, path)
        return str(path)

    def _tell(self, event: Event) -> None:
        if self._report is None:
            return
        try:
            self._report(event)
        except Exception:
            log.exception("report.failed", tool=self.module.name, pid=self.pid)

    # -- death ---------------------------------------------------------------------------

    def end(self, *, grace_seconds: float, stacks: bool = False) -> None:
        """Have the whole tree ended; `ended` is done when it is."""
        self._is_ending = True
        if self.owner is None:
            self.on_exited(None, None, None)
        elif not self.ended.done():
            self.owner.end_child(self._token, grace_seconds, stacks=stacks)
            self._expect_end(grace_seconds)

    def _expect_end(self, grace_seconds: float) -> None:
        if self._overdue is None:
            loop = asyncio.get_running_loop()
            self._overdue = loop.call_later(grace_seconds + OVERDUE_SECONDS, self._owner_check)

    def _owner_check(self) -> None:
        self._overdue = None
        if self.owner is not None:
            self.owner.check()
            self._expect_end(0)

    def give_up(self) -> None:
        """As the owner of forks, this process doesn't answer any more."""
        self.end(grace_seconds=0)

    def dismiss(self) -> None:
        """The process is about to leave by itself; it is ended if it doesn't."""
        if not self.ended.done():
            self._dismissal = asyncio.get_running_loop().call_later(DISMISSAL_SECONDS, self._expel)

    def _expel(self) -> None:
        self.end(grace_seconds=0)

    def _closed(self, reason: str) -> None:
        """Its end of the socket is closed: it is dead, about to be, or hiding."""
        if reason:
            self.fate = f"its process was ended because {reason}"
        self.orphan()
        if not self._is_ending and self._dismissal is None:
            self.end(grace_seconds=0)

    def on_exited(
        self, status: int | None, peak_rss_bytes: int | None, cpu_seconds: float | None, problem: str = ""
    ) -> None:
        """Keep how it ended, read what it left, and give everything back."""
        if self.ended.done():
            return
        if self.owner is not None:
            self.connection.drain()
        self._output.drain()
        if problem:
            self.fate = f"no process could be started for it: {problem}"
        code, number = exits.decode_status(status)
        self.exit = Exit(
            exit_code=code,
            signal=number,
            peak_rss_bytes=peak_rss_bytes,
            cpu_seconds=cpu_seconds,
            stacks=exits.without_ours(self._output.stacks()),
            last_lines=tuple(self._output.last_lines),
        )
        self.ended.set_result(self.exit)
        if self.owner is not None:
            self.connection.close()
        self._output.close()
        self._steps.close()
        for timer in (self._dismissal, self._overdue):
            if timer is not None:
                timer.cancel()
        if isinstance(self.owner, Process) and status is not None:
            self.owner.place.take_back(self.place)
        else:
            self.place.remove()


def confinement(module: Module, terms: Terms, place: Path) -> sandbox.Confinement | None:
    """What a process that serves `module` may reach; SandboxUnavailableError if it can't be held to that."""
    if module.sandbox is sandbox.Sandbox.OFF:
        return None
    python = module.python or Path(sys.executable)
    return sandbox.of_tool(
        module.sandbox,
        file=module.path,
        python=python,
        temp=place,
        environ=terms.environ,
        environment=python.parent.parent if module.environment else None,
        also=terms.readable,
    )


def _kernel_limits(limits: Limits) -> dict[str, dict[str, int | None]]:
    chosen = {
        "cpu_seconds": limits.cpu_seconds,
        "file_size_bytes": limits.file_size_bytes,
        "open_files": limits.open_files,
    }
    return {"limits": chosen} if any(value is not None for value in chosen.values()) else {}
