"""Follows the demo's runs through the journal, and counts how those of each experiment end.  Pure."""

import statistics
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from services.cli.watch import failure
from services.executor.outcome import Status
from services.executor.store import JournalEntry
from services.operations.words import key_values

ENDED_KEPT = 50


class Phase(StrEnum):
    """What a run is doing, or how it ended."""

    RUNNING = "running"
    RETRYING = "retrying"
    FINISHED = "finished"
    FAILED = "failed"
    KILLED = "killed"


@dataclass(slots=True)
class Run:
    """A run as the demo shows it.

    Attributes:
        started: when its last attempt started, in Unix seconds.
        done: how far it is, out of `total`; the unit is the tool's.
        total: None if unknown.
        note: its last message, its result or its error.
        due: when the next attempt starts, in Unix seconds.
        seconds: how long it took.
    """

    run_id: str
    experiment_id: str
    tool: str = ""
    attempt: int = 1
    phase: Phase = Phase.RUNNING
    started: float = 0.0
    done: float = 0.0
    total: float | None = None
    note: str = ""
    due: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Tally:
    """How the runs of an experiment ended; `seconds` holds the time that each took."""

    tool: str = ""
    finished: int = 0
    failed: int = 0
    killed: int = 0
    retries: int = 0
    last_error: str = ""
    seconds: list[float] = field(default_factory=list)

    @property
    def ended(self) -> int:
        """How many runs have ended."""
        return self.finished + self.failed + self.killed

    @property
    def median_seconds(self) -> float | None:
        """The median time of a run; None before the first has ended."""
        return statistics.median(self.seconds) if self.seconds else None


class RunTracker:
    """Reads the journal entry by entry.

    Args:
        experiments: the tool of each experiment that `each_has_ended` waits for, by id.
    """

    def __init__(self, experiments: Mapping[str, str]) -> None:
        self.expected = tuple(experiments)
        self.tallies = {experiment_id: Tally(tool) for experiment_id, tool in experiments.items()}
        self.running: dict[str, Run] = {}
        self.ended: deque[Run] = deque(maxlen=ENDED_KEPT)

    def read(self, entry: JournalEntry) -> Run | None:
        """Apply an entry; return its run, or None if the entry is about no run."""
        data = entry.data
        run_id, experiment_id = data.get("run_id"), data.get("experiment_id")
        if not isinstance(run_id, str) or not isinstance(experiment_id, str):
            return None
        run = self.running.setdefault(run_id, Run(run_id, experiment_id, started=_time(data)))
        if entry.kind == "result":
            self._end(run, data)
        else:
            self._update(run, data)
        return run

    def each_has_ended(self, times: int) -> bool:
        """Whether each expected experiment has had at least so many runs that ended."""
        return all(self.tallies[experiment_id].ended >= times for experiment_id in self.expected)

    def total(self) -> Tally:
        """Return the counts of all experiments together."""
        total = Tally()
        for one in self.tallies.values():
            total.finished += one.finished
            total.failed += one.failed
            total.killed += one.killed
            total.retries += one.retries
        return total

    def latest(self, count: int) -> Iterable[Run]:
        """Return the runs that ended last, the latest first."""
        return [run for run, _ in zip(reversed(self.ended), range(count), strict=False)]

    def _update(self, run: Run, data: Mapping[str, Any]) -> None:
        match data.get("event"):
            case "run_started":
                run.phase, run.attempt, run.tool = Phase.RUNNING, data["attempt"], data.get("tool") or ""
                run.started, run.done, run.total, run.note = _time(data), 0.0, None, ""
            case "progress":
                run.done, run.total = data["done"], data.get("total")
                run.note = data.get("message") or ""
            case "run_retrying":
                run.phase, run.note = Phase.RETRYING, failure(data)
                run.due = _time(data) + data["delay_seconds"]
                self._tally(run).retries += 1

    def _end(self, run: Run, data: Mapping[str, Any]) -> None:
        tally = self._tally(run)
        run.seconds = data.get("duration", 0.0)
        if data.get("type") == "experiment_completed":
            run.phase, run.note = Phase.FINISHED, key_values(data.get("result_summary", {}))
            tally.finished += 1
        else:
            run.note = tally.last_error = failure(data)
            if data.get("status") in (Status.TIMEOUT, Status.CANCELLED):
                run.phase, tally.killed = Phase.KILLED, tally.killed + 1
            else:
                run.phase, tally.failed = Phase.FAILED, tally.failed + 1
        tally.seconds.append(run.seconds)
        del self.running[run.run_id]
        self.ended.append(run)

    def _tally(self, run: Run) -> Tally:
        tally = self.tallies.setdefault(run.experiment_id, Tally())
        tally.tool = run.tool or tally.tool
        return tally


def _time(data: Mapping[str, Any]) -> float:
    return float(data.get("timestamp", 0.0))
