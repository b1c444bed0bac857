"""Tool name -> Tool: its file, digest, entry point, parameters and what it asks for.

Nothing of a tool runs here.  Its file is read as text, and a child says the rest;
what it said is kept by the file's digest.
"""

import asyncio
import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from services.executor.isolation.calls import Description, Module
from shared.documents import validated
from shared.errors import ContractError, ToolError, ToolNotFoundError, ToolParameterError

MAX_FILE_BYTES = 4_000_000
DESCRIPTIONS_KEPT = 1_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
# PEP 723's own expression for a block of inline metadata.
_BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


class ToolNeeds(BaseModel):
    """The table `[tool.fullsend]` in a tool's PEP 723 block: what it asks for, read without running it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    environment: tuple[str, ...] = ()
    isolation: Literal["warm", "fork", "spawn"] | None = None
    timeout_seconds: Annotated[float | None, Field(gt=0)] = None
    memory_mb: Annotated[int | None, Field(gt=0)] = None
    cpu_seconds: Annotated[int | None, Field(gt=0)] = None
    file_size_mb: Annotated[int | None, Field(gt=0)] = None
    open_files: Annotated[int | None, Field(gt=0)] = None
    processes: Annotated[int | None, Field(gt=0)] = None


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


class Describer(Protocol):
    """Asks a child what a module says of itself."""

    async def describe(self, module: Module, timeout_seconds: float) -> Description:
        """Raises `ToolError` for a module that breaks the contract."""


class Loader:
    """Looks tools up in one folder.

    Args:
        folder: where the modules are; links that lead out of it are refused.
        describer: answers for the code.
    """

    def __init__(self, folder: Path, describer: Describer) -> None:
        self._folder = folder.resolve()
        self._describer = describer
        self._digests: dict[Path, tuple[tuple[int, int, int], str, str]] = {}
        self._described: dict[str, Description] = {}
        self._describing: dict[str, asyncio.Lock] = {}

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
        return Tool(module, needs, await self._describe(module, timeout_seconds))

    async def _describe(self, module: Module, timeout_seconds: float) -> Description:
        known = self._described.get(module.digest)
        if known is not None:
            return known
        # One child answers for a new digest, however many runs are waiting for it.
        async with self._describing.setdefault(module.digest, asyncio.Lock()):
            if module.digest not in self._described:
                self._remember(module.digest, await self._describer.describe(module, timeout_seconds))
        return self._described[module.digest]

    def _remember(self, digest: str, description: Description) -> None:
        while len(self._described) >= DESCRIPTIONS_KEPT:
            oldest = next(iter(self._described))
            del self._described[oldest]
            self._describing.pop(oldest, None)
        self._described[digest] = description

    def _read(self, name: str) -> tuple[Module, str]:
        path = self._path(name)
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if path not in self._digests or self._digests[path][0] != stamp:
                self._digests[path] = (stamp, *_digest_and_text(path, stat.st_size))
        except OSError as exc:
            raise ToolError(f"{path} can't be read: {exc.strerror or exc}") from None
        _, digest, text = self._digests[path]
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


def needs_of(place: str, text: str) -> ToolNeeds:
    """What the PEP 723 block of a module asks for.

    Raises:
        ToolError: the block can't be read; says where and why.
    """
    blocks = list(_BLOCK.finditer(text))
    if not blocks:
        return ToolNeeds()
    if len(blocks) > 1:
        raise ToolError(f"{place}: the file has {len(blocks)} `# /// script` blocks; PEP 723 allows one")
    lines = blocks[0]["content"].splitlines()
    try:
        table = tomllib.loads("\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines))
        return validated(ToolNeeds, place, table.get("tool", {}).get("fullsend", {}))
    except (tomllib.TOMLDecodeError, ContractError) as exc:
        raise ToolError(f"{place}: {exc}") from None


def _digest_and_text(path: Path, size_bytes: int) -> tuple[str, str]:
    if size_bytes > MAX_FILE_BYTES:
        raise ToolError(f"{path} is {size_bytes:,} bytes long; a tool's file may have {MAX_FILE_BYTES:,}")
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), content.decode(errors="replace")
