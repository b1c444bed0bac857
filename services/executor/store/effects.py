"""Steps that a retry must not repeat: what they came to, kept for the later attempts of the run."""

import json
from typing import Any

from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.documents import json_text


class RunEffects:
    """The recorded steps of one run."""

    def __init__(self, scripts: Scripts, run_id: str, kept_ms: int) -> None:
        self._scripts = scripts
        self._key = keys.effects(run_id)
        self._kept_ms = kept_ms

    async def recall(self, key: str) -> Any | None:
        """The result of step `key` as `{"value": ...}`, or None when it was not done."""
        async with asking("recall"):
            text = await self._scripts.client.hget(self._key, key)
        return None if text is None else {"value": json.loads(text)}

    async def record(self, key: str, value: Any) -> None:
        """Keep what step `key` came to."""
        async with asking("record"), self._scripts.client.pipeline(transaction=True) as pipe:
            pipe.hset(self._key, key, json_text(value))
            pipe.pexpire(self._key, self._kept_ms)
            await pipe.execute()
