"""Reads docstrings in Google's style."""

from __future__ import annotations

import inspect
import re

_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns|Return|Yields|Raises|Examples?|Notes?):\s*$")
_ARGUMENT = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")


def sections(text: str) -> dict[str, str]:
    """The docstring by section; the part before the first section is under the empty name."""
    found: dict[str, list[str]] = {"": []}
    current = ""
    for line in text.splitlines():
        heading = _SECTION.match(line)
        if heading:
            current = {"Arguments": "Args", "Parameters": "Args", "Return": "Returns"}.get(
                heading[1], heading[1]
            )
            found.setdefault(current, [])
        else:
            found[current].append(line)
    return {name: inspect.cleandoc("\n".join(lines)).strip() for name, lines in found.items()}


def arguments(text: str) -> dict[str, str]:
    """The descriptions in a Google-style `Args:` section, by parameter."""
    described: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        found = None if line.startswith((" ", "\t")) else _ARGUMENT.match(line)
        if found:
            name = found[1]
            described[name] = found[2].strip()
        elif name and line.strip():
            described[name] = f"{described[name]} {line.strip()}".strip()
    return described
