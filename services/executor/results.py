"""The results of a run: its artifacts, its steps, and values that are too large for its record."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

import structlog
from msgspec.structs import replace

from services.executor.artifacts import Artifact, CasReference, Keeper
from services.executor.isolation.calls import Capture, NothingKept, Refusal
from services.executor.outcome import Outcome, Status
from shared.backoff import Backoff, until_available
from shared.documents import json_text
from shared.errors import ArtifactError
from shared.log import unmasked
from shared.threads import Threads

log = structlog.get_logger()

T = TypeVar("T")

MAX_ARTIFACTS = 1_000
MAX_NAME_CHARACTERS = 200
HEAD_CHARACTERS = 2_000
MAX_KEY_CHARACTERS = 500
MAX_STEPS_BYTES = 4_000_000
"""The size of all results of steps that an attempt records; they are kept in Redis."""
STORING: Final = Backoff(0.5, 4.0, max_attempts=5)
MAX_INLINE_BYTES = 4_000_000
"""The size of all inline artifacts of an attempt together; further ones are put into the store."""


class Memory(Protocol):
    """Keeps the steps and artifacts of all attempts of one run."""

    async def recall(self, key: str) -> Any | None:
        """Return the result of a step as `{"value": ...}`; None if the step was not done."""

    async def record(self, key: str, value: Any) -> None:
        """Keep the result of a step."""

    async def list_artifact(self, name: str, described: Mapping[str, Any]) -> None:
        """List an artifact of the run, in place of an earlier one of that name."""

    async def artifacts(self) -> Mapping[str, Any]:
        """Return the artifacts that the run has, by name."""


class AttemptResults(NothingKept):
    """Keeps the results of one attempt, while it runs and at its end.

    Args:
        keeper: keeps the content.
        memory: lists it for later attempts of the run and for its record.
        threads: for storing.
        backoff: between attempts to store a result.

    Attributes:
        mask: masks secrets in the names of artifacts.
        named: replaces secrets in the keys of steps, such that keys that differ stay different.
    """

    def __init__(
        self,
        keeper: Keeper,
        memory: Memory,
        threads: Threads,
        backoff: Backoff = STORING,
    ) -> None:
        self._keeper = keeper
        self._threads = threads
        self._memory = memory
        self._backoff = backoff
        self._names: set[str] = set()
        self._inline_bytes = 0
        self._steps_bytes = 0
        self.mask: Callable[[str], str] = unmasked
        self.named: Callable[[str], str] = unmasked

    # -- while the tool runs ----------------------------------------------------------

    async def recall(self, key: str) -> Any | None:
        """Return what an earlier attempt recorded for this step.  Raises `Refusal` if its key is too long."""
        self._check_step(key)
        return await until_available("recall", lambda: self._memory.recall(self.named(key)))

    async def record(self, key: str, value: Any) -> None:
        """Record the step for later attempts.  Raises `Refusal` if its key or all results are too large."""
        self._check_step(key)
        size_bytes = len(key) + len(json_text(value))
        if self._steps_bytes + size_bytes > MAX_STEPS_BYTES:
            raise Refusal(
                f"the results of the steps of a run may have {MAX_STEPS_BYTES:,} bytes of JSON, and step "
                f"{key!r:.80} adds {size_bytes:,}; save it as an artifact and return its reference"
            )
        self._steps_bytes += size_bytes
        await until_available("record", lambda: self._memory.record(self.named(key), value))

    def _check_step(self, key: str) -> None:
        if len(key) > MAX_KEY_CHARACTERS:
            raise Refusal(f"the key of a step may have {MAX_KEY_CHARACTERS} characters, not {len(key):,}")

    async def keep(self, capture: Capture) -> str:
        """Keep and list an artifact; return its reference.  Raises `ArtifactError`."""
        capture = dataclasses.replace(capture, name=self.mask(capture.name))
        self._check(capture.name)
        artifact = await self._threads.run(self._stored, capture)
        name, described = artifact.name, artifact.to_json()
        await until_available("artifact", lambda: self._memory.list_artifact(name, described))
        self._names.add(name)
        if not isinstance(artifact.reference, CasReference):
            self._inline_bytes += artifact.size_bytes
        return str(artifact.reference)

    def _check(self, name: str) -> None:
        if not name or len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
            raise Refusal(
                f"{name!r:.80} can't be an artifact's name: 1 to {MAX_NAME_CHARACTERS} printable characters"
            )
        if len(self._names) >= MAX_ARTIFACTS and name not in self._names:
            raise Refusal(f"a run may have {MAX_ARTIFACTS:,} artifacts; put several into one archive")

    def _stored(self, capture: Capture) -> Artifact:
        inline = self._inline_bytes + capture.size_bytes <= MAX_INLINE_BYTES
        with capture.open() as file:
            return self._keeper.keep(
                capture.name,
                file,
                media_type=capture.media_type,
                inline=inline,
            )

    # -- at its end -------------------------------------------------------------------

    async def complete(self, outcome: Outcome, *, is_first: bool) -> Outcome:
        """Return the outcome with the run's artifacts, and with references in place of large values.

        Details that can't be stored don't change how the run ended.  A result that can't be stored, after
        several attempts, makes the run fail; it is not retried, because the tool has done its work.

        Args:
            outcome: that of the attempt.
            is_first: whether no earlier attempt can have kept anything.
        """
        artifacts: Mapping[str, Any] = {}
        if self._names or not is_first:
            artifacts = await until_available("artifacts", self._memory.artifacts)
        if outcome.status is Status.COMPLETED:
            return await self._completed(outcome, artifacts)
        shown = {}
        if outcome.partial_results is not None:
            shown["partial_results"] = await self._detail(json_text(outcome.partial_results), json_text)
        if outcome.traceback:
            shown["traceback"] = await self._detail(outcome.traceback, str)
        return replace(outcome, artifacts=artifacts, shown=shown)

    async def _completed(self, outcome: Outcome, artifacts: Mapping[str, Any]) -> Outcome:
        text = json_text(outcome.result)
        try:
            if not self._is_inline(text):
                text = await self._backoff.retry(lambda: self._reference(text), ArtifactError, _log_unstored)
        except ArtifactError as exc:
            unstored = Outcome.of_error(ArtifactError(f"the result can't be stored: {exc}"))
            return replace(unstored, artifacts=artifacts, exit=outcome.exit, used=outcome.used)
        return replace(outcome, artifacts=artifacts, shown={"result": text})

    async def _detail(self, text: str, encode: Callable[[str], str]) -> str:
        """Return the text, its reference, or its start if it can't be stored, as `encode` writes a text."""
        try:
            return text if self._is_inline(text) else await self._reference(text)
        except ArtifactError as exc:
            log.warning("details.not_stored", error=str(exc))
            return encode(f"{text[:HEAD_CHARACTERS]}... (the rest could not be stored: {exc})")

    def _is_inline(self, text: str) -> bool:
        if len(text) * 4 <= self._keeper.inline_max_bytes:  # UTF-8 has four bytes a character at most
            return True
        return len(text.encode(errors="replace")) <= self._keeper.inline_max_bytes

    async def _reference(self, text: str) -> str:
        blob = await self._threads.run(self._keeper.blobs.put, text.encode(errors="replace"))
        return str(CasReference(blob.sha256))


def _log_unstored(exc: BaseException, pause_seconds: float) -> None:
    log.warning("result.not_stored", error=str(exc), again_in_seconds=pause_seconds)
