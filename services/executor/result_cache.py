"""The result cache: a run may be answered with the result of an earlier one that was the same computation."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from services.executor.artifacts import Artifact, CasReference, Keeper, parse_reference
from services.executor.outcome import Outcome, Status
from services.executor.store import CachedRuns
from shared.backoff import until_available
from shared.canonical_json import digest_of
from shared.errors import FullsendError
from shared.threads import Threads

log = structlog.get_logger()

MAX_RESULT_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class Identity:
    """All that the result of a run may depend on.

    Two runs with the same digest are the same computation, on any machine.

    Attributes:
        tool_digest: SHA-256 of the tool's code.
        entry_point: the function that is called.
        parameters: as the tool gets them.
        seed: of the random generators; None if the run has none.
        environment_digest: of the tool's own environment; empty for the executor's interpreter.
        inputs: digests of what else the run reads, by name.
    """

    tool_digest: str
    entry_point: str
    parameters: Mapping[str, Any]
    seed: int | None = None
    environment_digest: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """BLAKE2b-256 over the canonical JSON of the members, in hexadecimal.

        Raises:
            ValueError: a number that JSON can't hold.
        """
        return digest_of({name: getattr(self, name) for name in Identity.__slots__})


@dataclass(frozen=True, slots=True)
class ResultCache:
    """Completed runs by the digests of their identities.

    Args:
        known: what the store keeps of them.
        keeper: keeps their artifacts and large results.
        threads: for reading these.
    """

    known: CachedRuns
    keeper: Keeper
    threads: Threads

    async def recall(self, digest: str) -> Outcome | None:
        """Return the outcome of an earlier run with this digest; None if there is none that is intact."""
        try:
            members = await until_available("cached", lambda: self.known.find(digest))
            return None if members is None else await self.threads.run(self._outcome, members)
        except (FullsendError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as exc:
            log.warning("cache.unusable", digest=digest[:12], error=f"{type(exc).__name__}: {exc}")
            return None

    async def remember(self, digest: str, run_id: str, outcome: Outcome) -> None:
        """Answer later runs with this outcome, unless it is a failure or comes from the cache itself."""
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
            result=json.loads(self._json(text)),
            items=members["items"],
            artifacts=artifacts,
            shown={"result": text},
            cached_from=str(members["run_id"]),
        )

    def _json(self, text: str) -> str | bytes:
        """Return the JSON of a result that is inline or a reference."""
        if not text.startswith("cas://"):
            return text
        reference = parse_reference(text)
        assert isinstance(reference, CasReference), "the scheme says so"
        return self.keeper.blobs.read(reference.sha256, MAX_RESULT_BYTES)
