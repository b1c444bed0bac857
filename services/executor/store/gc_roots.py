"""The artifacts that keys of the executor refer to; garbage collection deletes all others.

Everything that may be a reference counts, therefore: every SHA-256 in any text, and in keys of any type.
Reads only.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.executor.store.claims import QUEUES
from services.executor.store.experiments import READ
from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.errors import StoreError

READ_AT_ONCE: Final = 20
"""Records may hold megabytes of inline artifacts each."""

ENTRIES_AT_ONCE: Final = 1_000

PLACES: Final = (
    keys.EXPERIMENT_PATTERN,
    keys.tool("*"),
    *(*QUEUES, keys.retries(), keys.blocked("*"), *QUEUES),  # orders move between these in both directions
    keys.checkpoints("*"),
    keys.partials("*"),
    keys.artifacts("*"),
    keys.cached("*"),
    keys.run("*"),
)
"""Where references are, in the order in which they move: one that leaves a place is found in a later one."""

_ADDRESS: Final = re.compile(r"[0-9a-f]{64}(?![0-9a-f])")
_PINNED: Final = re.compile(r"@sha256:([0-9a-f]{64})")
_CODE_FIELDS: Final = ("tool_digest", "digest")


@dataclass(frozen=True, slots=True)
class ReferencedDigests:
    """SHA-256 digests that are mentioned.

    Attributes:
        addresses: may be addresses of artifacts.
        code: may be addresses of tools: a file each, or a manifest.
    """

    addresses: frozenset[str]
    code: frozenset[str]


class GcRoots:
    """Finds the digests that records refer to, and everything that becomes a record."""

    def __init__(self, scripts: Scripts, entries_at_once: int = ENTRIES_AT_ONCE) -> None:
        self._scripts = scripts
        self._client: Any = scripts.client
        self._entries_at_once = entries_at_once

    async def all(self) -> ReferencedDigests:
        """Every digest that is mentioned anywhere.

        Raises:
            StoreError: not everything could be read.
        """
        addresses: set[str] = set()
        code: set[str] = set()
        for place in PLACES:
            async for name, kind, content in self._read(place):
                if kind == "hash":
                    fields = _pairs(content)
                    code.update(fields[one] for one in _CODE_FIELDS if _is_address(fields.get(one)))
                async for text in self._texts(name, kind, content):
                    addresses.update(_ADDRESS.findall(text))
                    code.update(_PINNED.findall(text))
        return ReferencedDigests(frozenset(addresses), frozenset(code))

    async def records(self) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """Every record, with the id of its run, in no order; some may come twice."""
        prefix = len(keys.run(""))
        async for name, kind, content in self._read(keys.run("*")):
            if kind == "hash":
                yield name[prefix:], _pairs(content)

    # -- steps -------------------------------------------------------------------------

    async def _read(self, place: str) -> AsyncIterator[tuple[str, str, Any]]:
        """Name and type of each key that exists at a place, and the content of a hash or a string."""
        async for names in self._names(place):
            for start in range(0, len(names), READ_AT_ONCE):
                some = names[start : start + READ_AT_ONCE]
                answer = await self._scripts.call(READ, some)
                for name, (kind, content) in zip(some, answer, strict=True):
                    if kind != "none":
                        yield name, kind, content

    async def _names(self, place: str) -> AsyncIterator[Sequence[str]]:
        if not place.endswith("*"):
            yield [place]
            return
        cursor = 0
        while True:
            async with asking("references"):
                cursor, found = await self._client.scan(cursor, match=place, count=1_000)
            yield found
            if cursor == 0:
                return

    async def _texts(self, name: str, kind: str, content: Any) -> AsyncIterator[str]:
        match kind:
            case "hash":
                for text in content:
                    yield text
            case "string":
                yield content
            case "stream":
                async for text in self._entries(name):
                    yield text
            case "list" | "set" | "zset":
                for text in await self._members(name, kind):
                    yield text
            case _:
                raise StoreError(f"references: {name} is a Redis {kind}, in which references can't be found")

    async def _entries(self, name: str) -> AsyncIterator[str]:
        after = "-"
        while True:
            async with asking("references"):
                entries = await self._client.xrange(name, min=after, count=self._entries_at_once)
            for _, fields in entries:
                for text in (fields or {}).values():
                    yield text
            if len(entries) < self._entries_at_once:
                return
            after = f"({entries[-1][0]}"

    async def _members(self, name: str, kind: str) -> list[str]:
        async with asking("references"):
            if kind == "list":
                found = await self._client.lrange(name, 0, -1)
            elif kind == "set":
                found = await self._client.smembers(name)
            else:
                found = await self._client.zrange(name, 0, -1)
        return list(found)


def _is_address(text: str | None) -> bool:
    return text is not None and _ADDRESS.fullmatch(text) is not None


def _pairs(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
