"""One tool in its process: import it, call it, answer with what it returned or raised."""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
import types
from typing import Any

from ..common import convert, failure, protocol
from . import after_fork, importer, limits, reports, reset, seeds, streams, tempdir
from .channel import Channel

RAISED = 1
NO_LONGER_FIT = -32600


class Tool:
    """A tool that this process serves, and the runs it has had."""

    def __init__(self, params: dict[str, Any], channel: Channel) -> None:
        self.name: str = params["name"]
        self.path: str = params["path"]
        self.options = self.places = params
        self.wire = channel
        self.reports = reports.Reports(channel, params["limit_bytes"])
        self.module: types.ModuleType | None = None
        self.entry: Any = None
        self.entry_name = ""
        self.confinement: dict[str, Any] | None = params["confinement"]
        self.runs = 0
        self.retired = ""
        self.foreign = False
        self.forks_with: tuple[bool, Any] | None = None
        self.is_in_place = False
        self.baseline: reset.Baseline | None = None
        self._fflush = ctypes.CDLL(None).fflush

    # -- loading -----------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        """Import the tool; `error` says what is wrong with it, `unforkable` why it can't be a template."""
        os.environ.clear()
        os.environ.update(self.options["environ"])
        self._show_places(self.places["temp"])
        sys.argv = [self.path]
        sys.stdout = sys.__stdout__ = streams.writer(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = streams.writer(2)  # type: ignore[misc]
        os.register_at_fork(after_in_child=self.be_forked)
        try:
            tempdir.enter(self.options["temp"])
            self._confine()
            importer.prepare_path(self.path, self.options["toolkit"], self.reports)
            self.module = importer.execute(self.name, self.path, self.options["digest"])
            self.entry_name, self.entry = importer.find_entry(self.module, self.name, self.path)
        except BaseException as error:
            return {"error": self._explain(error)}
        finally:
            self._flush()
        self.baseline = reset.Baseline(self.path, self.options["temp"])
        return {"unforkable": self.baseline.unforkable(), "entry": self.entry_name}

    def _show_places(self, directory: str) -> None:
        """As `os.environ` would do it, whose many small functions are a tenth of all that a fork does."""
        value = directory.encode()
        for name in (b"TMPDIR",) if self.confinement is None else (b"TMPDIR", b"HOME"):
            os.putenv(name, value)
            os.environ._data[name] = value  # type: ignore[attr-defined]

    def _confine(self) -> None:
        """Give up, for good, what the tool may not have."""
        if self.confinement is not None:
            from ..common import confine

            confine.apply(self.confinement)

    def _narrow(self, confinement: dict[str, Any], place: str) -> None:
        """In a fork of a confined process, keep from the places of the other forks."""
        if confinement["writable"] != [place]:
            self.confinement = {**confinement, "writable": [place]}
            self._confine()

    def _explain(self, error: BaseException) -> dict[str, Any]:
        """Why the tool can't be used, naming the file and what to do."""
        described = failure.describe(error, 0)
        if type(error) is importer.ContractBroken:
            return {"message": str(error), "traceback": "", "stale": error.stale}
        reason = f"{described['error_type']}: {described['message']}"
        message = f"{self.path} can't be imported: {reason}"
        return {"message": message, "traceback": described["traceback"], "stale": False}

    def move_to(self, places: dict[str, str]) -> None:
        """This process is a fork of the one that loaded the tool: it has places of its own, and a single run.

        What can be done before the call comes is done here, where nobody waits for it.
        """
        self.forks_with = None
        self.wire.expects_descriptors = False
        self.places = places
        self._show_places(places["temp"])
        try:
            os.chdir(places["temp"])
        except OSError:
            self.retired = self._enter_temp()
        self.is_in_place = True
        if self.confinement is not None:
            self._narrow(self.confinement, os.path.dirname(places["temp"]))

    def be_forked(self) -> None:
        """After any fork: a process that the tool started must not speak for the tool.

        One that this process forks to serve it has its signals back here, ahead of whatever the import has
        registered to be called after a fork; only what C code has registered comes earlier.
        """
        if self.forks_with is not None:
            after_fork.hear_of_ends(self.forks_with)
            return
        self.foreign = True
        self.reports.detach()
        self.wire.close()

    # -- calling -----------------------------------------------------------------------

    def call(self, request_id: Any, params: dict[str, Any]) -> None:
        """Run the tool once, answer, and make the process fit for the next run."""
        if not self.serve(request_id, params):
            return
        if "single" in params:
            os._exit(0)
        self.runs += 1
        self.wire.expects_descriptors = False
        assert self.baseline is not None
        self.retired = self.baseline.restore(self.reports.has_thread, params["temp"]) or self._worn_out()
        if self.retired:
            self.wire.notify("retire", {"reason": self.retired, "run_id": params["run_id"]})

    def serve(self, request_id: Any, params: dict[str, Any]) -> bool:
        """Run the tool once and answer; False if that was refused."""
        assert self.baseline is not None
        self.retired = self.baseline.changed_source() or ("" if self.is_in_place else self._enter_temp())
        if self.retired:
            self.wire.refuse(request_id, NO_LONGER_FIT, self.retired)
            return False
        self._begin(params)
        if "limits" in params:
            with limits.applied(params["limits"]):
                answer = self._attempt(request_id, params)
        else:
            answer = self._attempt(request_id, params)
        self.reports.finish()
        self.wire.send(answer)
        return True

    def _enter_temp(self) -> str:
        """Make the temp directory the working directory; why that is not possible, if it isn't."""
        try:
            tempdir.enter(self.places["temp"])
        except OSError as error:
            return f"its temp directory can't be entered: {error}"
        return ""

    def _begin(self, params: dict[str, Any]) -> None:
        """Set up what is the run's own; what a run has no say in is left out of its parameters."""
        if "environ" in params:
            os.environ.update(params["environ"])
        params["temp"], params["artifacts"] = self.places["temp"], self.places["artifacts"]
        if "seed" in params:
            seeds.begin(params["seed"])
        params["deadline"] = time.monotonic() + params["timeout_seconds"]
        self.reports.begin(params)

    def _attempt(self, request_id: Any, params: dict[str, Any]) -> bytes:
        head = b'{"jsonrpc":"2.0","id":%d,' % request_id
        try:
            value, items = self._invoke(params)
            if self.foreign:
                self._leave(0)
            return head + b'"result":' + self._result(value, items) + b"}"
        except BaseException as error:
            if self.foreign:
                self._leave(_exit_code(error))
            return head + b'"error":' + self._failure(error) + b"}"
        finally:
            self._flush()

    def _invoke(self, params: dict[str, Any]) -> tuple[Any, int | None]:
        items: int | None = None
        named = params.get("entry")
        entry = self.entry if named is None else importer.find_named(self.module, named, self.path)
        value = entry(**params["params"])
        if isinstance(value, types.GeneratorType):
            value, items = self._gather(value)
        elif isinstance(value, (types.CoroutineType, types.AsyncGeneratorType)) or hasattr(
            value, "__await__"
        ):
            value, items = self._run_async(value)
        return value, len(value) if items is None and isinstance(value, (list, tuple)) else items

    def _gather(self, generator: Any) -> tuple[Any, int]:
        items: list[Any] = []
        while True:
            try:
                item = next(generator)
            except StopIteration as stop:
                return (items if stop.value is None else stop.value), len(items)
            items.append(item)
            self.reports.partial(item)

    def _run_async(self, awaitable: Any) -> tuple[Any, int | None]:
        import asyncio

        async def gather() -> tuple[Any, int | None]:
            if not isinstance(awaitable, types.AsyncGeneratorType):
                return await awaitable, None
            items: list[Any] = []
            async for item in awaitable:
                items.append(item)
                self.reports.partial(item)
            return items, len(items)

        return asyncio.run(gather())

    def _result(self, value: Any, items: int | None) -> bytes:
        encoded = convert.to_json(value)
        limit_bytes = self.options["limit_bytes"]
        if len(encoded) > limit_bytes:
            raise convert.Unserializable(reports.too_large("the result", len(encoded), limit_bytes))
        return b'{"items":%s,"value":%s}' % (b"null" if items is None else b"%d" % items, encoded)

    def _failure(self, error: BaseException) -> bytes:
        data = failure.describe(error, self.options["limit_bytes"])
        partial = data.pop("partial_results", None)
        if type(error) is convert.Unserializable:
            data.update(error_type="ToolResultError", traceback="", retryable=False)
        elif type(error) is importer.ContractBroken:
            data.update(error_type="ToolError", traceback="", retryable=False)
        encoded = protocol.encode_value(data)
        if partial is not None:
            encoded = encoded[:-1] + b',"partial_results":' + partial + b"}"
        return b'{"code":%d,"message":"the tool raised","data":%s}' % (RAISED, encoded)

    def _worn_out(self) -> str:
        max_rss_bytes = self.options["max_rss_bytes"]
        if self.runs >= self.options["max_runs"]:
            return f"it has served {self.runs} runs"
        if max_rss_bytes and reset.holds_more_than(max_rss_bytes):
            return f"it holds more memory than the {max_rss_bytes} bytes that are allowed"
        return ""

    # -- leaving -----------------------------------------------------------------------

    def _flush(self) -> None:
        """What Python and C still hold of the run's output goes out before the answer does."""
        for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
            try:
                stream.flush()  # type: ignore[union-attr]
            except Exception:
                continue
        self._fflush(None)

    def _leave(self, code: int) -> None:
        """End a process that the tool forked and that came back out of the tool."""
        error = sys.exc_info()[1]
        if error is not None and not issubclass(type(error), SystemExit):
            traceback.print_exception(type(error), error, error.__traceback__)
        self._flush()
        os._exit(code)


def _exit_code(error: BaseException) -> int:
    code = getattr(error, "code", 1)
    return code if isinstance(code, int) else int(code is not None)
