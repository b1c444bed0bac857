"""`fullsend tools`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from services.cli import connection, output
from services.cli.output import AsJson, Column
from services.executor.loader import type_name
from services.executor.store import Store
from shared.errors import ContractError

COLUMNS = [Column("TOOL"), Column("STATUS"), Column("ABOUT", wraps=True), Column("PARAMETERS", wraps=True)]

Registered = dict[str, Any]


def tools(
    as_json: AsJson = False,
) -> None:
    """List the registered tools, their parameters and their errors.

    Workers register the tools in their tools folder. To check a file before that, run
    `python -m services.executor.loader --test tools/FILE.py`.
    """
    found = connection.with_store(all_registered)
    if as_json:
        output.print_json(found)
        return
    out = output.console()
    if not found and out.is_terminal:
        out.print("no tools are registered; a worker registers the tools in its tools folder")
        return
    rows = [
        [
            one["name"],
            output.styled(one["status"]),
            Text(output.one_line(one["error"]), "red") if one["error"] else _first_line(one["description"]),
            signature(one["parameters"]),
        ]
        for one in found
    ]
    output.table(COLUMNS, rows, out)


async def all_registered(store: Store) -> list[Registered]:
    """Return all registered tools, sorted by name."""
    found = [_registered(name, fields) async for name, fields in store.experiments.scan_tools()]
    return sorted(found, key=lambda one: str(one["name"]))


def signature(schema: object) -> str:
    """Return a JSON schema of parameters as one line: `param1: string, param2: integer = 10`.

    A parameter that may be left out without a default ends with `= ...`; a final `...` means that the tool
    takes other parameters too.  A schema that can't be read gives an empty line.
    """
    if not isinstance(schema, Mapping) or not isinstance(schema.get("properties"), Mapping):
        return ""
    required = schema.get("required")
    parts = list(_parameters(schema["properties"], required if isinstance(required, list) else []))
    return ", ".join([*parts, "..."] if schema.get("additionalProperties") else parts)


def _parameters(properties: Mapping[str, Any], required: list[Any]) -> Iterator[str]:
    for name, schema in properties.items():
        kind = type_name(schema) if isinstance(schema, Mapping) else ""
        text = f"{name}: {kind}" if kind else name
        if isinstance(schema, Mapping) and "default" in schema:
            text += f" = {json.dumps(schema['default'], ensure_ascii=False)}"
        elif name not in required:
            text += " = ..."
        yield text


def _registered(name: str, fields: Mapping[str, str] | ContractError) -> Registered:
    if isinstance(fields, ContractError):
        fields = {"status": "invalid", "error": str(fields)}
    return {
        "status": "unknown", "description": "", "error": "", "path": "", "digest": "",
        **fields,
        "name": name,
        "parameters": output.parse_json(fields.get("parameters")),
    }  # fmt: skip


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
