"""What a run produces besides its messages: artifacts, and results too large for its record."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from services.executor.artifacts import Artifact, CasReference, Keeper
from services.executor.isolation.calls import Capture, NothingKept
from services.executor.outcome import Outcome
from services.executor.patience import insist
from shared.documents import json_text
from shared.errors import ArtifactError

MAX_ARTIFACTS = 1_000
MAX_NAME_CHARACTERS = 200
MAX_INLINE_BYTES = 4_000_000
"""Of all inline artifacts of an attempt together: what is more goes to the store, however small each is."""


class Memory(Protocol):
    """Remembers what the attempts of one run have done and kept."""

    async def recall(self, key: str) -> Any | None:
        """The result of a step as `{"value": ...}`, or None when it was not done."""

    async def record(self, key: str, value: Any) -> None:
        """Keep what a step came to."""

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """Note that the run has this artifact, in place of an earlier one of that name."""

    async def artifacts(self) -> Mapping[str, Any]:
        """What the run's attempts have kept so far, by name."""


class Products(NothingKept):
    """Keeps what one attempt hands over, while it runs and at its end.

    Args:
        keeper: where it is kept.
        memory: remembers it for the run's later attempts, and for its record.
    """

    def __init__(self, keeper: Keeper, memory: Memory) -> None:
        self._keeper = keeper
        self._memory = memory
        self._names: set[str] = set()
        self._inline_bytes = 0

    # -- while the tool runs ----------------------------------------------------------

    async def recall(self, key: str) -> Any | None:
        """What an earlier attempt recorded for this step."""
        return await insist("recall", lambda: self._memory.recall(key))

    async def record(self, key: str, value: Any) -> None:
        """Remember the step for later attempts."""
        await insist("record", lambda: self._memory.record(key, value))

    async def keep(self, capture: Capture) -> str:
        """Keep an artifact and list it, and only then say so.  Raises `ArtifactError`."""
        self._check(capture.name)
        artifact = await asyncio.to_thread(self._stored, capture)
        await insist("artifact", lambda: self._memory.list_artifact(artifact.name, artifact.to_json()))
        self._names.add(artifact.name)
        if not isinstance(artifact.reference, CasReference):
            self._inline_bytes += artifact.size_bytes
        return str(artifact.reference)

    def _check(self, name: str) -> None:
        if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise ArtifactError(
                f"{name!r:.80} can't be an artifact's name: 1 to {MAX_NAME_CHARACTERS} printable characters"
            )
        if len(self._names) >= MAX_ARTIFACTS and name not in self._names:
            raise ArtifactError(f"a run may have {MAX_ARTIFACTS:,} artifacts; put several into one archive")

    def _stored(self, capture: Capture) -> Artifact:
        inline = self._inline_bytes + capture.size_bytes <= MAX_INLINE_BYTES
        with capture.open() as file:
            return self._keeper.keep(
                capture.name,
                file,
                media_type=capture.media_type,
                expected_sha256=capture.sha256,
                inline=inline,
            )

    # -- at its end -------------------------------------------------------------------

    async def complete(self, outcome: Outcome, *, is_first: bool) -> Outcome:
        """The outcome with the run's artifacts, and with references in place of what is too large.

        Args:
            outcome: what the attempt came to.
            is_first: whether no attempt before this one can have kept anything.
        """
        artifacts: Mapping[str, Any] = {}
        if self._names or not is_first:
            artifacts = await insist("artifacts", self._memory.artifacts)
        try:
            shown = await self._shown(outcome)
        except ArtifactError as exc:
            return replace(Outcome.of_error(exc), artifacts=artifacts, retryable=True)
        return replace(outcome, artifacts=artifacts, shown=shown)

    async def _shown(self, outcome: Outcome) -> dict[str, str]:
        """The texts of the record's largest fields; a reference for each that is over the limit."""
        shown = {}
        for name, value in (("result", outcome.result), ("partial_results", outcome.partial_results)):
            if value is not None:
                shown[name] = await self._fitting(json_text(value))
        if outcome.traceback:
            shown["traceback"] = await self._fitting(outcome.traceback)
        return shown

    async def _fitting(self, text: str) -> str:
        if len(text) * 4 <= self._keeper.inline_max_bytes:  # UTF-8 has four bytes a character at most
            return text
        content = text.encode(errors="replace")
        if len(content) <= self._keeper.inline_max_bytes:
            return text
        blob = await asyncio.to_thread(self._keeper.blobs.put, content)
        return str(CasReference(blob.sha256))
