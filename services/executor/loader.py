"""Tool name -> Tool: its code, digest, entry point, parameters and what it asks for.

Nothing of a tool runs here.  Its files are read as text, and a child says the rest;
what it said is kept by the code's digest.
"""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from services.executor.isolation.calls import Description, Module
from services.executor.isolation.environment.environments import Environment
from services.executor.isolation.environment.requirements import Requirements, requirements_of
from services.executor.isolation.sandbox import Sandbox, stricter
from services.executor.policy import ToolNeeds, needs_of
from services.executor.tools.bundles import Bundle, Bundles
from services.executor.tools.tool_source import Code, Library
from shared.errors import ToolParameterError

REMEMBERED = 1_000
LOOKS = 4

K = TypeVar("K")
V = TypeVar("V")


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
    """Looks tools up in one folder, and by reference among all that were ever run.

    Args:
        folder: where the modules and packages are; links that lead out of it are refused.
        describer: answers for the code.
        installer: makes the environments that tools need.
        kept: where code is kept for those who ask for it by reference.
        sandbox: what every tool is kept from; a tool may ask for more confinement, not for less.
    """

    def __init__(
        self,
        folder: Path,
        describer: Describer,
        installer: Installer,
        kept: Bundles,
        sandbox: Sandbox = Sandbox.OFF,
    ) -> None:
        self._library = Library(folder, kept)
        self._describer = describer
        self._installer = installer
        self._sandbox = sandbox
        self._neighbours: dict[str, tuple[str, ...]] = {}
        self._asks: dict[str, tuple[str, tuple[ToolNeeds, Requirements]]] = {}
        self._loaded: dict[str, tuple[Bundle, Tool]] = {}
        self._described: dict[Form, Description] = {}
        self._describing: dict[Form, asyncio.Lock] = {}
        self._aside = asyncio.Lock()

    def names(self) -> list[str]:
        """The names of all modules and packages that could be tools, sorted."""
        return self._library.names()

    def find(self, name: str) -> Module:
        """The code of `name` as it is on disk now, with the neighbours that it was last seen to import.

        Raises:
            ToolNotFoundError: no such file or package, or not one inside the folder.
            ToolError: it can't be read.
        """
        return self._library.find(name, self._neighbours.get(name, ()))

    def loaded(self, name: str) -> Tool | None:
        """The tool called `name` if it was loaded before and is the same now; otherwise it is for `load`."""
        known = self._loaded.get(name)
        if known is None:
            return None
        bundle, tool = known
        if self._library.unchanged(name, self._neighbours.get(name, ())) is not bundle:
            return None
        self._library.keep(bundle)
        return tool

    async def load(self, name: str, timeout_seconds: float, *, aside: bool = False) -> Tool:
        """The tool called `name` as it is on disk now, or as it was when it is a bundle reference.

        What it imports from its folder while it is imported itself belongs to its code.

        Args:
            name: a plain name or a reference.
            timeout_seconds: for the import.
            aside: for those whom no run waits for: imports one at a time, as the pool has one place for them.

        Raises:
            ToolNotFoundError: no such file or package, not one inside the folder, or not kept.
            ToolError: what breaks the contract, in the child's words.
        """
        for _ in range(LOOKS):
            known = self._neighbours.get(name, ())
            code = await self._library.code(name, known)
            needs, requirements = self._asked(code)
            module = await self._equipped(code.module, requirements)
            sandbox = stricter(self._sandbox, needs.sandbox)
            if sandbox is not module.sandbox:
                module = replace(module, sandbox=sandbox)
            description = await self._describe(module, timeout_seconds, aside)
            if code.is_whole or description.neighbours == known:
                break
            self._neighbours[name] = description.neighbours
        self._library.keep(code.bundle)
        tool = Tool(module, needs, description)
        if not module.environment:  # which has to be there, and to be marked as used, each time
            _remember(self._loaded, name, (code.bundle, tool))
        return tool

    async def recognises(self, name: str, digest: str) -> bool:
        """Whether the code of `name` is that of `digest`, and importing it takes no environment of its own.

        It is kept then, as code that is loaded is.  Raises `ToolError` when it can't be read.
        """
        code = await self._library.code(name, self._neighbours.get(name, ()))
        _, requirements = self._asked(code)
        if code.bundle.digest != digest or not requirements.is_empty:
            return False
        self._library.keep(code.bundle)
        return True

    def _asked(self, code: Code) -> tuple[ToolNeeds, Requirements]:
        """What the code's PEP 723 block asks for; it is read once, as long as the code is the same."""
        name, digest = code.bundle.name, code.bundle.digest
        known = self._asks.get(name)
        if known is None or known[0] != digest:
            place, text = code.module.path.name, code.bundle.main.decode(errors="replace")
            asks = needs_of(f"{place}: [tool.fullsend]", text), requirements_of(place, text)
            known = (digest, asks)
            _remember(self._asks, name, known)
        return known[1]

    async def _equipped(self, module: Module, requirements: Requirements) -> Module:
        environment = await self._installer.ensure(requirements)
        if not environment.digest:
            return module
        return replace(module, python=environment.python, environment=environment.digest)

    async def _describe(self, module: Module, timeout_seconds: float, aside: bool) -> Description:
        form = (module.name, module.digest, module.environment)
        known = self._described.get(form)
        if known is not None:
            return known
        # One child answers for a new form, however many runs are waiting for it.
        turn = self._aside if aside else contextlib.nullcontext()
        async with turn, self._describing.setdefault(form, asyncio.Lock()):
            if form not in self._described:
                description = await self._describer.describe(module, timeout_seconds)
                for forgotten in _remember(self._described, form, description):
                    self._describing.pop(forgotten, None)
        return self._described[form]


def _remember(known: dict[K, V], key: K, value: V) -> list[K]:
    """Note it, in place of what was noted the longest ago when there is too much; the keys of that."""
    known.pop(key, None)
    oldest = list(itertools.islice(known, max(0, len(known) - REMEMBERED + 1)))
    for one in oldest:
        del known[one]
    known[key] = value
    return oldest


if __name__ == "__main__":
    from services.executor.tryout import main  # the other way round for imports: it needs all of this

    sys.exit(main())
