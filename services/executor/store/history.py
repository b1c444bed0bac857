"""What runs left behind, for people to look at: their records, newest first, and what they printed."""

import heapq
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from services.executor.store.scripts import Scripts, asking
from shared import keys

OVERVIEW = (
    "status", "tool", "attempt", "trigger", "queued_at", "started_at", "finished_at", "duration_seconds",
    "result_summary", "error", "error_type", "worker", "lease", "retry_at",
)  # fmt: skip
"""The fields of a record that a list of runs needs; results can be large."""

TOOK = ("status", "tool", "duration_seconds", "cached")

LINES_AT_ONCE = 1_000
_TIMESTAMP = re.compile(r"(\d+)-(\d+)")


@dataclass(frozen=True, slots=True)
class Line:
    """One line that a run printed.  `at` is unix seconds; reading after `cursor` goes on behind it."""

    cursor: str
    at: float
    stream: str
    text: str


@dataclass(frozen=True, slots=True)
class Took:
    """How long a run took: the seconds of its last attempt."""

    experiment_id: str
    seconds: float


class History:
    """Reads only.

    Args:
        scripts: for commands.
        patient: a client whose blocking reads may take for ever.
    """

    def __init__(self, scripts: Scripts, patient: Redis) -> None:
        self._scripts = scripts
        self._patient: Any = patient

    async def recent(self, experiment_id: str | None, limit: int) -> list[dict[str, str]]:
        """The newest `limit` runs, of one experiment or of all: `run_id`, `experiment_id` and `OVERVIEW`."""
        return [_overview(*one) for one in await self._newest(experiment_id, limit, OVERVIEW)]

    async def completed(self, tool: str, limit: int) -> list[Took]:
        """How long runs of a tool took that completed, not out of the cache; of the newest `limit`."""
        found = await self._newest(None, limit, TOOK)
        return [
            Took(run_id.rpartition(":")[0], float(seconds))
            for run_id, (status, name, seconds, cached) in found
            if (status, name, cached) == ("completed", tool, None) and seconds
        ]

    async def status(self, run_id: str) -> str | None:
        """The `status` of a run's record, None while it waits for its first attempt."""
        async with asking("status"):
            status: str | None = await self._scripts.client.hget(keys.run(run_id), "status")
        return status

    async def lines(self, run_id: str, cursor: str = "0-0", wait_ms: int | None = None) -> list[Line]:
        """What the run printed after `cursor`, oldest first; waits up to `wait_ms` when there is nothing."""
        async with asking("logs"):
            answer = await self._patient.xread(
                {keys.logs(run_id): cursor}, count=LINES_AT_ONCE, block=wait_ms
            )
        return [
            Line(entry, float(fields["at"]), fields["stream"], fields["text"])
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
            if isinstance(record, list) and any(record)  # else it expired meanwhile, or is no hash
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
    """Whether it is a run's id, and that experiment's: `a` must not list the runs of `a:b`."""
    owner, _, timestamp = run_id.rpartition(":")
    return _TIMESTAMP.fullmatch(timestamp) is not None and experiment_id in (None, owner)


def moment(run_id: str) -> tuple[int, int]:
    """When a run was queued: ms, and a number that tells those of the same ms apart."""
    match = _TIMESTAMP.fullmatch(run_id.rpartition(":")[2])
    assert match is not None, "only ids that end with a timestamp are collected"
    return int(match[1]), int(match[2])


def _overview(run_id: str, values: list[str | None]) -> dict[str, str]:
    known = {name: value for name, value in zip(OVERVIEW, values, strict=True) if value is not None}
    return {"run_id": run_id, "experiment_id": run_id.rpartition(":")[0], **known}


READ_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Entry:
    """One message.  `kind` is `metric` or `result`; reading after `cursor` goes on behind it."""

    cursor: str
    kind: str
    data: Mapping[str, Any]


class Journal:
    """Reads what was said, from any point on.

    Args:
        scripts: for commands.
        patient: a client whose blocking reads may take for ever.
    """

    def __init__(self, scripts: Scripts, patient: Redis) -> None:
        self._scripts = scripts
        self._patient: Any = patient

    async def end(self) -> str:
        """The cursor behind all that was said so far."""
        async with asking("journal"):
            last = await self._scripts.client.xrevrange(keys.journal(), count=1)
        return str(last[0][0]) if last else "0-0"

    async def read(self, cursor: str, wait_ms: int | None = None) -> list[Entry]:
        """What was said after `cursor`, oldest first; waits up to `wait_ms` when there is nothing."""
        async with asking("journal"):
            answer = await self._patient.xread({keys.journal(): cursor}, count=READ_AT_ONCE, block=wait_ms)
        return [
            Entry(entry, fields["kind"], json.loads(fields["data"]))
            for _, entries in answer or ()
            for entry, fields in entries
        ]
