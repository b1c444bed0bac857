"""A tool in its process: imports it, calls it, answers with what it returned or raised."""

from __future__ import annotations

import contextvars
import ctypes
import os
import sys
import time
import traceback
import types
from typing import Any

from ..common import confine, directory, kernel, landlock, protocol, serialize
from . import importer, os_state, reset, shm
from .channel import Channel
from .reporter import Reporter, too_large


class LoadedTool:
    """The tool that this process serves, under the interpreter of its environment, if it has one."""

    def __init__(self, params: dict[str, Any], channel: Channel, interpreter: str) -> None:
        self.interpreter = interpreter
        self.name: str = params["name"]
        self.path: str = params["path"]
        self.options = self.directories = params
        self.channel = channel
        self.reporter = Reporter(channel, params["limit_bytes"])
        self.meter = os_state.Meter()
        self.module: types.ModuleType | None = None
        self.entry: Any = None
        self.entry_name = ""
        self.confinement: dict[str, Any] | None = params["confinement"]
        self._is_kept_from_files = (
            self.confinement is not None and self.confinement["level"] != confine.PROCESS
        )
        self._temp_variables = (b"TMPDIR", b"HOME") if self._is_kept_from_files else (b"TMPDIR",)
        self._rules: landlock.Ruleset | None = None
        self.runs = 0
        self.retired = ""
        self.is_tools_fork = False
        self.sigchld_in_forks: tuple[bool, Any] | None = None
        self.is_in_temp = False
        self.baseline: reset.Baseline | None = None
        self._has_own_shm = False
        self._fflush = ctypes.CDLL(None).fflush

    # -- loading -----------------------------------------------------------------------

    def load(self) -> dict[str, Any]:
        """Import the tool; return `error` if it can't be used, or why it is `unforkable`."""
        os.environ.clear()
        os.environ.update(self.options["environ"])
        self._set_temp_variables(self.directories["temp"])
        sys.argv = [self.path]
        sys.stdout = sys.__stdout__ = os_state.writer(1)  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = os_state.writer(2)  # type: ignore[misc]
        os.register_at_fork(after_in_child=self.be_forked)
        try:
            directory.enter(self.options["temp"])
            self._has_own_shm = not self._is_kept_from_files and shm.have_own(self._own_paths())
            self._confine()
            if self.interpreter:
                importer.enter_environment(self.interpreter)
            importer.prepare_path(self.path, self.reporter)
            self.module = importer.execute(self.name, self.path, self.options["digest"])
            self.entry_name, self.entry = importer.find_entry(self.module, self.name, self.path)
        except BaseException as error:
            return {"error": self._explain(error)}
        finally:
            self._flush()
        self.baseline = reset.Baseline(
            self.path,
            self.options["temp"],
            has_own_shm=self._has_own_shm,
            may_change_user=self.confinement is None or bool(self.confinement["capabilities"]),
        )
        return {"unforkable": self.baseline.unforkable(), "entry": self.entry_name}

    def _own_paths(self) -> tuple[str, ...]:
        """Where this process has files that it must go on seeing."""
        return self.path, self.options["temp"], sys.executable, sys.prefix, self.interpreter, __file__

    def _set_temp_variables(self, path: str) -> None:
        """Set the variables as `os.environ` does, whose many small functions are a tenth of a fork's work."""
        value = path.encode()
        for name in self._temp_variables:
            os.putenv(name, value)
            os.environ._data[name] = value  # type: ignore[attr-defined]

    def _confine(self) -> None:
        """Give up, for good, what the tool must not reach; then processes of its own may look at this one."""
        if self.confinement is not None:
            confine.apply(self.confinement)
        kernel.set_dumpable(True)

    def prepare_to_fork(self) -> None:
        """Before the first fork: prepare what keeps the forks from each other, which saves time in each."""
        if self.confinement is not None:
            self._rules = confine.separating(self.confinement)

    def _narrow(self, confinement: dict[str, Any], workdir: str) -> None:
        """In a fork of a process whose files are confined, give up the directories of the other forks."""
        if self._is_kept_from_files and confinement["writable"] != [workdir]:
            self.confinement = {**confinement, "writable": [workdir]}
            self._confine()

    def _explain(self, error: BaseException) -> dict[str, Any]:
        """Why the tool can't be used: the file, and what to do."""
        described = serialize.exception_data(error, 0)
        if type(error) is importer.ContractBroken:
            return {"message": str(error), "traceback": "", "stale": error.stale}
        reason = f"{described['error_type']}: {described['message']}"
        message = f"{self.path} can't be imported: {reason}"
        return {"message": message, "traceback": described["traceback"], "stale": False}

    def move_to(self, directories: dict[str, str]) -> None:
        """In a fork of the process that loaded the tool: use directories of its own.

        What can be done before the call arrives is done here, where nobody waits for it.
        """
        self.sigchld_in_forks = None
        self.channel.expects_descriptors = False
        self.directories = directories
        self._set_temp_variables(directories["temp"])
        try:
            os.chdir(directories["temp"])
        except OSError:
            self.retired = self._enter_temp()
        self.is_in_temp = True
        if self._rules is not None:
            self._rules.enter()
        elif self.confinement is not None:
            self._narrow(self.confinement, os.path.dirname(directories["temp"]))

    def be_forked(self) -> None:
        """After any fork: a process that the tool forked must not speak for the tool.

        A fork that serves the tool restores its signals here, before the functions that the import has
        registered to be called after a fork; only those that C code has registered come earlier.
        """
        if self.sigchld_in_forks is not None:
            os_state.restore_sigchld(self.sigchld_in_forks)
            return
        self.is_tools_fork = True
        self.reporter.detach()
        self.channel.close()

    # -- calling -----------------------------------------------------------------------

    def call(self, request_id: Any, params: dict[str, Any]) -> None:
        """Run the tool once, answer, and reset the process for the next run."""
        if not self._serve(request_id, params):
            return
        if "single" in params:
            os._exit(0)
        self.runs += 1
        self.channel.expects_descriptors = False
        assert self.baseline is not None
        self.retired = self.baseline.restore(self.reporter.has_thread) or self._worn_out()
        if self.retired:
            self.channel.notify("retire", {"reason": self.retired, "run_id": params["run_id"]})

    def _serve(self, request_id: Any, params: dict[str, Any]) -> bool:
        """Run the tool once and answer; return False if that was refused."""
        assert self.baseline is not None
        self.retired = self.baseline.changed_source() or ("" if self.is_in_temp else self._enter_temp())
        if self.retired:
            self.channel.refuse(request_id, protocol.NO_LONGER_FIT, self.retired)
            return False
        self._begin(params)
        if "limits" in params:
            if params["limits"]["processes"] is not None:
                self.reporter.start_thread()
            with os_state.limited(params["limits"]):
                answer = self._attempt(request_id, params)
        else:
            answer = self._attempt(request_id, params)
        if "multiprocessing" in sys.modules:
            shm.end_trackers()
        self.reporter.finish()
        self.channel.send(answer)
        return True

    def _enter_temp(self) -> str:
        """Make the temp directory the working directory; return why that failed, if it did."""
        try:
            directory.enter(self.directories["temp"])
        except OSError as error:
            return f"its temp directory can't be entered: {error}"
        return ""

    def _begin(self, params: dict[str, Any]) -> None:
        """Set up what belongs to the run.  Parameters that a call leaves out have their defaults."""
        if "environ" in params:
            os.environ.update(params["environ"])
        params["temp"], params["artifacts"] = self.directories["temp"], self.directories["artifacts"]
        if "seed" in params:
            reset.begin(params["seed"])
        params["deadline"] = time.monotonic() + params["timeout_seconds"]
        self.reporter.begin(params)

    def _attempt(self, request_id: Any, params: dict[str, Any]) -> bytes:
        head = b'{"jsonrpc":"2.0","id":%d,' % request_id
        self.meter.begin()
        try:
            if "single" in params:
                value, items = self._invoke(params)
            else:  # in a context of its own, so that what the run puts into it is gone after it
                value, items = contextvars.copy_context().run(self._invoke, params)
            if self.is_tools_fork:
                self._leave(0)
            return head + b'"result":' + self._result(value, items) + b"}"
        except BaseException as error:
            if self.is_tools_fork:
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
            self.reporter.partial(item)

    def _run_async(self, awaitable: Any) -> tuple[Any, int | None]:
        import asyncio

        async def gather() -> tuple[Any, int | None]:
            if not isinstance(awaitable, types.AsyncGeneratorType):
                return await awaitable, None
            items: list[Any] = []
            async for item in awaitable:
                items.append(item)
                self.reporter.partial(item)
            return items, len(items)

        return asyncio.run(gather())

    def _result(self, value: Any, items: int | None) -> bytes:
        encoded = serialize.to_json(value)
        limit_bytes = self.options["limit_bytes"]
        if len(encoded) > limit_bytes:
            raise serialize.Unserializable(too_large("the result", len(encoded), limit_bytes))
        used = b"[%.6f,%d]" % self.meter.used()
        counted = b"null" if items is None else b"%d" % items
        return b'{"items":%s,"used":%s,"value":%s}' % (counted, used, encoded)

    def _failure(self, error: BaseException) -> bytes:
        data = serialize.exception_data(error, self.options["limit_bytes"])
        partial = data.pop("partial_results", None)
        if type(error) is serialize.Unserializable:
            data.update(error_type="ToolResultError", traceback="", retryable=False)
        elif type(error) is importer.ContractBroken:
            data.update(error_type="ToolError", traceback="", retryable=False)
        data["used"] = self.meter.used()
        encoded = protocol.encode_value(data)
        if partial is not None:
            encoded = encoded[:-1] + b',"partial_results":' + partial + b"}"
        return b'{"code":%d,"message":"the tool raised","data":%s}' % (protocol.RAISED, encoded)

    def _worn_out(self) -> str:
        max_rss_bytes = self.options["max_rss_bytes"]
        if self.runs >= self.options["max_runs"]:
            return f"it has served {self.runs} runs"
        if max_rss_bytes and reset.holds_more_than(max_rss_bytes):
            return f"it holds more memory than the {max_rss_bytes} bytes that are allowed"
        return ""

    # -- leaving -----------------------------------------------------------------------

    def _flush(self) -> None:
        """Write out what Python and C still hold of the run's output, before the answer is sent."""
        for stream in {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}:
            try:
                stream.flush()  # type: ignore[union-attr]
            except Exception:
                continue
        self._fflush(None)

    def _leave(self, code: int) -> None:
        """End a process that the tool forked and that returned from the tool."""
        error = sys.exc_info()[1]
        if error is not None and not issubclass(type(error), SystemExit):
            traceback.print_exception(type(error), error, error.__traceback__)
        self._flush()
        os._exit(code)


def _exit_code(error: BaseException) -> int:
    code = getattr(error, "code", 1)
    return code if isinstance(code, int) else int(code is not None)
