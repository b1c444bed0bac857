"""What the executor and a tool's process say to each other about a call, as values.

The process is not trusted: a message that makes no sense raises TypeError, ValueError, KeyError or
OverflowError.
"""

import asyncio
import math
from collections.abc import Awaitable, Coroutine
from pathlib import Path
from typing import Any

import structlog

from services.executor.isolation.calls import (
    NO_LIMITS,
    Call,
    Capture,
    Description,
    Effects,
    Event,
    Limits,
    LogLine,
    Metric,
    NothingKept,
    Partial,
    Progress,
    Raised,
    Refusal,
    Report,
    Returned,
    Used,
)
from services.executor.isolation.common import protocol
from services.executor.isolation.connection import Connection
from services.executor.isolation.workdir import Workdir, remove

MAX_NUMBER = 1e300

log = structlog.get_logger(__name__)


# -- what the process is told ---------------------------------------------------------


def call_params(call: Call, *, single: bool) -> dict[str, Any]:
    """Everything about a call but its parameters.

    What doesn't apply is left out, because every byte is encoded and decoded again.  `single` has the
    process exit after this run.
    """
    params: dict[str, Any] = {
        "run_id": call.run_id,
        "experiment_id": call.experiment_id,
        "attempt": call.attempt,
        "timeout_seconds": call.timeout_seconds,
    }
    if call.seed is not None:
        params["seed"] = call.seed
    if call.entry:
        params["entry"] = call.entry
    if call.environ:
        params["environ"] = dict(call.environ)
    if call.limits is not NO_LIMITS:
        params.update(_kernel_limits(call.limits))
    if single:
        params["single"] = True
    return params


def _kernel_limits(limits: Limits) -> dict[str, dict[str, int | None]]:
    """The limits that the process itself has to know; the executor watches the others."""
    chosen = {
        "cpu_seconds": limits.cpu_seconds,
        "file_size_bytes": limits.file_size_bytes,
        "open_files": limits.open_files,
        "processes": limits.processes,
    }
    return {"limits": chosen} if any(value is not None for value in chosen.values()) else {}


# -- what the process answers ---------------------------------------------------------


def returned(result: Any) -> Returned:
    """The tool's result.  ValueError if it is not an answer to a call."""
    match result:
        case {"value": value, "items": int() | None as items, **rest}:
            return Returned(value, items, used=_used(rest))
        case _:
            raise ValueError("a result without value and items")


def _used(members: dict[Any, Any]) -> Used | None:
    """What the call used, if the process has told something sensible: a tool may have sent it itself."""
    match members.get("used"):
        case [float() | int() as cpu_seconds, int(peak_bytes)] if (
            0 <= cpu_seconds < math.inf and peak_bytes > 0
        ):
            return Used(float(cpu_seconds), peak_bytes)
        case _:
            return None


def raised(error: dict[str, Any]) -> Raised:
    """The tool's exception.  ValueError if it is not an answer to a call."""
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
            used = _used(rest)
            return Raised(error_type, message, traceback, retryable, retry_after_seconds, partial, used=used)
        case _:
            raise ValueError("an error that no tool raised")


def description(answer: Any) -> Description:
    """What a tool says about itself.  ValueError if it is not a description."""
    match answer:
        case {
            "name": str(name),
            "entry": str(entry),
            "line": int(line),
            "kind": str(kind),
            "summary": str(summary),
            "parameters": dict(parameters),
            "returns": str(returns),
            "neighbours": list(neighbours),
            "module": str(module),
        } if all(isinstance(path, str) for path in neighbours):
            return Description(
                name, entry, line, kind, summary, parameters, returns, tuple(neighbours), module
            )
        case _:
            raise ValueError("not a description")


# -- what the process reports and requests --------------------------------------------


