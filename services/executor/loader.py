"""Tool name -> Tool: its code, digest, entry point, parameters and needs.

No code of a tool runs in this process.  The tool's file is read as text, and a child process imports
and describes it; descriptions are kept by the code's digest.

`python -m services.executor.loader --test FILE` describes one tool, or reports what is wrong with it.
"""

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from services.executor.isolation.calls import Description, Module
from services.executor.isolation.environment.environments import Environment
from services.executor.isolation.environment.requirements import Requirements, requirements_of
from services.executor.isolation.sandbox import Sandbox, stricter
from services.executor.policy import ToolNeeds, allowed_environment, needs_of
from services.executor.tools import source_description
from services.executor.tools.bundles import ENTRY, Bundle, Bundles
from services.executor.tools.description_text import defined_instead, described_lines
from services.executor.tools.tool_source import TOOLS_KEPT, BoundedDict, Code, ToolSource
from shared import log
from shared.documents import visible
from shared.errors import SettingsError, ToolError, ToolParameterError, ToolTimeoutError

LOOKS = 4
TEST_TIMEOUT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that keeps the contract.

    Attributes:
        module: its code, and where it is imported from.
        needs: what its file asks for.
        description: what a child process has found out about it.
    """

    module: Module
    needs: ToolNeeds
    description: Description

    def check(self, params: Mapping[str, Any]) -> None:
        """Compare `params` with the function's signature.

        Raises:
            ToolParameterError: names every parameter that is missing or unknown.
        """
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
"""A module's name, the digest of its code and that of its environment.  The same code under another name
is another tool."""


class Describer(Protocol):
    """Describes modules in a child process."""

    async def describe(self, module: Module, timeout_seconds: float) -> Description:
        """Return the description of a module.  Raises `ToolError` if it breaks the contract."""


class Installer(Protocol):
    """Builds the environments that tools need."""

    async def find(self, requirements: Requirements) -> Environment | None:
        """Return the environment for these requirements if it is built.  Raises `ToolEnvironmentError`."""

    async def ensure(self, requirements: Requirements) -> Environment:
        """Return the environment for these requirements.  Raises `ToolEnvironmentError`."""


class Loader:
    """Loads tools from the tools folder, and by bundle reference.

    Args:
        folder: the tools folder, with modules and packages; links that lead out of it are refused.
        describer: describes modules.
        installer: builds environments.
        kept: keeps code, for bundle references.
        sandbox: the confinement of every tool; a tool may ask for more, not for less.
        capabilities: those of root's that a tool may ask for.
        builds_allowed: whether packages are built also for tools whose files are confined.
    """

    def __init__(
        self,
        folder: Path,
        describer: Describer,
        installer: Installer,
        kept: Bundles,
        sandbox: Sandbox = Sandbox.PROCESS,
        capabilities: Sequence[str] = (),
        *,
        builds_allowed: bool = False,
    ) -> None:
        self._source = ToolSource(folder, kept)
        self._describer = describer
        self._installer = installer
        self._sandbox = sandbox
        self._capabilities = capabilities
        self._builds_allowed = builds_allowed
        self._neighbours: BoundedDict[str, tuple[str, ...]] = BoundedDict(TOOLS_KEPT)
        self._asks: BoundedDict[tuple[str, str], tuple[ToolNeeds, Requirements]] = BoundedDict(TOOLS_KEPT)
        self._loaded: BoundedDict[str, tuple[Bundle, Tool]] = BoundedDict(TOOLS_KEPT)
        self._described: BoundedDict[Form, Description] = BoundedDict(TOOLS_KEPT)
        self._describing: weakref.WeakValueDictionary[Form, asyncio.Lock] = weakref.WeakValueDictionary()
        self._aside = asyncio.Lock()

    def names(self) -> list[str]:
        """Return the names of all modules and packages that could be tools, sorted."""
        return self._source.names()

    def find(self, name: str) -> Module:
        """Return the module `name` as it is in the folder now, without importing it.

        Its digest covers the files that it imported from the folder when it was described last.

        Raises:
            ToolNotFoundError: there is no such file or package in the folder.
            ToolError: it can't be read.
        """
        return self._source.find(name, self._neighbours.get(name, ()))

    def loaded(self, name: str) -> Tool | None:
        """Return the tool `name` if it was loaded before and is unchanged, else None."""
        return self._loaded[name][1] if self.loaded_bundle(name) is not None else None

    def loaded_bundle(self, name: str) -> Bundle | None:
        """Return the code of the tool `name` if it was loaded before and is unchanged, else None."""
        known = self._loaded.get(name)
        if known is None or self._source.unchanged(name, self._neighbours.get(name, ())) is not known[0]:
            return None
        self._source.keep(known[0])
        return known[0]

    async def load(self, name: str, timeout_seconds: float, *, aside: bool = False) -> Tool:
        """Return the tool `name`: built, imported and described, if that is not done already.

        Files of the folder that it imports at its own import belong to its code.

        Args:
            name: the name of a module or package, or a bundle reference.
            timeout_seconds: for the import.
            aside: describe one tool at a time, when no run waits; the pool has one place for that.

        Raises:
            ToolNotFoundError: there is no such tool.
            ToolError: it breaks the contract, or its environment can't be built.
        """
        for _ in range(LOOKS):
            known = self._neighbours.get(name, ())
            code = await self._source.code(name, known)
            needs, requirements = self._asked(code)
            self._check_allowed(code.module, needs)
            module = await self._equipped(code.module, requirements)
            sandbox = stricter(self._sandbox, needs.sandbox)
            if sandbox is not module.sandbox or needs.capabilities:
                module = replace(module, sandbox=sandbox, capabilities=needs.capabilities)
            description = await self._describe(module, timeout_seconds, aside)
            if code.is_whole or description.neighbours == known:
                break
            self._neighbours[name] = description.neighbours
        self._source.keep(code.bundle)
        tool = Tool(module, needs, description)
        if not module.environment:  # an environment must be marked as used, and may have been removed
            self._loaded[name] = (code.bundle, tool)
        return tool

    async def load_within(self, name: str, limit_seconds: float) -> Tool:
        """The tool called `name`, within a time limit, also where somebody with more time is loading it.

        Raises:
            ToolError: as `load` does; `ToolTimeoutError` when it takes longer.
        """
        known = self.loaded(name)
        if known is not None:
            return known
        try:
            async with asyncio.timeout(limit_seconds):
                return await self.load(name, limit_seconds)
        except TimeoutError:
            raise ToolTimeoutError(f"the import of '{name}' took more than {limit_seconds:g} s") from None

    async def bundle(self, name: str, limit_seconds: float) -> Bundle:
        """Return the code of the tool called `name`, with the files of the folder that belong to it.

        A module is loaded for that, as `load_within` does; a package or a bundle reference is only read.

        Raises:
            ToolError: the code can't be read, or the module can't be loaded.
        """
        known = self.loaded_bundle(name)
        if known is not None:
            return known
        code = await self._source.code(name, self._neighbours.get(name, ()))
        if not code.is_whole:
            await self.load_within(name, limit_seconds)
            code = await self._source.code(name, self._neighbours.get(name, ()))
        return code.bundle

    async def needs(self, name: str) -> ToolNeeds:
        """Return what the file of a tool asks for.  Nothing of the tool is run.

        Raises:
            ToolNotFoundError: there is no such tool.
            ToolError: its header can't be read.
        """
        needs, _ = self._asked(await self._source.code(name))
        return needs

    async def described_by_source(self, name: str) -> Description | None:
        """Return what the source of a tool says, if its environment must be built before it can be imported.

        Nothing is built, and nothing of the tool is run.  None if it can be imported.

        Raises:
            ToolNotFoundError: there is no such tool.
            ToolError: it can't be read, or breaks the contract.
        """
        code = await self._source.code(name, self._neighbours.get(name, ()))
        _, requirements = self._asked(code)
        if await self._installer.find(requirements) is not None:
            return None
        return source_description.described(name, code.module.path, code.bundle.main)

    async def equip(self, name: str) -> bool:
        """Build the environment of a tool, if it needs one and there is none; return whether it needs one.

        Raises:
            ToolNotFoundError: there is no such tool.
            ToolError: it can't be read, or its environment can't be built.
        """
        code = await self._source.code(name, self._neighbours.get(name, ()))
        _, requirements = self._asked(code)
        return bool((await self._installer.ensure(requirements)).digest)

    async def recognises(self, name: str, digest: str) -> bool:
        """Return whether `name` has this digest and needs no environment; if so, keep its code.

        Raises:
            ToolError: it can't be read.
        """
        code = await self._source.code(name, self._neighbours.get(name, ()))
        _, requirements = self._asked(code)
        if code.bundle.digest != digest or not requirements.is_empty:
            return False
        self._source.keep(code.bundle)
        return True

    async def all_kept(self) -> None:
        """Wait until the code of all loaded tools is kept."""
        await self._source.all_kept()

    def _asked(self, code: Code) -> tuple[ToolNeeds, Requirements]:
        """Return what the code's PEP 723 block asks for; it is parsed once."""
        key = code.bundle.name, code.bundle.digest
        known = self._asks.get(key)
        if known is None:
            place, text = code.module.path.name, code.bundle.main.decode(errors="replace")
            needs, requirements = needs_of(f"{place}: [tool.fullsend]", text), requirements_of(place, text)
            confined = stricter(self._sandbox, needs.sandbox) in (Sandbox.FILES, Sandbox.FILES_AND_NETWORK)
            if confined and requirements.dependencies and not self._builds_allowed:
                requirements = replace(requirements, wheels_only=True)
            known = self._asks[key] = needs, requirements
        return known

    def _check_allowed(self, module: Module, needs: ToolNeeds) -> None:
        refused = [one for one in needs.capabilities if one not in self._capabilities]
        if refused:
            raise ToolError(
                f"{module.path.name} asks for the capability '{refused[0]}', which is not allowed; "
                "add it to TOOL_CAPABILITIES_ALLOWED, or remove it from the tool's [tool.fullsend]"
            )

    async def _equipped(self, module: Module, requirements: Requirements) -> Module:
        environment = await self._installer.ensure(requirements)
        if not environment.digest:
            return module
        return replace(
            module,
            python=environment.started_by,
            environment=environment.digest,
            prefix=environment.prefix,
        )

    async def _describe(self, module: Module, timeout_seconds: float, aside: bool) -> Description:
        form = (module.name, module.digest, module.environment)
        known = self._described.get(form)
        if known is not None:
            return known
        # One child describes a new form, however many runs wait for it.
        turn = self._aside if aside else contextlib.nullcontext()
        async with turn, self._describing.setdefault(form, asyncio.Lock()):
            known = self._described.get(form)
            if known is None:
                known = self._described[form] = await self._describer.describe(module, timeout_seconds)
        return known


