"""What the interpreter and the standard library keep for a process: put back after a run, or found patched.

What a run imports for the first time is put back to what Python starts with.
"""

from __future__ import annotations

import _codecs
import _signal  # type: ignore[import-not-found]
import _thread
import builtins
import ctypes
import gc
import operator
import os
import sys
import types
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

_ERROR_HANDLERS = (
    "strict", "ignore", "replace", "xmlcharrefreplace", "backslashreplace", "namereplace", "surrogateescape",
)  # fmt: skip
# By module: attributes, and what they are at first: a value, or the name of another attribute.
_ATTRIBUTES: Dict[str, Dict[str, Any]] = {
    "warnings": {"showwarning": None, "formatwarning": None, "_showwarnmsg_impl": None},
    "logging": {
        "_logRecordFactory": "LogRecord", "_loggerClass": "Logger", "raiseExceptions": True,
        "lastResort": "_defaultLastResort",
    },
    "urllib.request": {"_opener": None},
    "threading": {"excepthook": "__excepthook__", "_trace_hook": None, "_profile_hook": None},
}  # fmt: skip
_DECIMAL = operator.attrgetter("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
_PATCHED = (
    "builtins", "os", "posixpath", "io", "json", "socket", "time", "datetime", "random", "math", "re",
    "hashlib", "subprocess", "threading", "asyncio", "logging", "tempfile", "pathlib", "urllib.request",
    "shared.toolkit",
)  # fmt: skip
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, type)
_LIBRARY = (os.path.dirname(os.__file__) + os.sep, "<frozen ")
_int_digits: Optional[Callable[[], int]] = getattr(sys, "get_int_max_str_digits", None)


class InterpreterState:
    """Settings of the interpreter and of modules that many tools use, as they were when this was made."""

    def __init__(self) -> None:
        self._settings = _settings()
        self._callbacks = list(gc.callbacks)
        self._handlers = list(map(_codecs.lookup_error, _ERROR_HANDLERS))
        self._builtins = set(builtins.__dict__)
        self._attributes = {
            name: {attribute: content.get(attribute) for attribute in attributes}
            for name, attributes in _ATTRIBUTES.items()
            for content in _contents(name)
        }
        self._decimal = _decimal_contexts()
        self._numpy = _numpy_options()
        self._tracing = _is_tracing()
        self._sys = dict(vars(sys))
        self._functions = _Functions()
        self._modules = _Modules({"sys", *_ATTRIBUTES, *_PATCHED})
        self._patched = ""

    def patched(self) -> str:
        """Which function of the standard library the run had replaced; empty if none is known to be."""
        return self._patched

    def restore(self) -> None:
        """Undo what a run has changed."""
        if _settings() != self._settings:
            _set(self._settings)
        if gc.callbacks != self._callbacks:
            gc.callbacks[:] = self._callbacks
        if list(map(_codecs.lookup_error, _ERROR_HANDLERS)) != self._handlers:
            for name, handler in zip(_ERROR_HANDLERS, self._handlers):  # noqa: B905 - strict= needs Python 3.10
                _codecs.register_error(name, handler)
        _signal.set_wakeup_fd(-1)
        changed = self._modules.changed()
        if changed:
            self._restore_modules(changed)
        if _is_tracing() and not self._tracing:
            sys.modules["tracemalloc"].stop()
        if sys.modules.get("decimal") is not None:
            self._restore_decimal()
        if self._numpy:
            self._restore_numpy()

    def _restore_modules(self, changed: Iterable[str]) -> None:
        if "sys" in changed:
            self._restore_sys()
        if "builtins" in changed:
            for name in set(builtins.__dict__) - self._builtins:
                del builtins.__dict__[name]
        for name in changed:
            for content in _contents(name) if name in _ATTRIBUTES else ():
                self._restore_attributes(name, content)
            self._patched = self._patched or self._functions.replaced(name)

    def _restore_sys(self) -> None:
        """Put back what was there.  New names stay, as modules that the run has imported may need them."""
        content = vars(sys)
        for name, before in self._sys.items():
            if content.get(name, content) is not before:
                setattr(sys, name, before)
        if "tracebacklimit" not in self._sys:
            content.pop("tracebacklimit", None)

    def _restore_attributes(self, name: str, content: Dict[str, Any]) -> None:
        attributes = _ATTRIBUTES[name]
        if name not in self._attributes:
            self._attributes[name] = _at_first(content, attributes)
        before = self._attributes[name]
        for attribute in attributes:
            if attribute in before and content.get(attribute) is not before[attribute]:
                content[attribute] = before[attribute]

    def _restore_decimal(self) -> None:
        """Put back the defaults of new contexts, and the context that the import left."""
        decimal: Any = sys.modules["decimal"]
        if self._decimal is None:
            self._decimal = _decimal_at_first()
        defaults, traps, context = self._decimal
        now = decimal.DefaultContext
        if _DECIMAL(now) != defaults or now.traps != traps:
            now.prec, now.rounding, now.Emin, now.Emax, now.capitals, now.clamp = defaults
            for trap, is_set in traps.items():
                now.traps[trap] = is_set
        decimal.setcontext(context.copy())

    def _restore_numpy(self) -> None:
        numpy: Any = sys.modules["numpy"]
        errors, printing = self._numpy
        if numpy.geterr() != errors:
            numpy.seterr(**errors)
        if numpy.get_printoptions() != printing:
            numpy.set_printoptions(**printing)


