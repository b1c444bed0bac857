"""Calls of tools on machines that share nothing with this one: what is sent there, and what comes back.

The code of a tool travels as a bundle and is called by its content, `name@sha256:...`.  What a run
stores comes back as bytes, unless both sides use one store in the network.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, Self

from services.executor.artifacts import (
    Blob,
    Blobs,
    CasReference,
    Source,
    StorageType,
    StoredBlob,
    open_blobs,
    parse_reference,
)
from services.executor.artifacts.blobs import require
from services.executor.artifacts.keeper import INLINE_MAX_BYTES
from services.executor.artifacts.sources import digest_of, named, open_source, read_all
from services.executor.isolation.calls import Event, Metric, Progress
from services.executor.outcome import Status
from services.planner.execution import ErrorInfo, Execution, ExecutionResult, RunOptions
from services.planner.results import STORED
from shared.errors import ArtifactNotFoundError
from shared.messages import Policy

Answer = tuple[bytes, Mapping[str, bytes]]
"""What comes back: the result as JSON, and the contents of its references by SHA-256."""

Files = Mapping[str, bytes]
"""A tool's code: contents by path."""


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """A call as it is sent to another machine.

    Attributes:
        token: distinguishes the call from all others, of all planners.
        topic: where what the tool reports is sent.
        tool: the bundle reference of its code.
        parameters: of the call, as JSON values.
        run_id: of the call.
        policy: its members that are not None.
        inline_max_bytes: up to which size content is kept in references.
        store: the URL of the store that both sides use; None if there is none.
        is_alone: whether nothing else may run beside it.
    """

    token: str
    topic: str
    tool: str
    parameters: Mapping[str, Any]
    run_id: str
    policy: Mapping[str, Any]
    inline_max_bytes: int = INLINE_MAX_BYTES
    store: str | None = None
    is_alone: bool = False

    @property
    def execution(self) -> Execution:
        """The call for a backend there."""
        return Execution(self.tool, self.parameters, RunOptions(self.run_id, Policy(**self.policy)))

    def encode(self) -> bytes:
        """Return the call as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> Self:
        """Return the call in this JSON."""
        return cls(**json.loads(content))


def shared_store(storage_type: str, base: str) -> str | None:
    """Return the URL of a store that other machines can reach; None for a directory or memory."""
    return None if storage_type in (StorageType.LOCAL, StorageType.MEMORY) else base


# -- there ----------------------------------------------------------------------------


class CollectedBlobs(Blobs):
    """Holds what one run stores until it is sent back: a disk would be written and read for nothing."""

    def __init__(self) -> None:
        self._contents: dict[str, bytes] = {}

    @property
    def storage_type(self) -> StorageType:
        return StorageType.MEMORY

    @property
    def base(self) -> str:
        return "memory://run"

    def place(self, sha256: str) -> str:
        return f"{self.base}/{sha256}"

    def put(self, source: Source, *, expected_sha256: str | None = None) -> Blob:
        with open_source(source) as file:
            content = read_all(file, named(source))
        blob = digest_of([content])
        require(blob, expected_sha256, named(source))
        self._contents[blob.sha256] = content
        return blob

    @contextlib.contextmanager
    def open(self, sha256: str) -> Iterator[Iterator[bytes]]:
        yield iter((self.content(sha256),))

    def content(self, sha256: str) -> bytes:
        """Return the content under an address."""
        if sha256 not in self._contents:
            raise ArtifactNotFoundError(f"{self.place(sha256)}: there is no such blob")
        return self._contents[sha256]

    def size(self, sha256: str) -> int:
        return len(self.content(sha256))

    def exists(self, sha256: str) -> bool:
        return sha256 in self._contents

    def delete(self, sha256: str, *, unless_put_after: datetime | None = None) -> bool:
        return self._contents.pop(sha256, None) is not None

    def all(self) -> Iterator[StoredBlob]:
        now = datetime.now(UTC)
        yield from (StoredBlob(sha256, len(content), now) for sha256, content in self._contents.items())

    def clear_leftovers(self, before: datetime, *, dry_run: bool = False) -> int:
        return 0


def store_for(call: RemoteCall) -> Blobs:
    """Return the store for what the run leaves: the shared one, or this process's memory."""
    return CollectedBlobs() if call.store is None else open_blobs(call.store)


