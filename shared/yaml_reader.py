"""Reads YAML 1.2 as plain values that JSON has; a large text in a process of its own.

`1e-3` is a number, as in JSON; `12:30`, `0123`, `NO`, `1_000` and `2024-01-01` are texts.  A key is the text
that is written; one that is written twice is refused.

A megabyte of YAML takes seconds to read.  `prepare` does that in another process, so that it holds nobody up;
`yaml_value` finds the result.
"""

import asyncio
import json
import math
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import yaml

from shared.documents import MAX_DEPTH, is_deeper, json_text, kind, not_a_number, printable, shown
from shared.errors import ContractError

MAX_YAML_VALUES = 100_000
CHARACTERS_PER_YAML_VALUE = 100
"""A YAML text counts as one more value for each so many of its characters."""

LARGE_CHARACTERS = 5_000
"""A longer text may take 10 ms to read; it is prepared in a process, which takes 100 ms to start."""

PREPARED_CHARACTERS = 4_000_000
READERS = 2
READING_SECONDS = 30.0

_MAX_INTEGER_BITS = 14_000
"""Python refuses to print an integer that is much longer."""


def yaml_object(place: str, text: str) -> dict[str, Any]:
    """Return the YAML mapping in `text` with JSON's values: a date becomes a text.

    Raises:
        ContractError: `text` is not one YAML mapping, or has no form in JSON; names `place`.
    """
    value = yaml_value(place, text)
    if not isinstance(value, dict):
        found = "empty" if value is None else kind(value)
        raise ContractError(f"{place} is {found}; expected a YAML mapping")
    return value


def yaml_value(place: str, text: str, *, finite: bool = True) -> Any:
    """Return the value of the YAML document in `text`, as `yaml_object` does; None if it is empty.

    Args:
        place: where the text is, for error messages.
        text: the document.
        finite: refuse numbers that are not finite, because JSON has none.

    Raises:
        ContractError: `text` is not one YAML document, or has no form in JSON; names `place`.
    """
    if len(text) <= LARGE_CHARACTERS:
        value, problem = _remembered(text, finite)
    else:
        value, problem = _prepared.get((text, finite)) or _read(text, finite)
    if problem:
        raise ContractError(f"{place} {problem}")
    return value


# -- YAML 1.2 ---------------------------------------------------------------------------

_KINDS = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("merge", r"<<", "<"),
)
"""What a plain scalar is: YAML 1.2 with its core schema, without leading zeros of numbers, as in JSON."""


class YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader of YAML 1.2 that limits what merge keys (`<<`) unfold into while a document is read."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - where PyYAML looks for them
    refuses_keys = True

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._checked: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        if (
            self.refuses_keys and id(node) not in self._checked
        ):  # what is merged into it may be written in it as well
            self._checked.add(id(node))
            _check_keys(node)
        super().flatten_mapping(node)
        if len(node.value) > MAX_YAML_VALUES:
            raise _too_much()

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise yaml.constructor.ConstructorError(None, None, "expected a mapping", node.start_mark)
        self.flatten_mapping(node)
        return {
            key.value: self.construct_object(value, deep=deep)
            for key, value in node.value
            if isinstance(key, yaml.ScalarNode)
        }


for _name, _pattern, _first in _KINDS:
    # The last argument is the characters that such a scalar begins with; an empty one is null.
    _begins = [*_first, ""] if _name == "null" else list(_first)
    YamlLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _begins)


class _LenientLoader(YamlLoader):
    """Reads a document whose keys are wrong as well, to find its other mistakes."""

    refuses_keys = False


class _KeyError(ValueError):
    """A key that can't be read, or is there twice."""


def _check_keys(node: yaml.MappingNode) -> None:
    for mistake in _key_mistakes(node):
        raise _KeyError(mistake)


def _key_mistakes(node: yaml.MappingNode) -> Iterator[str]:
    """Refuse a key that is no scalar, or that is written twice: YAML would silently keep the last."""
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            kind_of_key = "a list" if isinstance(key, yaml.SequenceNode) else "a mapping"
            yield (
                f"has {kind_of_key} as a key in line {line}; "
                "put a text that begins with a bracket or a brace in quotes"
            )
        elif key.value in lines:
            where = f"lines {lines[key.value]} and {line}" if lines[key.value] != line else f"line {line}"
            yield f"has '{printable(key.value)}' twice, in {where}; leave one out"
        else:
            lines[key.value] = line


