"""Completed runs that others with the same identity may be answered with."""

import json
from collections.abc import Mapping
from typing import Any

from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.documents import json_text


class Cached:
    """What is known by `run_digest`; kept as long as records are."""

    def __init__(self, scripts: Scripts, kept_ms: int) -> None:
        self._scripts = scripts
        self._kept_ms = kept_ms

    async def find(self, digest: str) -> dict[str, Any] | None:
        """What was remembered under the digest; None if nothing was, or nothing that can be read."""
        async with asking("cached"):
            text = await self._scripts.client.get(keys.cached(digest))
        try:
            found = json.loads(text or "null")
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    async def remember(self, digest: str, members: Mapping[str, Any]) -> None:
        """Answer later runs of this digest with these members."""
        async with asking("remember"):
            await self._scripts.client.set(keys.cached(digest), json_text(members), px=self._kept_ms)
