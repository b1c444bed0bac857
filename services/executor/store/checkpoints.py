"""What outlives the attempts of a run: steps that a retry must not repeat, and artifacts that were kept."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import structlog

from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.documents import json_text
from shared.errors import StoreError, StoreUnavailableError

log = structlog.get_logger()


class RunEffects:
    """The recorded steps and artifacts of one run."""

    def __init__(self, scripts: Scripts, run_id: str, kept_ms: int) -> None:
        self._scripts = scripts
        self._steps = keys.effects(run_id)
        self._artifacts = keys.artifacts(run_id)
        self._kept_ms = kept_ms

    async def recall(self, key: str) -> Any | None:
        """The result of step `key` as `{"value": ...}`, or None when it was not done."""
        async with asking("recall"):
            text = await self._scripts.client.hget(self._steps, key)
        return None if text is None else {"value": json.loads(text)}

    async def record(self, key: str, value: Any) -> None:
        """Keep what step `key` came to."""
        await self._set("record", self._steps, key, value)

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """Note that the run has this artifact, in place of an earlier one of that name."""
        await self._set("artifact", self._artifacts, name, described)

    async def artifacts(self) -> dict[str, Any]:
        """What the run's attempts have kept so far, by name; what somebody has spoilt is left out.

        Raises:
            StoreUnavailableError: nothing else may keep a run from its end.
        """
        try:
            async with asking("artifacts"):
                found = await self._scripts.client.hgetall(self._artifacts)
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            log.warning("key.unusable", key=self._artifacts, error=str(exc))
            return {}
        return {name: one for name in sorted(found) if (one := self._described(name, found[name]))}

    def _described(self, name: str, text: str) -> Any | None:
        """An artifact as it was listed, None if nobody can read it."""
        with contextlib.suppress(ValueError, RecursionError):
            described = json.loads(text)
            if isinstance(described, dict):
                return described
        log.warning("artifact.unreadable", key=self._artifacts, name=name)
        return None

    async def _set(self, what: str, key: str, name: str, value: Any) -> None:
        async with asking(what), self._scripts.client.pipeline(transaction=True) as pipe:
            pipe.hset(key, name, json_text(value))
            pipe.pexpire(key, self._kept_ms)
            await pipe.execute()


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