class Outline(NamedTuple):
    """Where the keys of a document are, for messages to its author.

    `lines` has the line of each key by its path, `mistakes` are those of keys, which `yaml_value` refuses or
    others read as something else, and `value` is what the document says apart from these.
    """

    value: Any
    lines: Mapping[tuple[str, ...], int]
    mistakes: Sequence[str]


def yaml_outline(text: str) -> Outline:
    """Return the outline of a document that `yaml_value` would read but for its keys; empty for any other."""
    lines: dict[tuple[str, ...], int] = {}
    mistakes: list[str] = []
    try:
        _check_size(text)
        found: list[tuple[tuple[str, ...], Any]] = [((), yaml.compose(text, Loader=YamlLoader))]
        value = _plain(yaml.load(text, Loader=_LenientLoader), [MAX_YAML_VALUES], finite=True)  # noqa: S506
    except (yaml.YAMLError, ValueError, RecursionError):
        return Outline(None, {}, ())
    seen: set[int] = set()
    for path, node in found:
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))
        mistakes += _key_mistakes(node)
        for key, inner in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                lines.setdefault((*path, key.value), line)
                found.append(((*path, key.value), inner))
                if not key.style and _NO_TEXT_IN_YAML_1_1.fullmatch(key.value):
                    mistakes.append(
                        f"has the key {key.value} in line {line}, which other readers of YAML take for "
                        "true, false or null; put it in quotes"
                    )
    return Outline(value, lines, mistakes)


_NO_TEXT_IN_YAML_1_1 = re.compile(r"yes|no|on|off|true|false|null|~", re.IGNORECASE)


def _explained(exc: yaml.YAMLError, text: str) -> str:
    """What is wrong with a document, with its line, and what to do about it if that can be told."""
    mark = getattr(exc, "problem_mark", None)
    if mark is None:
        return " ".join(str(exc).split())
    problem = " ".join(str(getattr(exc, "problem", "") or exc).split())
    start = getattr(exc, "context_mark", None) or mark
    return f"line {mark.line + 1}: {problem}{_hint(problem, text.split(chr(10)), start, mark)}"


def _hint(problem: str, lines: list[str], start: yaml.Mark, mark: yaml.Mark) -> str:
    for wording, hint in _HINTS.items():
        if wording in problem:
            return f"; {hint}"
    for at in (start, mark):
        line = lines[at.line] if at.line < len(lines) else ""
        if line[at.column : at.column + 1] == "\t":
            return "; indent with blanks, not with tabs"
        if (value := _NEEDS_QUOTES.search(line)) and value.start("text") <= at.column:
            quoted = json.dumps(value["text"], ensure_ascii=False)
            return f"; a text that begins with {value['text'][0]} has to be in quotes, such as {quoted}"
    return ""


_NEEDS_QUOTES = re.compile(r"(?:^|[:-]\s|[\[{,])\s*(?P<text>[*&!%@`].*?)(?:\s+#.*|\s*[\]}].*|\s*)$")
"""A value that begins with a character which means something else to YAML."""

_HINTS = {
    "mapping values are not allowed": (
        "check the indentation; a text with a colon and a blank in it has to be in quotes"
    ),
    "unknown escape": "in double quotes, write a backslash twice, or use single quotes",
    "another document": "write one document only",
}
"""What to do, by a part of PyYAML's message."""


def _read(text: str, finite: bool) -> tuple[Any, str]:
    """The value of a document, and what is wrong with it; empty if nothing is."""
    try:
        value = _json_in(text)
        if value is not None:
            return _plain(value, [MAX_YAML_VALUES], finite), ""
        _check_size(text)
        value = yaml.load(text, Loader=YamlLoader)  # noqa: S506  (a safe loader)
        return _plain(value, [MAX_YAML_VALUES], finite), ""
    except _KeyError as exc:
        return None, str(exc)
    except yaml.YAMLError as exc:
        return None, _no_document(_explained(exc, text))
    except (ValueError, RecursionError) as exc:
        return None, _no_document(" ".join(str(exc).split()) or type(exc).__name__)