# -- python -m services.executor.loader --test FILE -------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """Describe the tool in a file, or report what is wrong with it; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.executor.loader",
        description="Loads a tool as the executor does, and describes it or reports what is wrong with it.",
    )
    parser.add_argument(
        "--test", metavar="FILE", type=Path, required=True, help="a module or a package, in any folder"
    )
    path = parser.parse_args(argv).test
    log.configure(level="error")
    try:
        print(visible("\n".join(_lines(asyncio.run(_load_alone(path)), path))))
    except (SettingsError, ToolError) as exc:
        print(visible(f"error: {exc}{defined_instead(path, str(exc))}"), file=sys.stderr)
        return 1
    return 0


async def _load_alone(path: Path) -> Tool:
    """Load the tool in a file or a package as a worker would; its folder is the tools folder."""
    import uv

    from services.executor import config
    from services.executor.artifacts import LocalBlobs
    from services.executor.isolation.environment.environments import Environments
    from services.executor.isolation.pool import Pool

    if path.suffix != ".py" and not (path / ENTRY).is_file():
        raise ToolError(
            f"{path} is not a Python file; a tool is a module NAME.py with a function NAME, "
            f"or a package: a directory with an {ENTRY}"
        )
    chosen = config.load()
    readable = chosen.sandbox_readable
    pool = Pool(capacity=1, environ=allowed_environment(os.environ), readable=readable)
    environments = Environments(
        chosen.environments_path,
        uv=Path(uv.find_uv_bin()),
        environ=os.environ,
        config_file=chosen.uv_config_file,
        readable=readable,
    )
    await pool.start()
    try:
        with tempfile.TemporaryDirectory() as place:
            kept = Bundles(LocalBlobs(Path(place, "blobs")), Path(place, "bundles"))
            loader = Loader(
                path.parent,
                pool,
                environments,
                kept,
                chosen.sandbox,
                chosen.tool_capabilities_allowed,
                builds_allowed=chosen.tool_builds_allowed,
            )
            return await loader.load(path.stem, TEST_TIMEOUT_SECONDS)
    finally:
        await pool.stop()


def _lines(tool: Tool, path: Path) -> Iterator[str]:
    return described_lines(tool.description, tool.needs.model_dump(exclude_defaults=True), path)


if __name__ == "__main__":
    sys.exit(main())
