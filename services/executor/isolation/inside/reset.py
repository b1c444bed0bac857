"""Makes a warm process look to the next run as it looked to the first, or says why it can't."""

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

from . import tree

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
THREAD_PATIENCE_SECONDS = 0.05
# Plain numbers and the C functions: the enumeration of `signal` costs more than all the rest of a reset.
_SIGNALS = sorted({int(number) for number in signal.valid_signals()} - {signal.SIGKILL, signal.SIGSTOP})
_THREADS_FIELD, _RSS_FIELD = 17, 21


def seed(value: int | None) -> None:
    """Seed the random generators that are loaded: with `value`, or anew from the system's entropy."""
    if "random" in sys.modules:
        sys.modules["random"].seed(value)
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed(None if value is None else value % 2**32)


class Baseline:
    """The state of the process after the import, before its first run."""

    def __init__(self, tool_directory: str) -> None:
        self.rss_bytes = 0
        self._environ = dict(os.environ)
        self._environ_data = dict(os.environ._data)  # type: ignore[attr-defined]
        self._umask = _umask()
        self._locale = _locale.setlocale(_locale.LC_ALL, None)
        self._signals = list(map(_signal.getsignal, _SIGNALS))
        self._masked = _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        self._lists = [(name, getattr(sys, name), list(getattr(sys, name))) for name in _SYS_LISTS]
        self._sys = {name: getattr(sys, name) for name in _SYS_NAMES}
        self._filters = list(warnings.filters)
        self._recursion_limit = sys.getrecursionlimit()
        self._gc_enabled = gc.isenabled()
        self._loggers = _loggers()
        self._sources = _sources(tool_directory)
        self._stat = open("/proc/self/stat", "rb", buffering=0)
        self._threads = self._read_stat()[0]
        self._free_descriptor = _free_descriptor()
        self._descriptors = _descriptors()

    def unforkable(self) -> str:
        """Why a fork of this process would not be the same process; empty if it would."""
        return f"its import left {self._threads - 1} threads behind" if self._threads > 1 else ""

    def changed_source(self) -> str:
        """Why what was imported isn't what the files say any more; empty if it is.

        The tool's own file is known by its digest; these are its neighbours.
        """
        for path, seen in self._sources.items():
            if _stamp(path) != seen:
                return f"{path}, which the tool imports, has changed"
        return ""

    def restore(self, has_own_thread: bool, temp: str) -> str:
        """Undo what a run changed; the reason for giving the process up if that is not possible."""
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        try:
            self._restore_process()
            self._restore_interpreter()
            self._restore_modules()
        except Exception as error:
            return f"it can't be reset: {type(error).__name__}: {error}"
        return self._left_behind(has_own_thread) or _empty(temp)

    def _restore_process(self) -> None:
        if os.environ._data != self._environ_data:  # type: ignore[attr-defined]
            zone = os.environ.get("TZ")
            for name in set(os.environ) - set(self._environ):
                del os.environ[name]
            os.environ.update(self._environ)
            if zone != self._environ.get("TZ"):
                time.tzset()
        os.umask(self._umask)
        if list(map(_signal.getsignal, _SIGNALS)) != self._signals:
            for number, handler in zip(_SIGNALS, self._signals):  # noqa: B905 - strict= needs Python 3.10
                if _signal.getsignal(number) is not handler and handler is not None:
                    _signal.signal(number, handler)
        if _signal.pthread_sigmask(signal.SIG_BLOCK, ()) != self._masked:
            _signal.pthread_sigmask(signal.SIG_SETMASK, self._masked)

    def _restore_interpreter(self) -> None:
        for name, place, content in self._lists:
            if getattr(sys, name) is not place:
                setattr(sys, name, place)
            if place != content:
                place[:] = content
        for name, value in self._sys.items():
            setattr(sys, name, value)
        if warnings.filters != self._filters:
            warnings.filters[:] = self._filters  # type: ignore[index]
            warnings._filters_mutated()  # type: ignore[attr-defined]
        sys.setrecursionlimit(self._recursion_limit)
        sys.settrace(None)
        sys.setprofile(None)
        if gc.isenabled() != self._gc_enabled:
            (gc.enable if self._gc_enabled else gc.disable)()

    def _restore_modules(self) -> None:
        if _locale.setlocale(_locale.LC_ALL, None) != self._locale:
            _locale.setlocale(_locale.LC_ALL, self._locale)
        _restore_loggers(self._loggers)
        if "tempfile" in sys.modules:
            sys.modules["tempfile"].tempdir = None  # type: ignore[attr-defined]
        if "socket" in sys.modules:
            sys.modules["socket"].setdefaulttimeout(None)
        if "decimal" in sys.modules:
            decimal: Any = sys.modules["decimal"]
            decimal.setcontext(decimal.DefaultContext.copy())
        if "asyncio.events" in sys.modules:
            events: Any = sys.modules["asyncio.events"]
            events._event_loop_policy = None
            events._set_running_loop(None)
        seed(None)

    # -- what can't be undone ----------------------------------------------------------

    def _left_behind(self, has_own_thread: bool) -> str:
        allowed = self._threads + has_own_thread
        threads, resident = self._read_stat()
        self.rss_bytes = resident * PAGE_BYTES
        if threads > allowed and not self._threads_end(allowed):
            return f"the run left {self._read_stat()[0] - allowed} threads behind"
        if _free_descriptor() != self._free_descriptor:
            gc.collect()
            left = _descriptors() - self._descriptors
            if left or _free_descriptor() != self._free_descriptor:
                return f"the run left file descriptors behind: {sorted(left)}"
        return self._children_left()

    def _threads_end(self, allowed: int) -> bool:
        """A thread that was joined needs a moment until the kernel doesn't count it any more."""
        gc.collect()
        give_up_at = time.monotonic() + THREAD_PATIENCE_SECONDS
        while time.monotonic() < give_up_at:
            if self._read_stat()[0] <= allowed:
                return True
            time.sleep(0.001)
        return False

    def _children_left(self) -> str:
        if not tree.has_children():
            return ""
        alive = []
        for pid in tree.children(os.getpid()):
            try:
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    alive.append(pid)
            except ChildProcessError:
                continue
        return f"the run left child processes behind: {alive}" if alive else ""

    def _read_stat(self) -> tuple[int, int]:
        """How many threads there are, and how many pages are resident: proc(5), fields 20 and 24."""
        fields = os.pread(self._stat.fileno(), 1024, 0).rpartition(b")")[2].split()
        return int(fields[_THREADS_FIELD]), int(fields[_RSS_FIELD])


