"""Finds and executes a tool's module, and gives it the toolkit to import."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import site
import sys
import types
from typing import Any, Sequence

try:  # hashlib loads OpenSSL, whose several megabytes every fork would copy the page tables of
    from _sha2 import sha256 as sha256  # type: ignore[import-not-found]
except ImportError:
    try:
        from _sha256 import sha256 as sha256  # type: ignore[import-not-found]
    except ImportError:
        from hashlib import sha256 as sha256


class ContractBroken(Exception):
    """The file is not a tool; says why and what to do.  `stale` if it was changed just now."""

    def __init__(self, message: str, stale: bool = False) -> None:
        super().__init__(message)
        self.stale = stale


class _ToolkitLoader(importlib.machinery.SourceFileLoader):
    """Loads the toolkit and connects it to this process."""

    def __init__(self, name: str, path: str, reporter: Any) -> None:
        super().__init__(name, path)
        self.reporter = reporter

    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        module._attach(self.reporter)


class _ToolkitFinder:
    """Finds the toolkit in `shared`, and nothing else, whatever is installed under that name."""

    def __init__(self, path: str, reporter: Any) -> None:
        self.path = path
        self.reporter = reporter

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name == "shared":
            return importlib.machinery.ModuleSpec(name, None, is_package=True)
        if name == "shared.toolkit":
            loader = _ToolkitLoader(name, self.path, self.reporter)
            return importlib.util.spec_from_file_location(name, self.path, loader=loader)
        if name.startswith("shared."):
            raise ModuleNotFoundError(f"No module named {name!r}: tools may import shared.toolkit", name=name)
        return None


_standard: list[str] = []
_installed: list[str] = []


def find_installed() -> None:
    """Find out what is installed for this interpreter, once for all processes that are forked later.

    This takes longer than the rest of a process' start.
    """
    _standard[:] = sys.path
    site.main()
    _installed[:] = [entry for entry in sys.path if entry not in _standard]


def prepare_path(path: str, toolkit: str, reporter: Any) -> None:
    """Let the tool at `path` import, in this order: the standard library, its neighbours, what is installed.

    The standard library comes first, so that a tool called `email.py` doesn't replace `email` in the
    processes of its neighbours.
    """
    directory = os.path.dirname(path)
    sys.path[:] = [*_standard, os.path.dirname(directory) if is_package(path) else directory, *_installed]
    sys.meta_path.insert(0, _ToolkitFinder(toolkit, reporter))


def is_package(path: str) -> bool:
    """Whether this is the main file of a tool that is a package."""
    return os.path.basename(path) == "__init__.py"


def execute(name: str, path: str, digest: str) -> types.ModuleType:
    """Import the file at `path`.  ContractBroken if its content no longer has the SHA-256 `digest`."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ContractBroken(f"{path} can't be read: {error.strerror}", stale=True) from None
    if sha256(content).hexdigest() != digest:
        raise ContractBroken(f"{path} was changed after it was looked up; run it again", stale=True)
    module = types.ModuleType(_module_name(name))
    module.__file__ = path
    inner = [os.path.dirname(path)] if is_package(path) else None
    module.__spec__ = spec = importlib.util.spec_from_file_location(
        module.__name__, path, submodule_search_locations=inner
    )
    assert spec is not None, "a name that ends in .py has a loader"
    module.__package__ = spec.parent
    if inner is not None:
        module.__path__ = inner
    sys.modules[module.__name__] = module
    exec(compile(content, path, "exec", dont_inherit=True), module.__dict__)
    return module


def _module_name(name: str) -> str:
    """The tool's name, unless a module of the standard library needs it."""
    standard = getattr(sys, "stdlib_module_names", sys.builtin_module_names)
    return f"tool_{name}" if name in standard or name in sys.modules else name


def find_entry(module: types.ModuleType, name: str, path: str) -> tuple[str, Any]:
    """The function that a run calls, and its name: named like the file, or `run`."""
    for candidate in (name, "run"):
        entry = getattr(module, candidate, None)
        if callable(entry) and not isinstance(entry, types.ModuleType):
            return candidate, entry
        if entry is not None and not isinstance(entry, types.ModuleType):
            raise ContractBroken(
                f"{path}: {candidate} is a {type(entry).__name__}, not a function; define def {name}(...)"
            )
    raise ContractBroken(f"{path} has no function {name}() and no function run(); define def {name}(...)")


def find_named(module: types.ModuleType | None, name: str, path: str) -> Any:
    """The public function called `name`, for calls of another one than runs use."""
    entry = None if name.startswith("_") else getattr(module, name, None)
    if not callable(entry) or isinstance(entry, types.ModuleType):
        raise ContractBroken(f"{path} has no function {name}(); define def {name}(...)")
    return entry
