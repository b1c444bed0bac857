"""A run's transitions: begin, report, retry, finish.  Each is one script, fenced by the attempt's lease."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import structlog

from services.executor.store.checkpoints import Checkpoints
from services.executor.store.deliveries import GROUP
from services.executor.store.experiments import Experiments, Stored
from services.executor.store.orders import Claim, Order
from services.executor.store.queue import Limit
from services.executor.store.scripts import Fields, Script, Scripts, asking, flat, mark_of
from shared import keys
from shared.documents import json_text
from shared.messages import State

log = structlog.get_logger()

Event = Mapping[str, Any]

_BEGIN = Script(
    "begin",
    keys=(
        "queue", "record", "experiment", "open_runs", "metrics", "journal", "retries", "nudges",
        "limit_keys[]",
    ),
    args=(
        "group", "worker", "entry", "timestamp", "run", "state", "expected", "replacement", "event",
        "metrics_cap", "journal_cap", "order", "lease", "kept_ms", "limit_values[]", "fields[]",
    ),
)  # fmt: skip
_EMIT = Script(
    "emit",
    keys=("metrics", "journal", "record"),
    args=("metrics_cap", "journal_cap", "kept_ms", "lease", "batch", "events[]"),
)
_RETRY = Script(
    "retry",
    keys=("queue", "record", "open_runs", "retries", "metrics", "journal"),
    args=(
        "group", "entry", "timestamp", "lease", "order", "delay_ms", "metrics_cap", "journal_cap", "run",
        "kept_ms", "events[]", "fields[]",
    ),
)  # fmt: skip
_CANCEL = Script(
    "cancel",
    keys=("record", "open_runs", "metrics", "journal", "experiment"),
    args=(
        "timestamp", "result", "event", "kept_ms", "metrics_cap", "journal_cap", "state", "expected",
        "replacement", "group", "order_head", "fields[]",
    ),
)  # fmt: skip
_LOG = Script("log", keys=("log", "record"), args=("log_cap", "kept_ms", "batch", "lengths[]", "parts[]"))
_FINISH = Script(
    "finish",
    keys=("queue", "record", "experiment", "open_runs", "metrics", "journal"),
    args=(
        "group", "entry", "timestamp", "lease", "state", "expected", "replacement", "result", "kept_ms",
        "metrics_cap", "journal_cap", "run", "events[]", "fields[]",
    ),
)  # fmt: skip


class Begun(StrEnum):
    """What became of an attempt to begin."""

    BEGUN = "begun"
    LOST = "lost"
    WAITING = "waiting"
    CANCELLED = "cancelled"
    ARCHIVED = "archived"


class Cancelled(StrEnum):
    """What became of a wish to end a run."""

    CANCELLED = "cancelled"
    ALREADY = "already"
    CANCELLING = "cancelling"
    OVER = "over"


class Finished(StrEnum):
    """What became of a reported outcome."""

    FINISHED = "finished"
    STALE = "stale"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Retention:
    """How much is kept for those who ask later.

    `record_ms` counts from the end of a run, and for metrics from the last one.
    """

    record_ms: int
    metrics: int
    journal: int
    log_lines: int


class Runs:
    """The records of runs, and all that is said about them."""

    def __init__(self, scripts: Scripts, experiments: Experiments, retention: Retention) -> None:
        self._scripts = scripts
        self._experiments = experiments
        self._keep = retention
        self._told: set[str] = set()

    async def begin(
        self,
        claim: Claim,
        stored: Stored,
        fields: Fields,
        event: Event,
        limits: Sequence[Limit] = (),
    ) -> tuple[Begun, Stored]:
        """Begin the claimed attempt: the record says so, the experiment is `running`.

        Args:
            claim: what this worker holds.
            stored: the experiment as it was read.
            fields: of the record; `lease` and `status` are added.
            event: the `run_started` metric.
            limits: that the run takes room under; without room it waits, and comes again by itself.

        Returns:
            What became of it, and the experiment as it is stored now.

        Raises:
            StoreError: a key of the run is of another type; nothing was changed, and the run can be rejected.
        """
        order = claim.order
        fields = {**fields, "status": "running", "lease": claim.lease}
        if limits:
            fields["limits"] = "\n".join(limit.key for limit in limits)
        while True:
            answer = await self._scripts.call(
                _BEGIN,
                [
                    claim.queue,
                    *self._run_keys(order),
                    keys.retries(),
                    keys.nudges(),
                    *(name for limit in limits for name in limit.key_names),
                ],
                [
                    GROUP,
                    claim.worker,
                    claim.entry,
                    str(order.timestamp),
                    order.run_id,
                    *stored.move(State.RUNNING),
                    json_text(event),
                    self._keep.metrics,
                    self._keep.journal,
                    order.to_json() if limits else "",
                    claim.lease,
                    self._keep.record_ms,
                    [part for limit in limits for part in _limit_arguments(limit, order)],
                    flat(fields),
                ],
            )
            if answer != "conflict":
                return Begun(answer), stored.moved(State.RUNNING)
            stored = await self._experiments.read(order.experiment_id)

    async def emit(self, claim: Claim, events: Sequence[Event]) -> bool:
        """Publish metric events of the attempt and keep them; False when it is not this worker's any more."""
        texts = [json_text(event) for event in events]
        answer = await self._scripts.call(
            _EMIT,
            [keys.metrics(claim.order.experiment_id), keys.journal(), keys.run(claim.order.run_id)],
            [
                self._keep.metrics,
                self._keep.journal,
                self._keep.record_ms,
                claim.lease,
                mark_of(texts),
                texts,
            ],
        )
        return bool(answer)

    async def finish(
        self,
        claim: Claim,
        stored: Stored,
        state: State,
        fields: Fields,
        events: Sequence[Event],
        result: Event,
    ) -> Finished:
        """End a run that had begun: record, state, metrics, result and acknowledgement in one step.

        Args:
            claim: whose lease must still be the record's.
            stored: the experiment as `begin` left it.
            state: of the experiment, unless somebody changed it meanwhile.
            fields: of the record, among them the final `status`.
            events: metric events, in order.
            result: the message on the result channel.
        """
        return await self._end(claim, claim.lease, stored, state, fields, events, result)

    async def reject(self, claim: Claim, fields: Fields, events: Sequence[Event], result: Event) -> Finished:
        """End a claimed run that never began; its experiment's state is left alone."""
        return await self._end(claim, "", Stored.nothing(), None, fields, events, result)

    async def retry(
        self,
        claim: Claim,
        order: Order,
        delay_seconds: float,
        fields: Fields,
        events: Sequence[Event],
    ) -> bool:
        """Store that `order` follows after `delay_seconds`; False when the lease is stale."""
        answer, _ = await self._scripts.call(
            _RETRY,
            [
                claim.queue,
                keys.run(order.run_id),
                keys.open_runs(order.experiment_id),
                keys.retries(),
                keys.metrics(order.experiment_id),
                keys.journal(),
            ],
            [
                GROUP,
                claim.entry,
                str(order.timestamp),
                claim.lease,
                order.to_json(),
                round(delay_seconds * 1_000),
                self._keep.metrics,
                self._keep.journal,
                order.run_id,
                self._keep.record_ms,
                [json_text(event) for event in events],
                flat(fields),
            ],
        )
        return bool(answer == "retrying")

    async def cancel(self, order: Order, fields: Fields, event: Event, result: Event) -> Cancelled:
        """End a run that waits, or have the worker end it that has it.

        Args:
            order: names the run.
            fields, event, result: of a run that ends while it waits.
        """
        record, experiment, *others = self._run_keys(order)
        while True:
            stored = await self._experiments.read(order.experiment_id)
            answer = await self._scripts.call(
                _CANCEL,
                [record, *others, experiment],
                [
                    str(order.timestamp),
                    json_text(result),
                    json_text(event),
                    self._keep.record_ms,
                    self._keep.metrics,
                    self._keep.journal,
                    *stored.move(State.FAILED, only_from=State.RUNNING),
                    GROUP,
                    Order.head_json(order.experiment_id),
                    flat(fields),
                ],
            )
            if answer != "conflict":
                return Cancelled(answer)

    async def to_be_cancelled(self, run_ids: Sequence[str]) -> set[str]:
        """Those of the runs under way whose end somebody asked for."""
        if not run_ids:
            return set()
        async with asking("to_be_cancelled"), self._scripts.client.pipeline(transaction=False) as pipe:
            for run_id in run_ids:
                pipe.hget(keys.run(run_id), "cancel")
            asked = await pipe.execute()
        return {run_id for run_id, mark in zip(run_ids, asked, strict=True) if mark}

    def checkpoints(self, run_id: str) -> Checkpoints:
        """The completed steps and the artifacts of a run, which its attempts share."""
        return Checkpoints(self._scripts, run_id, self._keep.record_ms)

    async def log(self, run_id: str, lines: Sequence[Fields]) -> None:
        """Append to what a run printed; the oldest lines go when there are too many."""
        if not lines:
            return
        flats = [flat(line) for line in lines]
        parts = [part for line in flats for part in line]
        await self._scripts.call(
            _LOG,
            [keys.logs(run_id), keys.run(run_id)],
            [
                self._keep.log_lines,
                self._keep.record_ms,
                mark_of(parts),
                [len(line) for line in flats],
                parts,
            ],
        )

    async def record(self, run_id: str) -> dict[str, str]:
        """The record of a run; empty when there is none."""
        async with asking("record"):
            return dict(await self._scripts.client.hgetall(keys.run(run_id)))

    async def _end(
        self,
        claim: Claim,
        lease: str,
        stored: Stored,
        state: State | None,
        fields: Fields,
        events: Sequence[Event],
        result: Event,
    ) -> Finished:
        order = claim.order
        while True:
            answer, *skipped = await self._scripts.call(
                _FINISH,
                [claim.queue, *self._run_keys(order)],
                [
                    GROUP,
                    claim.entry,
                    str(order.timestamp),
                    lease,
                    *stored.move(state, only_from=State.RUNNING),
                    json_text(result),
                    self._keep.record_ms,
                    self._keep.metrics,
                    self._keep.journal,
                    order.run_id,
                    [json_text(event) for event in events],
                    flat(fields),
                ],
            )
            if answer != "conflict":
                self._tell(skipped)
                return Finished(answer)
            stored = await self._experiments.read(order.experiment_id)

    def _tell(self, skipped: Sequence[str]) -> None:
        """Say, once each, which keys a run was ended without."""
        for key in skipped:
            if key not in self._told:
                log.warning("key.unusable", key=key, hint="somebody has made another Redis type of it")
        self._told.update(skipped)

    @staticmethod
    def _run_keys(order: Order) -> tuple[str, str, str, str, str]:
        return (
            keys.run(order.run_id),
            keys.experiment(order.experiment_id),
            keys.open_runs(order.experiment_id),
            keys.metrics(order.experiment_id),
            keys.journal(),
        )


def _limit_arguments(limit: Limit, order: Order) -> list[str | int | float]:
    reserved = "" if limit.key in order.reserved else order.with_turn_under(limit.key).to_json()
    return [limit.key, limit.max_concurrent or 0, limit.interval_ms, limit.burst, reserved]
