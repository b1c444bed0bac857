"""Finds and executes a tool's module, and decides what it can import."""

from __future__ import annotations

import ctypes
import importlib.machinery
import importlib.util
import os
import sys
import types
from typing import Any

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


PACKAGE = __name__.partition(".")[0]
ON_PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "on_path")
OWN_NAMES = "fullsend_tool"
"""The package of tools that are called like something else."""

_NO_SITE = 6
"""The place of `no_site` in `sys.flags`."""


def interpreter_options() -> list[str]:
    """The options that this interpreter was started with."""
    return ["-s", *(["-S"] if sys.flags.no_site else []), "-X", "utf8"]


def enter_environment(interpreter: str) -> None:
    """Become this interpreter of an environment, as if it had been started.

    This runs what installed packages have executed at the start of an interpreter, so it is done once the
    process is confined.  The process was started by another interpreter, with `-S`: what an environment says
    about itself, as the place of its standard library, is not believed before.
    """
    sys.executable = interpreter
    sys.prefix = sys.exec_prefix = os.path.dirname(os.path.dirname(interpreter))
    import site  # which does nothing yet, because of `-S`

    # The interpreters that `multiprocessing` starts have the flags of this one.
    ctypes.pythonapi.PyStructSequence_SetItem(ctypes.py_object(sys.flags), _NO_SITE, ctypes.py_object(0))
    site.main()


def prepare_path(path: str, reporter: Any) -> None:
    """Let the tool at `path` import the toolkit, what is standard, what is installed, and its neighbours.

    In this order: the tools' folder comes last, so that no tool replaces what its neighbours want to import,
    or it itself.
    What a tool starts with `multiprocessing` and the like is given the same path.  The toolkit finds
    `reporter` in our package.
    """
    directory = os.path.dirname(path)
    folder = os.path.dirname(directory) if is_package(path) else directory
    sys.path[:] = [ON_PATH, *sys.path, folder]
    sys.meta_path.insert(0, _OnlyToolkit)
    sys.modules[PACKAGE].reporter = reporter  # type: ignore[attr-defined]


class _OnlyToolkit:
    """Refuses everything in `shared` but the toolkit: an installed finder may know the service's own."""

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        if name.startswith("shared."):
            raise ModuleNotFoundError(f"No module named {name!r}: tools may import shared.toolkit", name=name)


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
    """The tool's name, unless something else has it that can be imported."""
    standard = getattr(sys, "stdlib_module_names", sys.builtin_module_names)
    is_taken = name in standard or name in sys.modules or _is_installed(name)
    return f"{OWN_NAMES}.{name}" if is_taken else name


def _is_installed(name: str) -> bool:
    """Whether a module or a package of that name comes before the tools' folder on the path."""
    folder = sys.path.pop()
    try:
        specs = (finder.find_spec(name, None) for finder in sys.meta_path)
        # A folder without an `__init__.py` has no origin, and gives way to a module.
        return any(spec is not None and spec.origin is not None for spec in specs)
    finally:
        sys.path.append(folder)


def find_entry(module: types.ModuleType, name: str, path: str) -> tuple[str, Any]:
    """The function that a run calls, and its name: named like the file, or `run`."""
    members = {one: getattr(module, one) for one in (name, "run") if hasattr(module, one)}
    for candidate, member in members.items():
        if _is_function(member):
            return candidate, member
    for candidate, member in members.items():
        if not isinstance(member, types.ModuleType):
            kind = f"the class {member.__qualname__}" if isinstance(member, type) else _kind(member)
            raise ContractBroken(f"{path}: {candidate} is {kind}, not a function; define def {name}(...)")
    raise ContractBroken(f"{path} has no function {name}() and no function run(); define def {name}(...)")


def _is_function(member: Any) -> bool:
    """Whether a member of a module can be a tool.  A class can't: what it makes is no result."""
    return callable(member) and not isinstance(member, (type, types.ModuleType))


def _kind(value: Any) -> str:
    kind = type(value).__name__
    return "None" if value is None else f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def find_named(module: types.ModuleType | None, name: str, path: str) -> Any:
    """The public function called `name`, for calls of another one than runs use."""
    entry = None if name.startswith("_") else getattr(module, name, None)
    if not _is_function(entry):
        raise ContractBroken(f"{path} has no function {name}(); define def {name}(...)")
    return entry
