"""Results that need not be computed again: the steps and artifacts of a run, and completed runs."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from services.executor.store.scripts import Script, Scripts, asking
from shared import keys
from shared.documents import json_text
from shared.errors import StoreError, StoreUnavailableError

log = structlog.get_logger()

PARTIALS_BYTES = 8_388_608
"""The size of the partial results of a run that are kept, over all its attempts."""

_KEEP_PARTIALS = Script("keep_partials", keys=("partials",), args=("most_bytes", "kept_ms", "entries[]"))


class Checkpoints:
    """The completed steps and the artifacts of one run, which its attempts share."""

    def __init__(self, scripts: Scripts, run_id: str, kept_ms: int) -> None:
        self._scripts = scripts
        self._steps = keys.checkpoints(run_id)
        self._artifacts = keys.artifacts(run_id)
        self._partials = keys.partials(run_id)
        self._kept_ms = kept_ms

    async def recall(self, key: str) -> Any | None:
        """The result of step `key` as `{"value": ...}`; None if the step has not completed."""
        async with asking("recall"):
            text = await self._scripts.client.hget(self._steps, key)
        return None if text is None else {"value": json.loads(text)}

    async def record(self, key: str, value: Any) -> None:
        """Keep the result of step `key`."""
        await self._set("record", self._steps, key, value)

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """Record that the run has this artifact; replaces an earlier one of that name."""
        await self._set("artifact", self._artifacts, name, described)

    async def artifacts(self) -> dict[str, Any]:
        """The artifacts that the run's attempts have kept so far, by name.

        What can't be read is logged and left out: it must not keep a run from its end.

        Raises:
            StoreUnavailableError: Redis can't be reached or refuses for now.
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

    async def keep_partials(self, entries: Sequence[str]) -> None:
        """Keep partial results of an attempt, a text each, as far as there is room."""
        try:
            await self._scripts.call(
                _KEEP_PARTIALS, [self._partials], [PARTIALS_BYTES, self._kept_ms, list(entries)]
            )
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            log.warning("key.unusable", key=self._partials, error=str(exc))

    async def partials(self) -> list[str]:
        """The partial results that the run's attempts have kept so far; none where the key is unusable."""
        try:
            async with asking("partials"):
                return list(await self._scripts.client.lrange(self._partials, 1, -1))
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            log.warning("key.unusable", key=self._partials, error=str(exc))
            return []

    async def drop_partials(self) -> None:
        """Remove them, for the record has them now; they would expire in any case."""
        with contextlib.suppress(StoreError):
            async with asking("drop_partials"):
                await self._scripts.client.unlink(self._partials)

    def _described(self, name: str, text: str) -> Any | None:
        """An artifact as it was recorded; None if the text is no JSON object."""
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


class CachedRuns:
    """Completed runs whose results answer later runs with the same digest; kept as long as records."""

    def __init__(self, scripts: Scripts, kept_ms: int) -> None:
        self._scripts = scripts
        self._kept_ms = kept_ms

    async def find(self, digest: str) -> dict[str, Any] | None:
        """The members of the run with this digest; None if there is none, or if it can't be read."""
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
