"""The dependencies of a tool, read from the PEP 723 block of its file."""

import contextlib
import hashlib
import io
import json
import re
import tokenize
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from services.executor.isolation.environment.uv_settings import masked
from shared.errors import ToolError

# Part of every digest.  It changes when environments are built in another way.
LAYOUT = 3
_FIELDS = ("dependencies", "requires-python", "tool")

_OPENING, _CLOSING = "# /// script", "# ///"
_ALMOST_OPENING = re.compile(r"\s*#+\s*/{2,}\s*scripts?[\s:]*", re.IGNORECASE)
_ALMOST_CLOSING = re.compile(r"#\s*///\s*")


@dataclass(frozen=True, slots=True)
class Requirements:
    """The dependencies of a tool, each in its normal form.

    `exclude_newer` is a date, a time or an age, in uv's notation: packages that were uploaded later are
    ignored.  With `wheels_only`, no package may be built.
    """

    dependencies: tuple[str, ...] = ()
    requires_python: str | None = None
    exclude_newer: str | None = None
    wheels_only: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether the service's own environment is enough."""
        return not self.dependencies and self.requires_python is None

    def digest(self, interpreter: str, settings: Sequence[str] = ()) -> str:
        """The digest of these requirements, for an interpreter of this identity and these settings of uv."""
        asked = [self.requires_python, self.exclude_newer, self.wheels_only, *self.dependencies]
        parts = [LAYOUT, interpreter, [*settings], asked]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def requirements_of(place: str, text: str) -> Requirements:
    """The requirements in the PEP 723 block of a module; empty if there is no block.

    Of uv's own table, only `exclude-newer` is supported.  Anything else there is an error, because it would
    change what is installed.

    Args:
        place: the name of the file, for messages.
        text: its content.

    Raises:
        ToolError: the block can't be read or is invalid; says where and why.
    """
    block = block_of(place, text)
    unknown = block.keys() - set(_FIELDS)
    if unknown:
        raise ToolError(
            f"{place}: '{min(unknown)}' isn't a field of a script block; the fields are {', '.join(_FIELDS)}"
        )
    return Requirements(
        _dependencies(place, block.get("dependencies", [])),
        _requires_python(place, block.get("requires-python")),
        _exclude_newer(place, block),
    )


def block_of(place: str, text: str) -> dict[str, Any]:
    """The PEP 723 block of a module as a table; empty if it has none.  ToolError if it can't be read."""
    blocks = _script_blocks(place, text)
    if not blocks:
        return {}
    if len(blocks) > 1:
        raise ToolError(f"{place}: the file has {len(blocks)} `# /// script` blocks; PEP 723 allows one")
    try:
        return tomllib.loads("\n".join(line[2:] for line in blocks[0]))
    except tomllib.TOMLDecodeError as exc:
        raise ToolError(f"{place}: the script block isn't TOML: {exc}") from None


def _script_blocks(place: str, text: str) -> list[list[str]]:
    """The lines of each PEP 723 block of type `script`.

    Found in one pass: PEP 723's regular expression takes forever on a file that begins many blocks.

    Raises:
        ToolError: a block is not closed, or a line is almost one that begins or closes a block: by PEP 723
            it would be a mere comment, and what it asks for would be lost; names the line.
    """
    blocks: list[list[str]] = []
    block: list[str] | None = None
    almost: list[tuple[int, str]] = []
    begin = 0
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if block is not None and (line == "#" or line.startswith("# ")):
            block.append(line)
            continue
        if block is not None:
            if _CLOSING not in block:
                raise ToolError(f"{place}: {_unclosed(begin, block, number, line)}")
            if _CLOSING in block[1:]:
                closing = len(block) - 1 - block[::-1].index(_CLOSING)
                blocks.append(block[:closing])
        if line != _OPENING and _ALMOST_OPENING.fullmatch(line):
            almost.append((number, line))
        block, begin = ([] if line == _OPENING else None), number
    if almost:
        strings = _lines_of_strings(text)
        for number, line in almost:
            if number not in strings:
                raise ToolError(
                    f"{place}: line {number}, {line!r}, doesn't begin a script block; "
                    f"write exactly {_OPENING!r}"
                )
    return blocks


def _lines_of_strings(text: str) -> set[int]:
    """The numbers of the lines that begin inside a string; without those after the first error."""
    found: set[int] = set()
    with contextlib.suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE):
                found.update(range(token.start[0] + 1, token.end[0] + 1))
    return found


def _unclosed(begin: int, block: Sequence[str], number: int, line: str) -> str:
    """What is wrong with a block that begins in line `begin`, and was ended by `line`, with its number."""
    for inside, one in enumerate(block, begin + 1):
        if _ALMOST_CLOSING.fullmatch(one):
            return f"line {inside}, {one!r}, doesn't close the script block; write exactly {_CLOSING!r}"
    if line.startswith("#"):
        return f"line {number}, {line!r:.80}, is in a script block and has no space after '#'; insert one"
    return (
        f"the script block that begins in line {begin} is not closed: line {number} is not a comment; "
        f"end the block with a line {_CLOSING!r}"
    )


def _dependencies(place: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise ToolError(f"{place}: dependencies must be a list of strings, not {given!r:.80}")
    return tuple(
        sorted({_normal(f"{place}: dependencies[{index}]", item) for index, item in enumerate(given)})
    )


def _normal(place: str, given: Any) -> str:
    if not isinstance(given, str):
        raise ToolError(f"{place} must be a string, not {given!r:.80}")
    # Imported here, as below, because most tools have no dependencies.
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    shown = repr(masked(given))[:200]
    try:
        requirement = Requirement(given)
    except InvalidRequirement as exc:
        reason = masked(str(exc).splitlines()[0])
        raise ToolError(f"{place}: {shown} is not a requirement: {reason}") from None
    # uv would replace them by the service's variables.
    if "${" in given:
        raise ToolError(f"{place}: {shown}: a requirement must not contain variables")
    requirement.name = canonicalize_name(requirement.name)
    requirement.extras = {canonicalize_name(extra) for extra in requirement.extras}
    return str(requirement)


def _requires_python(place: str, given: Any) -> str | None:
    if given is None:
        return None
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    with contextlib.suppress(InvalidSpecifier):
        if isinstance(given, str):
            return str(SpecifierSet(given)) or None
    raise ToolError(f"{place}: requires-python {given!r:.80} is not a version specifier like '>=3.11'")


def _exclude_newer(place: str, block: Mapping[str, Any]) -> str | None:
    tool = block.get("tool", {})
    table = tool.get("uv", {}) if isinstance(tool, dict) else {}
    unknown = table.keys() - {"exclude-newer"} if isinstance(table, dict) else {"uv"}
    if unknown:
        raise ToolError(
            f"{place}: [tool.uv] '{min(unknown)}' isn't supported, only exclude-newer is; "
            "name a package from elsewhere as 'name @ URL', and have the operator set indexes"
        )
    given = table.get("exclude-newer")
    if given is None or not block.get("dependencies"):
        return None
    return given.isoformat() if isinstance(given, datetime) else str(given)
