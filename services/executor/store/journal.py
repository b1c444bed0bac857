"""The journal: every metric event and every result, in order, for whoever asks later."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.executor.store.scripts import Scripts, asking
from shared import keys

READ_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """One message.  `kind` is `metric` or `result`; reading after `cursor` goes on behind it."""

    cursor: str
    kind: str
    data: Mapping[str, Any]


class Journal:
    """Reads what was said, from any point on.

    Args:
        scripts: for commands.
        patient: a client whose blocking reads may take for ever.
    """

    def __init__(self, scripts: Scripts, patient: Redis) -> None:
        self._scripts = scripts
        self._patient: Any = patient

    async def end(self) -> str:
        """The cursor behind all that was said so far."""
        async with asking("journal"):
            last = await self._scripts.client.xrevrange(keys.journal(), count=1)
        return str(last[0][0]) if last else "0-0"

    async def read(self, cursor: str, wait_ms: int | None = None) -> list[Entry]:
        """What was said after `cursor`, oldest first; waits up to `wait_ms` when there is nothing."""
        async with asking("journal"):
            answer = await self._patient.xread({keys.journal(): cursor}, count=READ_AT_ONCE, block=wait_ms)
        return [
            Entry(entry, fields["kind"], json.loads(fields["data"]))
            for _, entries in answer or ()
            for entry, fields in entries
        ]
