"""One subprocess that serves one tool, as the executor sees it."""

import asyncio
import itertools
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.executor.isolation import protocol
from services.executor.isolation.calls import (
    Artifact, Call, Effects, Event, Exit, LogLine, Metric, Module, Partial, Progress, Report,
)  # fmt: skip
from services.executor.isolation.connection import Connection, Disconnected, Refused
from services.executor.isolation.forkserver import Owner
from services.executor.isolation.output import Output

INSIDE = str(Path(__file__).with_name("inside")) + os.sep
TOOLKIT = Path(__file__).parents[3] / "shared" / "toolkit.py"
DISMISSAL_SECONDS = 0.2
_names = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a pool grants each of its processes."""

    environ: Mapping[str, str] = field(default_factory=dict)
    limit_bytes: int = 33_554_432
    log_bytes_per_second: int = 4_194_304
    max_runs: int = 1000
    max_rss_bytes: int | None = None
    grace_seconds: float = 0.25
    directory: Path = Path(tempfile.gettempdir())


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

    def __init__(self, module: Module, terms: Terms) -> None:
        super().__init__(terms.limit_bytes)
        self.module = module
        self.terms = terms
        self.pid = 0
        self.loaded = False
        self.unforkable = ""
        self.retired = ""
        self.idle_since = 0.0
        self.exit = Exit()
        self.broken = ""
        self.on_retired: Any = None
        self.ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._owner: Owner | None = None
        self._report: Report | None = None
        self._effects: Effects | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._dismissal: asyncio.TimerHandle | None = None
        self._ending: tuple[float, bool] | None = None
        self._output = Output(terms.log_bytes_per_second, self._log)
        self._temp = str(terms.directory / str(next(_names)))
        self._artifacts = self._temp + ".artifacts"
        self._announced = 0

    # -- birth ---------------------------------------------------------------------------

    async def start(self, owner: Owner, *, fresh: bool = False) -> None:
        """Have `owner` fork this process; Disconnected if it can't."""
        ours, theirs = socket.socketpair()
        self.connection = Connection(ours, self.terms.limit_bytes, self._receive, self._closed)
        self._owner = owner
        descriptors = [theirs.detach(), *self._output.take_ends()]
        pid = await owner.fork(descriptors, self, fresh=fresh)
        self._set_pid(pid)

    def _set_pid(self, pid: int) -> None:
        self.pid = pid
        if self._ending is not None:
            self.end(grace_seconds=self._ending[0], stacks=self._ending[1])

    async def load(self) -> None:
        """Import the tool; LoadFailed if it can't be or is no tool."""
        params = {
            "name": self.module.name,
            "path": str(self.module.path),
            "digest": self.module.digest,
            "environ": dict(self.terms.environ),
            "toolkit": str(TOOLKIT),
            "temp": self._temp,
            "limit_bytes": self.terms.limit_bytes,
            "max_runs": self.terms.max_runs,
            "max_rss_bytes": self.terms.max_rss_bytes,
        }
        result = await self.connection.request("load", protocol.encode_value(params))
        if "error" in result:
            error = result["error"]
            raise LoadFailed(error["message"], error.get("traceback", ""), bool(error.get("stale")))
        self.loaded = True
        self.unforkable = result["unforkable"]

    def adopt(self, template: "Process") -> None:
        """This process is a fork of `template`, with the tool in it."""
        self.loaded = True

    async def describe(self) -> dict[str, Any]:
        """What the tool says of itself."""
        result: dict[str, Any] = await self.connection.request("describe", b"{}")
        return result

    # -- one run -------------------------------------------------------------------------

    def listen(self, report: Report | None, effects: Effects | None) -> None:
        """From now on, what the process says goes to this run."""
        self._report, self._effects = report, effects

    async def call(self, call: Call, params: bytes, *, single: bool) -> Any:
        """The tool's result; Refused with its exception, Disconnected if the process ends first."""
        body = protocol.encode_value(
            {
                "run_id": call.run_id,
                "experiment_id": call.experiment_id,
                "attempt": call.attempt,
                "seed": call.seed,
                "environ": dict(call.environ),
                "timeout_seconds": call.timeout_seconds,
                "limits": _kernel_limits(call),
                "temp": self._temp,
                "artifacts": self._artifacts,
                "single": single,
            }
        )
        try:
            return await self.connection.request("call", body[:-1] + b',"params":' + params + b"}")
        finally:
            if not self.ended.done():
                self._output.drain()
            if self._announced:
                self._announced = 0
                _remove(self._artifacts)

    # -- what it says --------------------------------------------------------------------

    def _log(self, at: float, stream: str, text: str) -> None:
        if self._report is not None:
            self._report(LogLine(at, stream, text))

    def _receive(self, message: dict[str, Any]) -> None:
        try:
            self._understand(message["method"], message.get("params") or {}, message.get("id"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise protocol.ProtocolBroken(
                f"{message.get('method')!r:.80}: {type(error).__name__}: {error}"
            ) from None

    def _understand(self, method: str, params: dict[str, Any], request_id: Any) -> None:
        match method:
            case "progress":
                total = params["total"]
                self._tell(
                    Progress(
                        _number(params["done"]),
                        None if total is None else _number(total),
                        str(params["message"]),
                    )
                )
            case "metrics":
                for metric in params["metrics"]:
                    self._tell(Metric(str(metric["name"]), _number(metric["value"]), dict(metric["tags"])))
            case "partial":
                self._tell(Partial(params["item"]))
            case "artifact":
                self._announced += 1
                self._tell(_artifact(params, f"{self._artifacts}/{self._announced}"))
            case "recall" | "record":
                self._start_effect(method, params, request_id)
            case "exited":
                self.bury(params)
            case "retire":
                self.retired = str(params["reason"]) or "it asked for it"
                if self.on_retired is not None:
                    self.on_retired(self)
            case "hello":
                if params["version"] != protocol.VERSION:
                    raise ValueError(f"it speaks version {params['version']}, not {protocol.VERSION}")
            case _:
                raise ValueError("no such method")

    def _tell(self, event: Event) -> None:
        if self._report is not None:
            self._report(event)

    def _start_effect(self, method: str, params: dict[str, Any], request_id: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._effect(method, params, request_id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _effect(self, method: str, params: dict[str, Any], request_id: Any) -> None:
        """Ask the run's memory; when it fails, the tool gets a ConnectionError, which is retried."""
        effects = self._effects
        try:
            if effects is None:
                result = None
            elif method == "recall":
                result = await effects.recall(str(params["key"]))
            else:
                result = await effects.record(str(params["key"]), params["value"])
        except Exception as error:
            self.connection.refuse(request_id, f"the steps of this run can't be recorded: {error}")
        else:
            self.connection.respond(request_id, result)

    # -- death ---------------------------------------------------------------------------

    def end(self, *, grace_seconds: float, stacks: bool = False) -> None:
        """Have the whole tree ended; `ended` is done when it is."""
        self._ending = (grace_seconds, stacks)
        if self.pid and self._owner is not None and not self.ended.done():
            self._owner.end_child(self.pid, grace_seconds, stacks=stacks)

    def dismiss(self) -> None:
        """The process is about to leave by itself; it is ended if it doesn't."""
        if not self.ended.done():
            self._dismissal = asyncio.get_running_loop().call_later(DISMISSAL_SECONDS, self._expel)

    def _expel(self) -> None:
        self.end(grace_seconds=0)

    def _closed(self, reason: str) -> None:
        """Its end of the socket is closed: it is dead, about to be, or hiding."""
        self.broken = reason
        self.orphan()
        if self._ending is None:
            self.end(grace_seconds=0)

    def on_exited(self, status: int | None, peak_rss_bytes: int | None, cpu_seconds: float | None) -> None:
        """Keep how it ended, read what it left, and give everything back."""
        if self.ended.done():
            return
        self._output.drain()
        code, number = _decode_status(status)
        self.exit = Exit(
            exit_code=code,
            signal=number,
            peak_rss_bytes=peak_rss_bytes,
            cpu_seconds=cpu_seconds,
            stacks=_without_ours(self._output.stacks()),
            last_lines=tuple(self._output.last_lines),
        )
        self.ended.set_result(self.exit)
        self.connection.close()
        self._output.close()
        for task in self._tasks:
            task.cancel()
        if self._dismissal is not None:
            self._dismissal.cancel()
        _remove(self._temp)
        _remove(self._artifacts)


def _kernel_limits(call: Call) -> dict[str, int | None] | None:
    limits = call.limits
    chosen = {
        "cpu_seconds": limits.cpu_seconds,
        "file_size_bytes": limits.file_size_bytes,
        "open_files": limits.open_files,
    }
    return chosen if any(value is not None for value in chosen.values()) else None


def _artifact(params: dict[str, Any], path: str) -> Artifact:
    """An artifact's announcement; the file can only be where its number says."""
    if params["path"] != path:
        raise ValueError("an artifact outside of the place for artifacts")
    size_bytes, digest = int(params["size"]), str(params["sha256"])
    return Artifact(str(params["name"]), Path(path), size_bytes, digest, str(params["media_type"]))


def _remove(directory: str) -> None:
    """Remove a directory: at once if it is empty or missing, by a thread if it takes longer."""
    try:
        Path(directory).rmdir()
    except FileNotFoundError:
        return
    except OSError:
        asyncio.get_running_loop().run_in_executor(None, shutil.rmtree, directory, True)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.80} is not a number")
    return value


def _decode_status(status: int | None) -> tuple[int | None, str | None]:
    """Exit code and signal name, one of them None, from a status of wait(2)."""
    if status is None:
        return None, None
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            return None, signal.Signals(number).name
        except ValueError:
            return None, f"SIG{number}"
    return os.waitstatus_to_exitcode(status), None


def _without_ours(stacks: str) -> str:
    """A dump of faulthandler without the frames of the executor's side of the process."""
    ours = (f'File "{INSIDE}', f'File "{Path(__file__).with_name("child.py")}"')
    return "\n".join(line for line in stacks.splitlines() if not line.strip().startswith(ours))
