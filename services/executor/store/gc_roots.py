"""What the executor's keys say of a store of artifacts; for those who look after that store.

Reads only.  What isn't found here may be deleted, so nothing is left out that
could be meant: every SHA-256 in a text counts, in whatever words, and a key of
an unexpected type is read like any other.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from services.executor.store.experiments import READ
from services.executor.store.queue import QUEUES
from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.errors import StoreError

READ_AT_ONCE: Final = 20
"""Records may hold megabytes of inline artifacts each."""

ENTRIES_AT_ONCE: Final = 1_000

PLACES: Final = (
    keys.EXPERIMENT_PATTERN,
    keys.tool("*"),
    *(*QUEUES, keys.retries(), keys.blocked("*"), *QUEUES),  # orders go back and forth between these
    keys.effects("*"),
    keys.artifacts("*"),
    keys.cached("*"),
    keys.run("*"),
)
"""Where references are, in the order in which they travel: what has left one is found in a later one."""

_ADDRESS: Final = re.compile(r"[0-9a-f]{64}(?![0-9a-f])")
_PINNED: Final = re.compile(r"@sha256:([0-9a-f]{64})")
_CODE_FIELDS: Final = ("tool_digest", "digest")


@dataclass(frozen=True, slots=True)
class Referred:
    """SHA-256 digests that may be addresses.  `code` are those of tools: a file each, or a manifest."""

    addresses: frozenset[str]
    code: frozenset[str]


class References:
    """Reads what records and all that leads to them refer to."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts
        self._client: Any = scripts.client

    async def all(self) -> Referred:
        """Every digest that is mentioned anywhere.

        Raises:
            StoreUnavailableError, StoreError: not everything could be read.
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
        return Referred(frozenset(addresses), frozenset(code))

    async def records(self) -> AsyncIterator[tuple[str, dict[str, str]]]:
        """Every record of a run under the run's id, some maybe twice, in no order."""
        prefix = len(keys.run(""))
        async for name, kind, content in self._read(keys.run("*")):
            if kind == "hash":
                yield name[prefix:], _pairs(content)

    # -- steps -------------------------------------------------------------------------

    async def _read(self, place: str) -> AsyncIterator[tuple[str, str, Any]]:
        """Name, type and, for a hash or a string, content of each key at a place; none that is not there."""
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
                raise StoreError(f"references: {name} is a Redis {kind}, and nobody knows what it refers to")

    async def _entries(self, name: str) -> AsyncIterator[str]:
        after = "-"
        while True:
            async with asking("references"):
                entries = await self._client.xrange(name, min=after, count=ENTRIES_AT_ONCE)
            for _, fields in entries:
                for text in (fields or {}).values():
                    yield text
            if len(entries) < ENTRIES_AT_ONCE:
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
