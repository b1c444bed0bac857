"""The past, for people to look at: records of runs, the lines that they printed, and the journal."""

import heapq
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.executor.store.claims import Retention
from services.executor.store.scripts import Scripts, asking
from shared import keys
from shared.errors import StoreError

OVERVIEW = (
    "status", "tool", "attempt", "trigger", "queued_at", "started_at", "finished_at", "duration_seconds",
    "result_summary", "error", "error_type", "worker", "lease", "retry_at",
)  # fmt: skip
"""The fields of a record that a list of runs needs, without results, which can be large."""

TOOK = ("status", "tool", "duration_seconds", "cached")

LINES_AT_ONCE = 1_000
TRIMS = 5
TRIMMED_TO = 0.9
"""The share of its memory that a journal is trimmed to, so that it isn't trimmed again at once."""

_TIMESTAMP = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class StoredLogLine:
    """One line that a run printed.

    Attributes:
        cursor: its position; reading goes on after it.
        at: when it was printed, unix seconds.
        stream: `stdout`, `stderr`, `stacks` of a tool that was ended, or `executor` for what that adds.
        text: the line.
    """

    cursor: str
    at: float
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class RunDuration:
    """How long the last attempt of a run took."""

    experiment_id: str
    seconds: float


class History:
    """Reads records and logs of runs.

    Args:
        scripts: for commands.
        patient: a client whose reads have no time limit.
    """

    def __init__(self, scripts: Scripts, patient: Redis) -> None:
        self._scripts = scripts
        self._patient: Any = patient

    async def recent(self, experiment_id: str | None, limit: int) -> list[dict[str, str]]:
        """The newest `limit` runs, of one experiment or of all: `run_id`, `experiment_id` and `OVERVIEW`."""
        return [_overview(*one) for one in await self._newest(experiment_id, limit, OVERVIEW)]

    async def completed(self, tool: str, limit: int) -> list[RunDuration]:
        """The durations of runs of `tool` among the newest `limit` that completed and were not cached."""
        found = await self._newest(None, limit, TOOK)
        return [
            RunDuration(run_id.rpartition(":")[0], float(seconds))
            for run_id, (status, name, seconds, cached) in found
            if (status, name, cached) == ("completed", tool, None) and seconds
        ]

    async def status(self, run_id: str) -> str | None:
        """The `status` of a run's record, None while it waits for its first attempt."""
        async with asking("status"):
            status: str | None = await self._scripts.client.hget(keys.run(run_id), "status")
        return status

    async def lines(
        self, run_id: str, cursor: str = "0-0", wait_ms: int | None = None
    ) -> list[StoredLogLine]:
        """The lines of the run after `cursor`, oldest first; waits up to `wait_ms` for the first."""
        async with asking("logs"):
            answer = await self._patient.xread(
                {keys.logs(run_id): cursor}, count=LINES_AT_ONCE, block=wait_ms
            )
        return [
            StoredLogLine(entry, float(fields["at"]), fields["stream"], fields["text"])
            for _, entries in answer or ()
            for entry, fields in entries
        ]

    async def _newest(
        self, experiment_id: str | None, limit: int, fields: Sequence[str]
    ) -> list[tuple[str, list[str | None]]]:
        """The newest runs, with these fields of their records."""
        newest = heapq.nlargest(limit, await self._run_ids(experiment_id), key=moment)
        async with asking("runs"), self._scripts.client.pipeline(transaction=False) as pipe:
            for run_id in newest:
                pipe.hmget(keys.run(run_id), fields)
            records = await pipe.execute(raise_on_error=False)
        return [
            (run_id, record)
            for run_id, record in zip(newest, records, strict=True)
            if isinstance(record, list) and any(record)  # it may have expired, or be no hash
        ]

    async def _run_ids(self, experiment_id: str | None) -> set[str]:
        pattern = keys.run("*") if experiment_id is None else keys.run_pattern(experiment_id)
        prefix, cursor = len(keys.run("")), 0
        found: set[str] = set()
        while True:
            async with asking("runs"):
                cursor, names = await self._scripts.client.scan(cursor, match=pattern, count=1_000)
            found.update(name[prefix:] for name in names if _is_run_of(experiment_id, name[prefix:]))
            if cursor == 0:
                return found


