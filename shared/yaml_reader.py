"""Reads YAML as plain values that JSON has; a large text in a process of its own.

A megabyte of YAML takes seconds to read.  `prepare` does that in another process, so that it holds nobody up;
`yaml_value` finds the result.
"""

import asyncio
import json
import math
import os
import sys
from collections import OrderedDict
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import yaml

from shared.documents import MAX_DEPTH, json_text, kind, not_a_number, shown
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
        raise ContractError(f"{place} is {kind(value)}; expected a YAML mapping")
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
        raise ContractError(f"{place} is not a YAML document: {problem}")
    return value


class _YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A safe loader that also limits what merge keys (`<<`) unfold into while a document is read."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_YAML_VALUES:
            raise _too_much()


def _read(text: str, finite: bool) -> tuple[Any, str]:
    """The value of a document, and what is wrong with it; empty if nothing is."""
    try:
        _check_size(text)
        value = yaml.load(text, Loader=_YamlLoader)  # noqa: S506  (a safe loader)
        return _plain(value, [MAX_YAML_VALUES], finite), ""
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        return None, " ".join(str(exc).split()) or type(exc).__name__


# Remembered, because the file of an experiment is read again for each of its runs.
_remembered = lru_cache(maxsize=256)(_read)


def _check_size(text: str) -> None:
    """Check depth and size before the document is built.

    That takes much longer than this, and libyaml's recursion would overflow the C stack.
    """
    depth = values = 0
    for event in yaml.parse(text, Loader=_YamlLoader):
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
            return {_key(key): _plain(item, budget, finite) for key, item in value.items()}
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


def _key(key: object) -> str:
    match key:
        case str():
            return key
        case date():
            return key.isoformat()
        case None | bool() | int() | float():
            return json.dumps(key)
        case _:
            raise ValueError(f"the key {shown(key)} has no form in JSON")


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
        return None, f"it couldn't be read in {READING_SECONDS:g} s; make it smaller, or store it as JSON"
    except (ValueError, OSError) as exc:
        reason = str(exc) if isinstance(exc, OSError) else "it ended without an answer"
        return None, f"it can't be read, as its reader failed ({reason}); change it, or store it as JSON"
    return value, str(problem)


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
