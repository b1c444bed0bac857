"""Tool name -> Tool: its code, digest, entry point, parameters and what it asks for.

Nothing of a tool runs here.  Its files are read as text, and a child says the rest;
what it said is kept by the code's digest.
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

import structlog

from services.executor import bundles
from services.executor.bundles import Bundle, Bundles
from services.executor.isolation.calls import Description, Module
from services.executor.isolation.environment import Environment
from services.executor.isolation.requirements import Requirements, requirements_of
from services.executor.isolation.sandbox import Sandbox, stricter
from services.executor.needs import ToolNeeds, needs_of
from shared.errors import ArtifactError, ToolError, ToolNotFoundError, ToolParameterError

log = structlog.get_logger()

DESCRIPTIONS_KEPT = 1_000
BUNDLES_PINNED = 100
KEPT_AGAIN_SECONDS = 3_600.0
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


Stamp = tuple[tuple[int, int, int, int], ...]
"""What the file system says of each file of a tool."""


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
        self._folder = folder.resolve()
        self._describer = describer
        self._installer = installer
        self._kept = kept
        self._sandbox = sandbox
        self._bundles: dict[Path, tuple[Stamp, Bundle]] = {}
        self._newest: dict[str, tuple[str, float]] = {}
        self._pinned: dict[tuple[str, str], Bundle] = {}
        self._described: dict[Form, Description] = {}
        self._describing: dict[Form, asyncio.Lock] = {}

    def names(self) -> list[str]:
        """The names of all modules and packages that could be tools, sorted."""
        try:
            paths = [
                *self._folder.glob("*.py"),
                *(entry.parent for entry in self._folder.glob("*/__init__.py")),
            ]
        except OSError:
            return []
        return sorted({path.stem for path in paths if _NAME.fullmatch(path.stem)})

    def find(self, name: str) -> Module:
        """The code of `name` as it is on disk now.

        Raises:
            ToolNotFoundError: no such file or package, or not one inside the folder.
            ToolError: it can't be read.
        """
        path = self._path(name)
        return Module(name, path, self._read(name, path).digest)

    async def load(self, name: str, timeout_seconds: float) -> Tool:
        """The tool called `name` as it is on disk now, or as it was when it is a bundle reference.

        Raises:
            ToolNotFoundError: no such file or package, not one inside the folder, or not kept.
            ToolError: what breaks the contract, in the child's words.
        """
        module, bundle = await self._code(name)
        place, text = module.path.name, bundle.main.decode(errors="replace")
        needs = needs_of(f"{place}: [tool.fullsend]", text)
        environment = await self._installer.ensure(requirements_of(place, text))
        if environment.digest:
            module = replace(module, python=environment.python, environment=environment.digest)
        module = replace(module, sandbox=stricter(self._sandbox, needs.sandbox))
        return Tool(module, needs, await self._describe(module, timeout_seconds))

    async def _code(self, name: str) -> tuple[Module, Bundle]:
        """The code, and where it can be imported from."""
        reference = bundles.parse(name)
        if reference is not None:
            bundle = await self._restored(*reference)
            return await self._laid_out(bundle), bundle
        path = self._path(name)
        bundle = self._read(name, path)
        await self._keep(bundle)
        if bundle.is_package:
            return await self._laid_out(bundle), bundle
        return Module(name, path, bundle.digest), bundle

    async def _restored(self, name: str, digest: str) -> Bundle:
        known = self._pinned.get((name, digest))
        if known is not None:
            return known
        try:
            bundle = await asyncio.to_thread(self._kept.restore, name, digest)
        except ArtifactError as exc:
            raise ToolError(f"{name}@sha256:{digest} can't be read: {exc}") from None
        while len(self._pinned) >= BUNDLES_PINNED:
            del self._pinned[next(iter(self._pinned))]
        self._pinned[name, digest] = bundle
        return bundle

    async def _keep(self, bundle: Bundle) -> None:
        """Keep code that is new, or wasn't kept for a while; what is in use must not look old to `gc`.

        A store that can't be reached doesn't hold up the run.
        """
        newest = (bundle.digest, time.monotonic() // KEPT_AGAIN_SECONDS)
        if self._newest.get(bundle.name) == newest:
            return
        try:
            await asyncio.to_thread(self._kept.keep, bundle)
        except ArtifactError as exc:
            log.warning("tool.not_kept", tool=bundle.name, digest=bundle.digest[:12], error=str(exc))
        else:
            self._newest[bundle.name] = newest

    async def _laid_out(self, bundle: Bundle) -> Module:
        entry = self._kept.entry(bundle)
        try:
            if not entry.exists():
                await asyncio.to_thread(self._kept.lay_out, bundle)
        except OSError as exc:
            raise ToolError(f"{bundle.reference} can't be laid out: {exc}") from None
        main = hashlib.sha256(bundle.main).hexdigest() if bundle.is_package else ""
        return Module(bundle.name, entry, bundle.digest, main=main)

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

    def _read(self, name: str, path: Path) -> Bundle:
        try:
            stamp = _stamp(path)
            known = self._bundles.get(path)
            bundle = known[1] if known is not None and known[0] == stamp else bundles.read(name, path)
        except OSError as exc:
            raise ToolError(f"{path} can't be read: {exc.strerror or exc}") from None
        newest_ns = max(times[1] for times in stamp)
        if time.time_ns() - newest_ns > _SETTLED_NS:  # before that, the next change may leave no trace
            self._bundles[path] = (stamp, bundle)
        return bundle

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ToolNotFoundError(name, "a tool's name has letters, digits, '_' and '-' only")
        file, package = self._folder / f"{name}.py", self._folder / name
        is_file, is_package = file.is_file(), (package / bundles.ENTRY).is_file()
        if is_file and is_package:
            raise ToolError(f"{file} and {package} are both called '{name}'; remove or rename one of them")
        if not is_file and not is_package:
            raise ToolNotFoundError(name, f"there is no {file}")
        path = package if is_package else file
        if path.resolve().parent != self._folder:
            raise ToolNotFoundError(name, f"{path} leads out of the tools folder")
        return path


def _stamp(path: Path) -> Stamp:
    """What changes when any file of the code at `path` does."""
    files = bundles.files_of(path) if path.is_dir() else [path]
    stats = [file.lstat() if path.is_dir() else file.stat() for file in files]
    return tuple((one.st_mtime_ns, one.st_ctime_ns, one.st_size, one.st_ino) for one in stats)


if __name__ == "__main__":
    from services.executor.tryout import main  # the other way round for imports: it needs all of this

    sys.exit(main())
