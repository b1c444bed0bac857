"""Triggers: who answers for a message that every worker heard."""

import json
from collections.abc import Mapping
from typing import Any

from services.executor.store.queue import BITMAP_KEPT_MS, Position
from services.executor.store.scripts import Scripts, asking
from shared import keys


class Triggers:
    """The workers' agreement on the order of messages."""

    def __init__(self, scripts: Scripts, journal_kept: int) -> None:
        self._scripts = scripts
        self._journal_kept = journal_kept

    async def send(self, channel: str, message: Mapping[str, Any]) -> int:
        """Ask for a run as any neighbour would; returns how many heard it."""
        async with asking("trigger"):
            return int(await self._scripts.client.publish(channel, json.dumps(message, ensure_ascii=False)))

    async def join(self, worker: str, marker: str, ttl_seconds: float) -> bool:
        """Publish `marker`; True when this worker answers for what it heard before any marker."""
        answer = await self._scripts.call(
            "join", [keys.listeners()], [worker, marker, keys.MARKERS, round(ttl_seconds * 1_000)]
        )
        return bool(answer)

    async def refuse(self, position: Position, result: Mapping[str, Any]) -> bool:
        """Publish `result` for a message that can't be a run; False when another worker had."""
        answer = await self._scripts.call(
            "refuse",
            [keys.admitted(position.marker), keys.journal()],
            [position.count, BITMAP_KEPT_MS, json.dumps(result, ensure_ascii=False), self._journal_kept],
        )
        return bool(answer)

    async def announce(self, result: Mapping[str, Any]) -> None:
        """Publish `result` about a key that can't be read."""
        await self._scripts.call(
            "announce", [keys.journal()], [json.dumps(result, ensure_ascii=False), self._journal_kept]
        )
