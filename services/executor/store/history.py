"""The past, for people to look at: records of runs, the lines that they printed, and the journal."""

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

ENDED = ("completed", "failed", "timeout", "cancelled", "lost")
"""The statuses of runs that have ended."""

LINES_AT_ONCE = 1_000
INDEXED_AT_ONCE = 1_000
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

    def __init__(self, scripts: Scripts, patient: Redis, retention: Retention) -> None:
        self._scripts = scripts
        self._patient: Any = patient
        self._keep = retention

    async def recent(
        self, experiment_id: str | None, limit: int, status: str | None = None
    ) -> list[dict[str, str]]:
        """The newest runs: `run_id`, `experiment_id` and `OVERVIEW`.

        Args:
            experiment_id: whose runs; None for all.
            limit: how many at most.
            status: with which the runs ended, if they are those of all experiments.
        """
        if experiment_id is not None:
            index = keys.runs_of(experiment_id)
        else:
            index = keys.runs() if status is None else keys.runs_with(status)
        return [_overview(*one) for one in await self._newest(index, limit, OVERVIEW)]

    async def completed(self, tool: str, limit: int) -> list[RunDuration]:
        """The durations of runs of `tool` among the newest `limit` that completed and were not cached."""
        found = await self._newest(keys.runs(), limit, TOOK)
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
        self, index: str, limit: int, fields: Sequence[str]
    ) -> list[tuple[str, list[str | None]]]:
        """The newest runs in an index, with these fields of their records."""
        await self._index_earlier()
        async with asking("runs"):
            found = await self._scripts.client.zrevrange(index, 0, limit - 1)
        newest = sorted(found, key=moment, reverse=True)
        async with asking("runs"), self._scripts.client.pipeline(transaction=False) as pipe:
            for run_id in newest:
                pipe.hmget(keys.run(run_id), fields)
            records = await pipe.execute(raise_on_error=False)
        return [
            (run_id, record)
            for run_id, record in zip(newest, records, strict=True)
            if isinstance(record, list) and any(record)  # it may have expired, or be no hash
        ]

    async def tidy(self) -> None:
        """Take the runs out of the index whose records have expired."""
        client = self._scripts.client
        async with asking("runs"):
            seconds, _ = await client.time()
        oldest_ms, first = seconds * 1_000 - self._keep.record_ms, 0
        while True:
            async with asking("runs"), client.pipeline(transaction=False) as pipe:
                old = await client.zrange(
                    keys.runs(), "-inf", oldest_ms, byscore=True, offset=first, num=INDEXED_AT_ONCE
                )
                for run_id in old:
                    pipe.exists(keys.run(run_id))
                is_there = await pipe.execute()
                gone = [run_id for run_id, there in zip(old, is_there, strict=True) if not there]
                for run_id in gone:
                    for index in (
                        keys.runs_of(experiment_of_run(run_id)),
                        *map(keys.runs_with, ENDED),
                        keys.runs(),
                    ):
                        pipe.zrem(index, run_id)
                await pipe.execute()
            first += len(old) - len(gone)
            if len(old) < INDEXED_AT_ONCE:
                return

    async def _index_earlier(self) -> None:
        """Have the records of a version without an index join it, once."""
        async with asking("runs"):
            if await self._scripts.client.exists(keys.runs_indexed()):
                return
        cursor, prefix = 0, len(keys.run(""))
        while True:
            async with asking("runs"):
                cursor, names = await self._scripts.client.scan(
                    cursor, match=keys.run("*"), count=INDEXED_AT_ONCE
                )
            await self._index([name[prefix:] for name in names if _is_run(name[prefix:])])
            if cursor == 0:
                break
        async with asking("runs"):
            await self._scripts.client.set(keys.runs_indexed(), "1")

    async def _index(self, run_ids: Sequence[str]) -> None:
        async with asking("runs"), self._scripts.client.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(keys.run(run_id), "status")
            statuses = await pipe.execute(raise_on_error=False)
            for run_id, status in zip(run_ids, statuses, strict=True):
                score = {run_id: moment(run_id)[0]}
                pipe.zadd(keys.runs(), score)
                pipe.zadd(keys.runs_of(experiment_of_run(run_id)), score)
                if status in ENDED:
                    pipe.zadd(keys.runs_with(status), score)
            await pipe.execute()


def _is_run(run_id: str) -> bool:
    return _TIMESTAMP.fullmatch(run_id.rpartition(":")[2]) is not None


def experiment_of_run(run_id: str) -> str:
    """The id of the experiment that a run is of."""
    return run_id.rpartition(":")[0]


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
