"""The registered tools, and their parameters in one line."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from services.executor.store import Store
from services.executor.tools.description_text import type_name
from services.operations import words
from shared.errors import ContractError

Registered = dict[str, Any]


async def all_registered(store: Store) -> list[Registered]:
    """Return all registered tools, sorted by name."""
    found = [_registered(name, fields) async for name, fields in store.experiments.scan_tools()]
    living = await store.workers.tools_of_living() if await store.workers.alive() else None
    if living is not None:
        for one in found:  # as the workers will write it soon
            if one.get("described_by") and one["name"] not in living:
                one["state"] = "missing"
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
        "status": "unknown", "state": "", "description": "", "error": "", "path": "", "digest": "",
        "provisional": "",
        **fields,
        "name": name,
        "parameters": words.parse_json(fields.get("parameters")),
    }  # fmt: skip


async def registered_tool(store: Store, name: str) -> Registered | None:
    """Return what is registered of one tool, also for a name with a digest (`name@sha256:...`)."""
    plain = name.partition("@")[0]
    found = await store.experiments.read_tools([plain])
    return _registered(plain, found[plain]) if plain in found else None
