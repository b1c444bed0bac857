"""Triggers: who answers for a message that every worker heard."""

import math
import secrets
from collections.abc import Mapping
from typing import Any

from services.executor.store.queue import BITMAP_KEPT_MS, RESENT_WITHIN_MS, Position
from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.documents import json_text

_JOIN = Script(
    "join",
    keys=("listeners", "ears", "bitmap"),
    args=("worker", "marker", "channel", "ttl_ms", "bitmap_kept_ms", "ear"),
)
_REFUSE = Script(
    "refuse", keys=("admitted", "journal"), args=("bit", "bitmap_kept_ms", "result", "journal_cap")
)
_ANNOUNCE = Script("announce", keys=("journal", "mark"), args=("result", "journal_cap", "mark_kept_ms"))


class Triggers:
    """The workers' agreement on the order of messages."""

    def __init__(self, scripts: Scripts, journal_kept: int) -> None:
        self._scripts = scripts
        self._journal_kept = journal_kept

    async def send(self, channel: str, message: Mapping[str, Any]) -> int:
        """Ask for a run as any neighbour would; returns how many heard it."""
        async with asking("trigger"):
            return int(await self._scripts.client.publish(channel, json_text(message)))

    async def join(self, worker: str, ear: str, marker: str, ttl_seconds: float) -> bool:
        """Publish `marker`; True when what was heard before it is still to be admitted, as it says itself.

        Args:
            worker: its name.
            ear: the channel that it hears on the connection of its subscription.
            marker: a text that was never used before.
            ttl_seconds: how long it counts as listening; 0 when it leaves.
        """
        answer = await self._scripts.call(
            _JOIN,
            [keys.listeners(), keys.ears(), keys.admitted(marker)],
            [worker, marker, keys.MARKERS, math.ceil(ttl_seconds * 1_000), BITMAP_KEPT_MS, ear],
        )
        return bool(answer)

    async def refuse(self, position: Position, result: Mapping[str, Any]) -> bool:
        """Publish `result` for a message that can't be a run; False when another worker had."""
        answer = await self._scripts.call(
            _REFUSE,
            [keys.admitted(position.marker), keys.journal()],
            [position.count, BITMAP_KEPT_MS, json_text(result), self._journal_kept],
        )
        return bool(answer)

    async def announce(self, result: Mapping[str, Any]) -> None:
        """Publish `result` about a key that can't be read."""
        await self._scripts.call(
            _ANNOUNCE,
            [keys.journal(), keys.announced(secrets.token_hex(8))],
            [json_text(result), self._journal_kept, RESENT_WITHIN_MS],
        )