def _contents(name: str) -> List[Dict[str, Any]]:
    """The names in a module, if one is loaded: None or any object can be in its place in `sys.modules`."""
    module = sys.modules.get(name)
    return [vars(module)] if isinstance(module, types.ModuleType) else []


def _at_first(content: Dict[str, Any], attributes: Dict[str, Any]) -> Dict[str, Any]:
    """What these attributes of a module are before anybody has changed them."""
    return {
        name: content.get(first, content.get(name)) if isinstance(first, str) else first
        for name, first in attributes.items()
        if name in content
    }


def _settings() -> Tuple[Any, ...]:
    return (
        gc.get_threshold(), gc.get_debug(), sys.getswitchinterval(), _thread.stack_size(),
        sys.getdlopenflags(), sys.get_coroutine_origin_tracking_depth(), sys.get_asyncgen_hooks(),
        _int_digits() if _int_digits is not None else 0,
    )  # fmt: skip


def _set(settings: Tuple[Any, ...]) -> None:
    threshold, debug, interval, stack_size, flags, depth, hooks, digits = settings
    gc.set_threshold(*threshold)
    gc.set_debug(debug)
    sys.setswitchinterval(interval)
    _thread.stack_size(stack_size)
    sys.setdlopenflags(flags)
    sys.set_coroutine_origin_tracking_depth(depth)
    sys.set_asyncgen_hooks(*hooks)
    if _int_digits is not None:
        sys.set_int_max_str_digits(digits)


def _is_tracing() -> bool:
    return "tracemalloc" in sys.modules and bool(sys.modules["tracemalloc"].is_tracing())


def _decimal_contexts() -> Optional[Tuple[Any, Dict[Any, bool], Any]]:
    """The defaults of new contexts and their traps, and a copy of the present context."""
    decimal: Any = sys.modules.get("decimal")
    if decimal is None:
        return None
    defaults = decimal.DefaultContext
    return _DECIMAL(defaults), dict(defaults.traps), decimal.getcontext().copy()


def _decimal_at_first() -> Tuple[Any, Dict[Any, bool], Any]:
    """The same as it is when Python starts, for a run that has imported it."""
    decimal: Any = sys.modules["decimal"]
    traps = [decimal.DivisionByZero, decimal.Overflow, decimal.InvalidOperation]
    first = decimal.Context(28, decimal.ROUND_HALF_EVEN, -999_999, 999_999, 1, 0, [], traps)
    return _DECIMAL(first), dict(first.traps), first