def events(method: str, params: dict[str, Any]) -> list[Event]:
    """The events in one message of the toolkit; none if it reports none."""
    match method:
        case "progress":
            total = params["total"]
            done = _number(params["done"])
            return [Progress(done, None if total is None else _number(total), str(params["message"]))]
        case "metrics":
            return [
                Metric(str(metric["name"]), _number(metric["value"]), dict(metric["tags"]))
                for metric in params["metrics"]
            ]
        case "partial":
            return [Partial(params["item"])]
        case _:
            return []


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.80} is not a number")
    if abs(value) > MAX_NUMBER:
        raise ValueError("a number that is too large")
    return value


def capture(params: dict[str, Any], directory: str) -> Capture:
    """The artifact that a process offers.  The process chooses a number, never a path."""
    path = Path(directory, str(int(params["number"])))
    media_type = params.get("media_type")
    return Capture(
        name=str(params["name"]),
        path=path,
        size_bytes=int(params["size"]),
        media_type=None if media_type is None else str(media_type),
    )


class MessageHandler:
    """Handles messages from a tool process: passes on its reports and answers its requests."""

    def __init__(self, tool: str, workdir: Workdir) -> None:
        self.has_message = False
        self._tool = tool
        self._artifacts = workdir.artifacts
        self._report: Report | None = None
        self._effects: Effects | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._has_files = False

    def attach(self, report: Report | None, effects: Effects | None) -> None:
        """From now on, what the process says belongs to this run."""
        self._report, self._effects = report, effects
        self.has_message = False

    def handle(self, method: str, params: dict[str, Any], request_id: Any, peer: Connection) -> None:
        """Handle one message of the toolkit.  TypeError, ValueError or the like if it makes no sense."""
        self.has_message = True
        match method:
            case "progress" | "metrics" | "partial":
                for event in events(method, params):
                    self._pass_on(event)
            case "recall" | "record" | "keep" | "fetch":
                if type(request_id) is not int:
                    raise TypeError("a request needs a number as its id")
                self._answer(self._work(method, params), request_id, peer)
            case _:
                raise ValueError("no such method")

    def handle_line(self, at: float, stream: str, text: str) -> None:
        """Pass on a line that the process printed."""
        self._pass_on(LogLine(at, stream, text))

    def _pass_on(self, event: Event) -> None:
        if self._report is None:
            return
        try:
            self._report(event)
        except Exception:
            log.exception("report.failed", tool=self._tool)

    def _work(self, method: str, params: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """The coroutine whose result answers a request."""
        effects = self._effects or NothingKept()
        match method:
            case "recall":
                return effects.recall(str(params["key"]))
            case "record":
                return effects.record(str(params["key"]), params.get("value"))
            case "keep":
                self._has_files = True
                return effects.keep(capture(params, self._artifacts))
            case _:
                self._has_files = True
                return self._fetch(effects, str(params["reference"]), int(params["number"]))

    async def _fetch(self, effects: Effects, reference: str, number: int) -> str:
        path = Path(self._artifacts, str(number))
        await effects.fetch(reference, path)
        return str(path)

    def _answer(self, work: Awaitable[Any], request_id: int, peer: Connection) -> None:
        """Answer when the work is done; other messages are handled meanwhile."""
        task = asyncio.get_running_loop().create_task(_answer(work, request_id, peer))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    def remove_files(self) -> None:
        """The run is over: remove what is left of its artifacts."""
        if self._has_files:
            self._has_files = False
            remove(self._artifacts)

    def close(self) -> None:
        """The process is gone: cancel what was to answer it."""
        for task in self._answering:
            task.cancel()


async def _answer(work: Awaitable[Any], request_id: int, peer: Connection) -> None:
    """Answer with the work's result, or with an error that says why it failed."""
    try:
        result = await work
    except Refusal as refusal:
        peer.refuse(request_id, str(refusal), protocol.REFUSED)
    except Exception as error:
        peer.refuse(request_id, str(error))
    else:
        peer.respond(request_id, result)