_SYS_LISTS = ("path", "argv", "meta_path", "path_hooks")
_SYS_NAMES = (
    "stdin", "stdout", "stderr", "excepthook", "displayhook", "unraisablehook", "dont_write_bytecode",
)  # fmt: skip


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _free_descriptor() -> int:
    """The lowest free descriptor: whatever is opened and not closed again moves it."""
    descriptor = os.dup(0)
    os.close(descriptor)
    return descriptor


def _descriptors() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/fd")}


def enter(temp: str) -> None:
    """Make the run's temp directory the working directory; a run may have removed it."""
    try:
        os.chdir(temp)
    except FileNotFoundError:
        os.makedirs(temp, mode=0o700)
        os.chdir(temp)


def _empty(temp: str) -> str:
    """Remove what the run wrote to its temp directory; the directory itself serves the next run."""
    try:
        entries = os.listdir(temp)
    except FileNotFoundError:
        return ""
    for entry in entries:
        problem = _remove(os.path.join(temp, entry))
        if problem:
            return f"its temp directory can't be emptied: {problem}"
    return ""


def _remove(path: str) -> str:
    import shutil

    try:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except OSError as error:
        return str(error)
    return ""


def _sources(directory: str) -> dict[str, Any]:
    """The modules that lie beside the tool, and how their files looked when they were imported."""
    prefix = directory + os.sep
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    neighbours = [path for path in files if isinstance(path, str) and path.startswith(prefix)]
    return {path: _stamp(path) for path in neighbours if "site-packages" not in path}


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _loggers() -> dict[str | None, tuple[Any, ...]]:
    """How every logger is set up; None is the root."""
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