def _is_run_of(experiment_id: str | None, run_id: str) -> bool:
    """Whether it is the id of a run of this experiment; a run of `a:b` is none of `a`."""
    owner, _, timestamp = run_id.rpartition(":")
    return _TIMESTAMP.fullmatch(timestamp) is not None and experiment_id in (None, owner)


def moment(run_id: str) -> tuple[int, int]:
    """When a run was queued: milliseconds, and a number that distinguishes runs of one millisecond."""
    match = _TIMESTAMP.fullmatch(run_id.rpartition(":")[2])
    assert match is not None, "the id of a run ends with a timestamp"
    return int(match[1]), int(match[2])


def _overview(run_id: str, values: list[str | None]) -> dict[str, str]:
    known = {name: value for name, value in zip(OVERVIEW, values, strict=True) if value is not None}
    return {"run_id": run_id, "experiment_id": run_id.rpartition(":")[0], **known}


READ_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One message that was published.

    Attributes:
        cursor: its position; reading goes on after it.
        kind: `metric` or `result`.
        data: the message.
    """

    cursor: str
    kind: str
    data: Mapping[str, Any]


class Journal:
    """Reads the journal: every metric event and every result, in order.

    Args:
        scripts: for commands.
        patient: a client whose reads have no time limit.
        retention: how much it keeps.
    """

    def __init__(self, scripts: Scripts, patient: Redis, retention: Retention) -> None:
        self._scripts = scripts
        self._patient: Any = patient
        self._keep = retention

    async def tidy(self) -> None:
        """Drop the entries that are too old, and the oldest while all take too much memory.

        Entries of the journal are trimmed by number as they are written.  The journal expires as a whole
        when this isn't called for as long as records are kept.
        """
        key, client = keys.journal(), self._scripts.client
        async with asking("journal"):
            if await client.type(key) != "stream":
                return
            seconds, micros = await client.time()
            await client.pexpire(key, self._keep.record_ms)
            oldest_ms = seconds * 1_000 + micros // 1_000 - self._keep.record_ms
            await client.xtrim(key, minid=max(0, oldest_ms), approximate=False)
        for _ in range(TRIMS):
            try:
                async with asking("journal"):
                    used_bytes = int(await client.memory_usage(key, samples=0) or 0)
                    count = int(await client.xlen(key))
            except StoreError:
                return  # managed servers may not tell
            if used_bytes <= self._keep.journal_bytes:
                return
            kept = int(count * self._keep.journal_bytes / used_bytes * TRIMMED_TO)
            async with asking("journal"):
                await client.xtrim(key, maxlen=kept, approximate=False)

    async def end(self) -> str:
        """The cursor after the last message."""
        async with asking("journal"):
            last = await self._scripts.client.xrevrange(keys.journal(), count=1)
        return str(last[0][0]) if last else "0-0"

    async def of_experiment(self, experiment_id: str) -> tuple[list[Mapping[str, Any]], str]:
        """The metric events that are kept of an experiment, oldest first, and the cursor after the last.

        No event after the cursor is among them: whoever reads on from it misses none and gets none twice.
        """
        async with asking("metrics"), self._scripts.client.pipeline(transaction=True) as pipe:
            pipe.lrange(keys.metrics(experiment_id), 0, -1)
            pipe.xrevrange(keys.journal(), count=1)
            texts, last = await pipe.execute(raise_on_error=False)
        events = [json.loads(text) for text in texts] if isinstance(texts, list) else []
        return events, str(last[0][0]) if isinstance(last, list) and last else "0-0"

    async def read(self, cursor: str, wait_ms: int | None = None) -> list[JournalEntry]:
        """The messages after `cursor`, oldest first; waits up to `wait_ms` for the first."""
        async with asking("journal"):
            answer = await self._patient.xread({keys.journal(): cursor}, count=READ_AT_ONCE, block=wait_ms)
        return [
            JournalEntry(entry, fields["kind"], json.loads(fields["data"]))
            for _, entries in answer or ()
            for entry, fields in entries
        ]
