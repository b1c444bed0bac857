"""Resets a warm process after a run, so that the next run finds it as the first did; seeds its generators."""

from __future__ import annotations

import _locale
import _signal  # type: ignore[import-not-found]
import gc
import os
import signal
import sys
import time
import warnings
from typing import Any

from ..common import directory, process_tree
from . import importer, interpreter, os_state, shm

THREAD_END_SECONDS = 0.05
# Plain numbers and C functions, because the enumerations of `signal` cost more than the rest of a reset.
_SIGNALS = sorted({int(number) for number in signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP})
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


class Baseline:
    """The state of the process after the import, before its first run."""

    def __init__(self, tool_path: str, temp_path: str, *, has_own_shm: bool, may_change_user: bool) -> None:
        self._environ = dict(os.environ)
        self._environ_data = dict(os.environ._data)  # type: ignore[attr-defined]
        self._umask = _umask()
        self._locale = _locale.setlocale(_locale.LC_ALL, None)
        self._signals = list(map(_signal.getsignal, _SIGNALS))
        self._masked = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._lists = [(getattr(sys, name), list(getattr(sys, name))) for name in _SYS_LISTS]
        self._filters = list(warnings.filters)
        self._recursion_limit = sys.getrecursionlimit()
        self._gc_enabled = gc.isenabled()
        self._loggers = _loggers()
        self._folder = os.path.dirname(tool_path)
        self._is_package = importer.is_package(tool_path)
        self._sources = _sources(tool_path)
        self._tasks = os.open("/proc/self/task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._threads = _threads()
        self._sweeper = directory.TempSweeper(temp_path)
        self._shm = shm.OwnFolder() if has_own_shm else None
        self._streams = os_state.StandardStreams()
        self._interpreter = interpreter.InterpreterState()
        self._kernel = os_state.KernelState(may_change_user=may_change_user)
        self._files = os_state.OpenFiles()

    def unforkable(self) -> str:
        """Why a fork of this process would differ from it; empty if it would not."""
        return f"its import left {self._threads - 1} threads behind" if self._threads > 1 else ""

    def neighbours(self) -> list[str]:
        """The files in the tool's folder that its import has imported; none for a package."""
        if self._is_package:
            return []
        return sorted(os.path.relpath(path, self._folder).replace(os.sep, "/") for path in self._sources)

    def changed_source(self) -> str:
        """Why what was imported is out of date; empty if it is not.

        Only the tool's neighbours are compared: the digest stands for the tool's own file.
        """
        for path, seen in self._sources.items():
            if _stamp(path) != seen:
                return f"{path}, which the tool imports, has changed"
        return ""

    def restore(self, has_own_thread: bool) -> str:
        """Undo what a run changed; return why the process has to be given up, if that is impossible."""
        for timer in _TIMERS:
            _signal.setitimer(timer, 0)
        try:
            self._restore_process()
            self._restore_interpreter()
            self._restore_modules()
            return (
                self._interpreter.patched()
                or self._kernel.timers()
                or self._streams.restore()
                or self._left_behind(has_own_thread)
                or self._sweeper.sweep()
                or self._empty_shm()
            )
        except Exception as error:
            return f"it can't be reset: {type(error).__name__}: {error}"

    def _restore_process(self) -> None:
        if os.environ._data != self._environ_data:  # type: ignore[attr-defined]
            zone = os.environ.get("TZ")
            for name in set(os.environ) - set(self._environ):
                del os.environ[name]
            os.environ.update(self._environ)
            if zone != self._environ.get("TZ"):
                time.tzset()
        self._kernel.restore()
        os.umask(self._umask)
        if list(map(_signal.getsignal, _SIGNALS)) != self._signals:
            for number, handler in zip(_SIGNALS, self._signals):  # noqa: B905 - strict= needs Python 3.10
                if _signal.getsignal(number) is not handler and handler is not None:
                    _signal.signal(number, handler)
        if _signal.pthread_sigmask(signal.SIG_BLOCK, ()) != self._masked:
            _signal.pthread_sigmask(signal.SIG_SETMASK, self._masked)

    def _restore_interpreter(self) -> None:
        for current, content in self._lists:
            if current != content:
                current[:] = content
        if warnings.filters != self._filters:
            warnings.filters[:] = self._filters  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        if sys.gettrace() is not None:
            sys.settrace(None)
        if sys.getprofile() is not None:
            sys.setprofile(None)
        if gc.isenabled() != self._gc_enabled:
            (gc.enable if self._gc_enabled else gc.disable)()

    def _restore_modules(self) -> None:
        self._interpreter.restore()
        if _locale.setlocale(_locale.LC_ALL, None) != self._locale:
            _locale.setlocale(_locale.LC_ALL, self._locale)
        _restore_loggers(self._loggers)
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
        if "socket" in sys.modules:
            sys.modules["socket"].setdefaulttimeout(None)
        if "asyncio.events" in sys.modules:
            events: Any = sys.modules["asyncio.events"]
            events._event_loop_policy = None
            events._set_running_loop(None)
        seed(None)

    def _empty_shm(self) -> str:
        return "" if self._shm is None else self._shm.sweep()

    # -- what can't be undone ----------------------------------------------------------

    def _left_behind(self, has_own_thread: bool) -> str:
        allowed = self._threads + has_own_thread
        if not self._has_threads(allowed) and not self._threads_end(allowed):
            return f"the run left {_threads() - allowed} threads behind"
        left = self._files.left_behind()
        if left:
            return f"the run left file descriptors behind: {left}"
        return self._children_left()

    def _has_threads(self, number: int) -> bool:
        """Whether there are exactly so many: their directory has a link for each, which is quick to read."""
        return os.fstat(self._tasks).st_nlink == number + 2

    def _threads_end(self, allowed: int) -> bool:
        """The kernel counts a thread for a moment after it was joined."""
        give_up_at = time.monotonic() + THREAD_END_SECONDS
        left = _threads() - allowed
        if left > 0:
            gc.collect()
        while left > 0 and time.monotonic() < give_up_at:
            time.sleep(0.001)
            left = _threads() - allowed
        # Threads that the import had left may end too.
        self._threads += min(left, 0)
        return left <= 0

    def _children_left(self) -> str:
        if not process_tree.has_children():
            return ""
        alive = []
        for pid in process_tree.children(os.getpid()):
            try:
                if os.waitpid(pid, os.WNOHANG | process_tree.WALL)[0] == 0:
                    alive.append(pid)
            except ChildProcessError:
                continue
        return f"the run left child processes behind: {alive}" if alive else ""


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def holds_more_than(limit_bytes: int) -> bool:
    """Whether this process uses more memory.  Its peak is compared first, because that is cheaper."""
    return os_state.peak_bytes() > limit_bytes and process_tree.resident_bytes(os.getpid()) > limit_bytes


_SYS_LISTS = ("path", "argv", "meta_path", "path_hooks")


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _sources(tool_path: str) -> dict[str, Any]:
    """The imported modules in the tool's folder, and the time stamps of their files."""
    prefix = os.path.dirname(tool_path) + os.sep
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    neighbours = [path for path in files if isinstance(path, str) and path.startswith(prefix)]
    return {path: _stamp(path) for path in neighbours if path != tool_path and "site-packages" not in path}


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _loggers() -> dict[str | None, tuple[Any, ...]]:
    """How each logger is set up; None is the root."""
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return {}
    known: dict[str | None, tuple[Any, ...]] = {None: _set_up(logging.root)}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            known[name] = _set_up(logger)
    return known


def _set_up(logger: Any) -> tuple[Any, ...]:
    return logger.level, logger.propagate, logger.disabled, tuple(logger.handlers), tuple(logger.filters)


def _restore_loggers(known: dict[str | None, tuple[Any, ...]]) -> None:
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return
    logging.disable(logging.NOTSET)
    fresh = (logging.NOTSET, True, False, (), ())
    for name, now in _loggers().items():
        before = known.get(name, (logging.WARNING, *fresh[1:]) if name is None else fresh)
        if now == before:
            continue
        logger = logging.root if name is None else logging.getLogger(name)
        logger.setLevel(before[0])
        logger.propagate, logger.disabled = before[1], before[2]
        logger.handlers[:], logger.filters[:] = before[3], before[4]


GENERATORS = ("random", "numpy.random")
SEED_BYTES = 32


def seed(value: int | None) -> None:
    """Seed the random generators that are loaded: with `value`, or with new entropy of the system."""
    for name in GENERATORS:
        if name in sys.modules:
            _seed(name, value)


def _seed(name: str, value: int | None) -> None:
    module: Any = sys.modules[name]
    if name == "random":
        # `random` itself fetches 2,500 bytes, which takes as long as half a reset.
        module.seed(int.from_bytes(os.urandom(SEED_BYTES), "big") if value is None else value)
    else:
        module.seed(None if value is None else value % 2**32)


def begin(value: int) -> None:
    """Seed the generators for a run.  Restoring `sys.meta_path` ends the effect on those not loaded yet."""
    seed(value)
    if not all(name in sys.modules for name in GENERATORS):
        sys.meta_path.insert(0, SeedingFinder(value))


class SeedingFinder:
    """Finds the generators as the other finders do, and seeds them once they are imported."""

    def __init__(self, value: int) -> None:
        self._value = value

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Where the module is; None for any other, or if no finder knows."""
        if name not in GENERATORS:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                self._seed_when_executed(name, spec.loader)
                return spec
        return None

    def _seed_when_executed(self, name: str, loader: Any) -> None:
        if isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return  # not an object for this module alone, so it must not be changed

        def exec_module(module: Any) -> None:
            del loader.exec_module
            loader.exec_module(module)
            _seed(name, self._value)

        loader.exec_module = exec_module