def answer_of(result: ExecutionResult, blobs: Blobs) -> Answer:
    """Return what is sent back."""
    contents: dict[str, bytes] = {}
    if isinstance(blobs, CollectedBlobs):
        contents = {sha256: blobs.content(sha256) for sha256 in addresses_of(result)}
    return json.dumps(result.to_json()).encode(), contents


def addresses_of(result: ExecutionResult) -> set[str]:
    """Return the SHA-256 of everything that the result refers to."""
    texts = [*result.artifacts.values(), result.result or "", result.error.traceback if result.error else ""]
    references = (parse_reference(text) for text in texts if text.startswith(STORED))
    return {one.sha256 for one in references if isinstance(one, CasReference)}


MUST_NOT_REPEAT: Final = "what ran it was lost, and it must not run again (on_worker_death: fail)"


def lost_result(call: RemoteCall) -> ExecutionResult:
    """Return the result of a call that has begun before and must not be repeated."""
    error = ErrorInfo("WorkerDiedError", MUST_NOT_REPEAT)
    return ExecutionResult(call.run_id, Status.LOST, "local", "", error=error)


async def first_of(task: asyncio.Task[Any], *events: asyncio.Event) -> None:
    """Wait until the task is done or one of the events is set."""
    watching = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait([task, *watching], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for watcher in watching:
            watcher.cancel()


class Room:
    """Lets calls run beside each other, or one alone."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._running = 0
        self._waiting_alone = 0
        self._is_alone = False

    @contextlib.asynccontextmanager
    async def place(self, *, alone: bool) -> AsyncIterator[None]:
        """Wait for a place, and keep it inside the block."""
        async with self._changed:
            self._waiting_alone += alone
            try:
                await self._changed.wait_for(self._is_empty if alone else self._is_shared)
            finally:
                self._waiting_alone -= alone
            self._running += 1
            self._is_alone = alone
        try:
            yield
        finally:
            self._running -= 1
            self._is_alone = False
            await asyncio.shield(self._tell())

    def _is_empty(self) -> bool:
        return self._running == 0

    def _is_shared(self) -> bool:
        return not self._is_alone and not self._waiting_alone

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


# -- here -----------------------------------------------------------------------------


def store_contents(contents: Mapping[str, bytes], blobs: Blobs) -> None:
    """Store what came back, verified by its digests.  Blocks on a disk or a network.

    Raises:
        ArtifactError: it can't be stored, or has changed on its way.
    """
    for sha256, content in contents.items():
        blobs.put(content, expected_sha256=sha256)


def result_of(text: bytes, call: Execution, blobs: Blobs) -> ExecutionResult:
    """Return the result that came back as JSON.  Raises `ContractError` if it can't be read.

    Args:
        text: the result.
        call: the call.
        blobs: where what came back is stored.
    """
    result = ExecutionResult.from_json(json.loads(text))
    return replace(
        result,
        run_id=call.options.run_id,
        storage_type=str(blobs.storage_type),
        storage_base=blobs.base,
        parameters=call.parameters,
    )


# -- what a tool reports ----------------------------------------------------------------

_EVENTS: Final[Mapping[str, Callable[..., Event]]] = {"progress": Progress, "metric": Metric}
"""The events that are passed on; lines and partial results are not."""


def event_text(event: Event) -> str | None:
    """Return an event as JSON; None if it is not passed on.  Not as msgpack, which has no large integers."""
    match event:
        case Progress():
            return json.dumps(["progress", event.done, event.total, event.message])
        case Metric():
            return json.dumps(["metric", event.name, event.value, dict(event.tags)])
        case _:
            return None


def event_of(text: str) -> Event:
    """Return the event in a text of `event_text`."""
    kind, *members = json.loads(text)
    return _EVENTS[kind](*members)
