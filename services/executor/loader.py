"""Tool name -> Tool: its file, digest, entry point, parameters and what it asks for.

Nothing of a tool runs here.  Its file is read as text, and a child says the rest;
what it said is kept by the file's digest.
"""

import argparse
import ast
import asyncio
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import uv

from services.executor.isolation.calls import Description, Module
from services.executor.isolation.environment import Environment, Environments
from services.executor.isolation.pool import Pool
from services.executor.isolation.requirements import Requirements, requirements_of
from services.executor.needs import ToolNeeds, needs_of, passed_to_every_tool
from shared import log
from shared.errors import ToolError, ToolNotFoundError, ToolParameterError

MAX_FILE_BYTES = 4_000_000
DESCRIPTIONS_KEPT = 1_000
TEST_TIMEOUT_SECONDS = 60.0
ENVIRONMENTS = Path(".fullsend/environments")
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
    """

    def __init__(self, folder: Path, describer: Describer, installer: Installer) -> None:
        self._folder = folder.resolve()
        self._describer = describer
        self._installer = installer
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


def type_of(schema: Mapping[str, Any]) -> str:
    """The type that a JSON Schema names, in a word or two; empty when it names none."""
    match schema:
        case {"enum": list(values)}:
            return " | ".join(json.dumps(value, ensure_ascii=False) for value in values)
        case {"type": "array", "items": {"type": str(kind)}}:
            return f"{kind}[]"
        case {"type": str(kind)}:
            return kind
        case {"type": list(kinds)}:
            return " | ".join(map(str, kinds))
        case {"anyOf": list(choices)}:
            return " | ".join(type_of(one) or "any" for one in choices)
        case _:
            return ""


def _digest_and_text(path: Path, size_bytes: int) -> tuple[str, str]:
    if size_bytes > MAX_FILE_BYTES:
        raise ToolError(f"{path} is {size_bytes:,} bytes long; a tool's file may have {MAX_FILE_BYTES:,}")
    content = path.read_bytes()
    return hashlib.sha256(content).hexdigest(), content.decode(errors="replace")


# -- on the command line --------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m services.executor.loader --test tools/FILE.py`."""
    parser = argparse.ArgumentParser(
        prog="python -m services.executor.loader",
        description="Loads a tool in a child, as the executor would, and says what it is or what is wrong.",
    )
    parser.add_argument("--test", metavar="FILE", type=Path, required=True, help="a module in any folder")
    path = parser.parse_args(argv).test
    log.configure(level="error")
    try:
        print("\n".join(_told(asyncio.run(_tested(path)), path)))
    except ToolError as exc:
        print(f"error: {exc}{_defined_instead(path, str(exc))}", file=sys.stderr)
        return 1
    return 0


async def _tested(path: Path) -> Tool:
    """The tool in a file; the file's folder is its tools folder."""
    if path.suffix != ".py":
        raise ToolError(f"{path} is not a Python file; a tool is a module NAME.py with a function NAME")
    pool = Pool(capacity=1, environ=passed_to_every_tool(os.environ))
    environments = Environments(ENVIRONMENTS, uv=Path(uv.find_uv_bin()), environ=os.environ)
    await pool.start()
    try:
        return await Loader(path.parent, pool, environments).load(path.stem, TEST_TIMEOUT_SECONDS)
    finally:
        await pool.stop()


def _told(tool: Tool, path: Path) -> Iterator[str]:
    """What the tool is, and where each part of that is written."""
    said = tool.description
    place = f"{path}:{said.line}"
    yield f"Tool        {said.name}"
    yield f"Function    {said.entry}() at {place}, {said.kind}"
    yield from _under("About", said.summary or "(nothing; its docstring would say what it does)")
    yield "Parameters  names, types and defaults from the signature, descriptions from the docstring"
    properties = said.parameters.get("properties", {})
    for name, schema in properties.items():
        yield from _parameter(name, schema, name in said.parameters.get("required", ()))
    if said.parameters.get("additionalProperties"):
        yield "            any others by name"
    elif not properties:
        yield "            (none)"
    if said.returns:
        yield from _under("Returns", said.returns)
    needs = tool.needs.model_dump(exclude_defaults=True)
    if needs:
        yield f"Asks for    in the table [tool.fullsend] of its `# /// script` block in {path}"
    for name, value in needs.items():
        yield f"            {name} = {json.dumps(value, ensure_ascii=False)}"


def _parameter(name: str, schema: Mapping[str, Any], required: bool) -> Iterator[str]:
    kind = type_of(schema) or "any type (no annotation)"
    default = f"default {json.dumps(schema['default'], ensure_ascii=False)}" if "default" in schema else ""
    yield f"            {name}: {kind}, {'required' if required else default or 'optional'}"
    yield f"                {schema.get('description', '(not described)')}"


def _under(title: str, text: str) -> Iterator[str]:
    first, *others = text.splitlines()
    yield f"{title:<12}{first}"
    yield from (f"{'':<12}{line}".rstrip() for line in others)


def _defined_instead(path: Path, problem: str) -> str:
    """The functions that a file has in place of the one that it lacks, for the error message."""
    if "no function" not in problem:
        return ""
    try:
        module = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    names = [one.name for one in module.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return f"; it defines {', '.join(f'{name}()' for name in names)}" if names else "; it defines no function"


if __name__ == "__main__":
    sys.exit(main())
