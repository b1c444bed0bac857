"""Tries a tool's file as the executor would: `python -m services.executor.loader --test tools/FILE.py`."""

import argparse
import ast
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import uv

from services.executor.artifacts import LocalBlobs
from services.executor.isolation.environment.environments import Environments
from services.executor.isolation.pool import Pool
from services.executor.loader import Loader, Tool
from services.executor.policy import allowed_environment
from services.executor.tools.bundles import ENTRY, Bundles
from shared import log
from shared.errors import ToolError

TEST_TIMEOUT_SECONDS = 60.0
ENVIRONMENTS = Path(".fullsend/environments")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m services.executor.loader --test tools/FILE.py`."""
    parser = argparse.ArgumentParser(
        prog="python -m services.executor.loader",
        description="Loads a tool in a child, as the executor would, and says what it is or what is wrong.",
    )
    parser.add_argument(
        "--test", metavar="FILE", type=Path, required=True, help="a module or a package, in any folder"
    )
    path = parser.parse_args(argv).test
    log.configure(level="error")
    try:
        print("\n".join(_told(asyncio.run(_tested(path)), path)))
    except ToolError as exc:
        print(f"error: {exc}{_defined_instead(path, str(exc))}", file=sys.stderr)
        return 1
    return 0


async def _tested(path: Path) -> Tool:
    """The tool in a file or a package; its folder is the tools folder."""
    if path.suffix != ".py" and not (path / ENTRY).is_file():
        raise ToolError(
            f"{path} is not a Python file; a tool is a module NAME.py with a function NAME, "
            f"or a package: a directory with an {ENTRY}"
        )
    pool = Pool(capacity=1, environ=allowed_environment(os.environ))
    environments = Environments(ENVIRONMENTS, uv=Path(uv.find_uv_bin()), environ=os.environ)
    await pool.start()
    try:
        with tempfile.TemporaryDirectory() as place:
            kept = Bundles(LocalBlobs(Path(place, "blobs")), Path(place, "bundles"))
            loader = Loader(path.parent, pool, environments, kept)
            return await loader.load(path.stem, TEST_TIMEOUT_SECONDS)
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