def _numpy_options() -> Tuple[Any, ...]:
    """How numpy treats errors and prints; empty if it is not loaded.  A context has both from 2.2 on."""
    numpy: Any = sys.modules.get("numpy")
    return (numpy.geterr(), numpy.get_printoptions()) if hasattr(numpy, "geterr") else ()


class _Functions:
    """The functions and classes of the modules that decide what a program sees of the world.

    A module that a run imports first is watched from the end of that run on, if all its functions are from
    its own file or from files of the standard library then.
    """

    def __init__(self) -> None:
        self._known: Dict[str, Tuple[Any, Dict[str, Any]]] = {}
        for name in _PATCHED:
            if name in sys.modules:
                self._watch(name)

    def _watch(self, name: str) -> Iterable[Any]:
        """Notice from now on what is replaced in a module; returns its functions and classes."""
        functions = {
            key: value
            for content in _contents(name)
            for key, value in content.items()
            if isinstance(value, _FUNCTIONS)
        }
        self._known[name] = sys.modules[name], functions
        return functions.values()

    def _watch_imported(self, name: str) -> str:
        """Watch a module that the run has imported; what it has replaced before, if anything."""
        if getattr(sys.modules[name], "__spec__", None) is None:
            return f"the run replaced the module {name}"
        own = getattr(sys.modules[name], "__file__", "")
        for function in self._watch(name):
            code = getattr(function, "__code__", None)
            if code is not None and code.co_filename != own and not code.co_filename.startswith(_LIBRARY):
                return f"the run replaced a function of {name}: {function!r:.80}"
        return ""

    def replaced(self, name: str) -> str:
        """The first function or class of this module that is another one now, if the module is watched."""
        if name not in self._known:
            return self._watch_imported(name) if name in _PATCHED and name in sys.modules else ""
        module, before = self._known[name]
        if sys.modules.get(name) is not module:
            return f"the run replaced the module {name}"
        try:
            now = list(map(getattr(module, "__dict__", {}).__getitem__, before))
        except KeyError as missing:
            return f"the run removed {name}.{missing.args[0]}"
        changed = [one for one, other in zip(now, before.values()) if one is not other]  # noqa: B905
        return f"the run replaced a function or class of {name}: {changed[0]!r:.80}" if changed else ""


_VERSION_AT = 24
"""Where CPython keeps the version of a dictionary: after two words of any object, and the number of items."""


def _version(content: Dict[str, Any]) -> ctypes.c_uint64:
    """The place of the number that CPython changes whenever it changes this dictionary (PEP 509)."""
    return ctypes.c_uint64.from_address(id(content) + _VERSION_AT)


def _has_versions() -> bool:
    """Whether this interpreter has such numbers, as CPython up to 3.13."""
    tried: Dict[str, Any] = {"one": 1, "other": 2}
    version = _version(tried)
    seen = [version.value, version.value]
    for name, value in (("one", 3), ("other", 4)):
        tried[name] = value
        seen.append(version.value)
    return seen[0] == seen[1] and len(set(seen)) == len(seen) - 1


class _Modules:
    """Tells which modules have been changed, imported or exchanged since it was asked last.

    Comparing all functions of nineteen modules takes thirty times as long as comparing the versions of their
    dictionaries, and drives what the next run needs from the processor's cache.
    """

    _has_versions = _has_versions()

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._modules: List[Any] = []
        self._loaded: List[str] = []
        self._places: List[ctypes.c_uint64] = []
        self._seen: List[int] = []

    def changed(self) -> Sequence[str]:
        """All of them at first, and always if the interpreter has no versions."""
        modules = list(map(sys.modules.get, self._names))
        if modules != self._modules:
            self._modules = modules
            loaded = {name: content for name in self._names for content in _contents(name)}
            self._loaded = list(loaded)
            self._places = list(map(_version, loaded.values()))
            self._seen = list(map(_value, self._places))
            return self._names
        now = list(map(_value, self._places))
        if not self._has_versions:
            return self._names
        if now == self._seen:
            return ()
        before, self._seen = self._seen, now
        return [name for name, one, other in zip(self._loaded, before, now) if one != other]  # noqa: B905


_value = operator.attrgetter("value")
