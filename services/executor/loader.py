"""Tool name -> Tool: its file, digest, entry point, parameters and what it asks for.

Nothing of a tool runs here.  Its file is read as text, and a child says the rest;
what it said is kept by the file's digest.
"""

import asyncio
import hashlib
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from services.executor.isolation.calls import Description, Module
from services.executor.isolation.environment import Environment
from services.executor.isolation.requirements import Requirements, requirements_of
from services.executor.isolation.sandbox import Sandbox, stricter
from services.executor.needs import ToolNeeds, needs_of
from shared.errors import ToolError, ToolNotFoundError, ToolParameterError

MAX_FILE_BYTES = 4_000_000
DESCRIPTIONS_KEPT = 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_SETTLED_NS = 100_000_000  # some clocks of files tick that slowly


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that keeps the contract."""

    module: Module
    needs: ToolNeeds
    description: Description

    def check(self, params: Mapping[str, Any]) -> None:
        """Compare `params` with the signature.  Raises `ToolParameterError` that names every misfit."""
        known = self.description.parameters.get("properties", {})
        required = self.description.parameters.get("required", ())
        missing = [f"'{name}' is missing" for name in required if name not in params]
        unknown: list[str] = []
        if not self.description.parameters.get("additionalProperties", False):
            unknown = [f"'{name}' is unknown" for name in params if name not in known]
        if missing or unknown:
            takes = ", ".join(known) or "no parameters"
            raise ToolParameterError(
                f"{self.module.name}: {', '.join(missing + unknown)}; the tool takes: {takes}"
            )


Form = tuple[str, str, str]
"""A module's name and its digest: equal files of other names are other tools."""


class Describer(Protocol):
    """Asks a child what a module says of itself."""

    async def describe(self, module: Module, timeout_seconds: float) -> Description:
        """Raises `ToolError` for a module that breaks the contract."""


class Installer(Protocol):
    """Has an environment ready that holds what a tool needs."""

    async def ensure(self, requirements: Requirements) -> Environment:
        """Raises `ToolEnvironmentError` when it can't be made."""


class Loader:
    """Looks tools up in one folder.

    Args:
        folder: where the modules are; links that lead out of it are refused.
        describer: answers for the code.
        installer: makes the environments that tools need.
        sandbox: what every tool is kept from; a tool may ask for more confinement, not for less.
    """

    def __init__(
        self, folder: Path, describer: Describer, installer: Installer, sandbox: Sandbox = Sandbox.OFF
    ) -> None:
        self._folder = folder.resolve()
        self._describer = describer
        self._installer = installer
        self._sandbox = sandbox
        self._digests: dict[Path, tuple[tuple[int, ...], str, str]] = {}
        self._described: dict[Form, Description] = {}
        self._describing: dict[Form, asyncio.Lock] = {}

    def names(self) -> list[str]:
        """The names of all modules that could be tools, sorted."""
        try:
            files = list(self._folder.glob("*.py"))
        except OSError:
            return []
        return sorted(file.stem for file in files if _NAME.fullmatch(file.stem))

    def find(self, name: str) -> Module:
        """The code of `name` as it is on disk now.

        Raises:
            ToolNotFoundError: no such file, or not one inside the folder.
            ToolError: the file can't be read.
        """
        return self._read(name)[0]

    async def load(self, name: str, timeout_seconds: float) -> Tool:
        """The tool called `name`, as it is on disk now.

        Raises:
            ToolNotFoundError: no such file, or not one inside the folder.
            ToolError: what breaks the contract, in the child's words.
        """
        module, text = self._read(name)
        needs = needs_of(f"{module.path.name}: [tool.fullsend]", text)
        environment = await self._installer.ensure(requirements_of(module.path.name, text))
        if environment.digest:
            module = replace(module, python=environment.python, environment=environment.digest)
        module = replace(module, sandbox=stricter(self._sandbox, needs.sandbox))
        return Tool(module, needs, await self._describe(module, timeout_seconds))

    async def _describe(self, module: Module, timeout_seconds: float) -> Description:
        form = (module.name, module.digest, module.environment)
        known = self._described.get(form)
        if known is not None:
            return known
        # One child answers for a new form, however many runs are waiting for it.
        async with self._describing.setdefault(form, asyncio.Lock()):
            if form not in self._described:
                self._remember(form, await self._describer.describe(module, timeout_seconds))
        return self._described[form]

    def _remember(self, form: Form, description: Description) -> None:
        while len(self._described) >= DESCRIPTIONS_KEPT:
            oldest = next(iter(self._described))
            del self._described[oldest]
            self._describing.pop(oldest, None)
        self._described[form] = description

    def _read(self, name: str) -> tuple[Module, str]:
        path = self._path(name)
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
            known = self._digests.get(path)
            if known is None or known[0] != stamp:
                known = (stamp, *_digest_and_text(path, stat.st_size))
        except OSError as exc:
            raise ToolError(f"{path} can't be read: {exc.strerror or exc}") from None
        if time.time_ns() - stat.st_ctime_ns > _SETTLED_NS:  # before that, the next change may leave no trace
            self._digests[path] = known
        _, digest, text = known
        return Module(name, path, digest), text

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ToolNotFoundError(name, "a tool's name has letters, digits, '_' and '-' only")
        path = self._folder / f"{name}.py"
        if not path.is_file():
            raise ToolNotFoundError(name, f"there is no {path}")
        if path.resolve().parent != self._folder:
            raise ToolNotFoundError(name, f"{path} leads out of the tools folder")
        return path


def _digest_and_text(path: Path, size_bytes: int) -> tuple[str, str]:
    if size_bytes > MAX_FILE_BYTES:
        raise ToolError(f"{path} is {size_bytes:,} bytes long; a tool's file may have {MAX_FILE_BYTES:,}")
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), content.decode(errors="replace")


if __name__ == "__main__":
    from services.executor.tryout import main  # the other way round for imports: it needs all of this

    sys.exit(main())