def _json_in(text: str) -> Any:
    """The object in a text that is JSON, for YAML hasn't each of its escapes; None if it isn't."""
    if text.lstrip()[:1] != "{":
        return None
    try:
        value = json.loads(text, object_pairs_hook=_distinct)
    except json.JSONDecodeError:
        return None
    return None if is_deeper(text, MAX_DEPTH) else value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise _KeyError(f"has an object with two members '{printable(name)}'; leave one out")
        members[name] = value
    return members


def _no_document(reason: str) -> str:
    return f"is not a YAML document: {reason}"


# Remembered, because the file of an experiment is read again for each of its runs.
_remembered = lru_cache(maxsize=256)(_read)


def _check_size(text: str) -> None:
    """Check depth and size before the document is built.

    That takes much longer than this, and libyaml's recursion would overflow the C stack.
    """
    depth = values = 0
    for event in yaml.parse(text, Loader=YamlLoader):
        values += isinstance(event, yaml.NodeEvent)
        if values > 2 * MAX_YAML_VALUES:  # keys are none
            raise _too_much()
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _plain(value: Any, budget: list[int], finite: bool) -> Any:
    """YAML's value as JSON has it; ValueError if its aliases unfold into more than `budget` values."""
    budget[0] -= 1 + (len(value) // CHARACTERS_PER_YAML_VALUE if isinstance(value, str) else 0)
    if budget[0] < 0:
        raise _too_much()
    match value:
        case dict():
            return {key: _plain(item, budget, finite) for key, item in value.items()}
        case list() | set() | tuple():
            return [_plain(item, budget, finite) for item in value]
        case None | str() | bool():
            return value
        case int() | float():
            return _number(value, finite)
        case date():
            return value.isoformat()
        case _:
            raise ValueError(f"{shown(value)} has no form in JSON")


def _number(value: float, finite: bool) -> float:
    if isinstance(value, int) and value.bit_length() > _MAX_INTEGER_BITS:
        raise ValueError("it has a number with too many digits")
    return not_a_number(str(value)) if finite and not math.isfinite(value) else value


def _too_much() -> ValueError:
    characters = MAX_YAML_VALUES * CHARACTERS_PER_YAML_VALUE
    return ValueError(f"it holds more than {MAX_YAML_VALUES:,} values or {characters:,} characters")


# -- in a process of its own ------------------------------------------------------------

_prepared: OrderedDict[tuple[str, bool], tuple[Any, str]] = OrderedDict()
_readers: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()
_ROOT = Path(__file__).parents[1]
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from shared.yaml_reader import main; main()"


async def prepare(text: str) -> None:
    """Read a text, if it is large, such that `yaml_value` takes no time if it is called right after this.

    If the process fails or takes more than READING_SECONDS, `yaml_value` refuses the text.
    """
    key = (text, True)
    if len(text) <= LARGE_CHARACTERS:
        return
    if key not in _prepared:
        async with _readers.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(READERS)):
            if key not in _prepared:
                _prepared[key] = await _read_apart(text)
    _prepared.move_to_end(key)
    while len(_prepared) > 1 and sum(len(one) for one, _ in _prepared) > PREPARED_CHARACTERS:
        _prepared.popitem(last=False)


async def _read_apart(text: str) -> tuple[Any, str]:
    """The same as `_read`, for finite numbers; a text that the process couldn't read is refused."""
    try:
        async with asyncio.timeout(READING_SECONDS):
            value, problem = json.loads(await _output_of_reader(text.encode(errors="surrogatepass")))
    except TimeoutError:
        reason = f"it couldn't be read in {READING_SECONDS:g} s; make it smaller, or store it as JSON"
    except (ValueError, OSError) as exc:
        failed = str(exc) if isinstance(exc, OSError) else "it ended without an answer"
        reason = f"it can't be read, as its reader failed ({failed}); change it, or store it as JSON"
    else:
        return value, str(problem)
    return None, _no_document(reason)


async def _output_of_reader(text: bytes) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", _PROGRAM, str(_ROOT),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
    )  # fmt: skip
    try:
        output, _ = await process.communicate(text)
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return output


def main() -> None:
    """Read the text on stdin, and print its value and what is wrong with it, as JSON."""
    os.nice(10)
    text = sys.stdin.buffer.read().decode(errors="surrogatepass")
    print(json_text(_read(text, True)))
