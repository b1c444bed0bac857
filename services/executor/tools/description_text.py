"""The description of a tool as text for people."""

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Description


def described_lines(said: Description, needs: Mapping[str, Any], path: Path) -> Iterator[str]:
    """Yield the lines that describe a tool, and where each part is written.

    Args:
        said: what a child process has found out about it.
        needs: what its file asks for, by name.
        path: its file.
    """
    place = f"{path}:{said.line}"
    yield f"Tool        {said.name}"
    yield f"Function    {said.entry}() at {place}, {said.kind}"
    if said.module != said.name:
        text = f"another module is called {said.name}; `import {said.name}` imports that one, not this tool"
        yield from _under("Warning", text)
    yield from _under("About", said.summary or "(no docstring)")
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
    if needs:
        yield f"Asks for    in the table [tool.fullsend] of its `# /// script` block in {path}"
    for name, value in needs.items():
        yield f"            {name} = {json.dumps(value, ensure_ascii=False)}"


def _parameter(name: str, schema: Mapping[str, Any], required: bool) -> Iterator[str]:
    kind = type_name(schema) or "any type (no annotation)"
    default = f"default {json.dumps(schema['default'], ensure_ascii=False)}" if "default" in schema else ""
    yield f"            {name}: {kind}, {'required' if required else default or 'optional'}"
    yield f"                {schema.get('description', '(not described)')}"


def _under(title: str, text: str) -> Iterator[str]:
    first, *others = text.splitlines()
    yield f"{title:<12}{first}"
    yield from (f"{'':<12}{line}".rstrip() for line in others)


def defined_instead(path: Path, problem: str) -> str:
    """Return the names of a file's functions for the message that the tool's function is missing or none."""
    if "no function" not in problem and "not a function" not in problem:
        return ""
    try:
        module = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    names = [one.name for one in module.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    return f"; it defines {', '.join(f'{name}()' for name in names)}" if names else "; it defines no function"


def type_name(schema: Mapping[str, Any]) -> str:
    """Return the type in a JSON Schema as a few words; empty if there is none."""
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
            return " | ".join(type_name(one) or "any" for one in choices)
        case _:
            return ""
