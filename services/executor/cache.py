"""Answers a run from an earlier one that was the same computation: same code, same parameters, same seed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from services.executor.artifacts import Artifact, CasReference, Keeper, parse_reference
from services.executor.identity import digest_of
from services.executor.outcome import Outcome, Status
from services.executor.store import Cached
from shared.backoff import until_available
from shared.errors import FullsendError
from shared.threads import Threads

log = structlog.get_logger()

MAX_RESULT_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Cache:
    """Completed runs by their `run_digest`.

    Args:
        known: what is remembered of them.
        keeper: where their artifacts and large results are.
        threads: what reading them waits in.
    """

    known: Cached
    keeper: Keeper
    threads: Threads

    async def recall(self, digest: str) -> Outcome | None:
        """The outcome of an earlier run with this digest; None without one, or if not all of it is sound."""
        try:
            members = await until_available("cached", lambda: self.known.find(digest))
            return None if members is None else await self.threads.run(self._outcome, members)
        except (FullsendError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as exc:
            log.warning("cache.unusable", digest=digest[:12], error=f"{type(exc).__name__}: {exc}")
            return None

    async def remember(self, digest: str, run_id: str, outcome: Outcome) -> None:
        """Answer later runs with this outcome, unless it is a failure, or an answer of that kind itself."""
        if outcome.status is not Status.COMPLETED or outcome.cached_from:
            return
        members = {
            "run_id": run_id,
            "result": outcome.shown["result"],
            "items": outcome.items,
            "artifacts": dict(outcome.artifacts),
        }
        try:
            sealed = {**members, "seal": digest_of(members)}
            await until_available("remember", lambda: self.known.remember(digest, sealed))
        except (FullsendError, ValueError) as exc:
            log.warning("cache.not_remembered", digest=digest[:12], error=str(exc))

    def _outcome(self, members: Mapping[str, Any]) -> Outcome:
        unsealed = {name: value for name, value in members.items() if name != "seal"}
        if members["seal"] != digest_of(unsealed):
            raise ValueError("it was changed after it was remembered")
        artifacts = members["artifacts"]
        for name, described in artifacts.items():
            self.keeper.verify(Artifact.from_json(name, described))
        text = members["result"]
        return Outcome(
            Status.COMPLETED,
            result=json.loads(self._resolved(text)),
            items=members["items"],
            artifacts=artifacts,
            shown={"result": text},
            cached_from=str(members["run_id"]),
        )

    def _resolved(self, text: str) -> str | bytes:
        """A result's JSON, wherever it is."""
        if not text.startswith("cas://"):
            return text
        reference = parse_reference(text)
        assert isinstance(reference, CasReference), "the scheme says so"
        return self.keeper.blobs.read(reference.sha256, MAX_RESULT_BYTES)
