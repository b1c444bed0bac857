"""A run's transitions: report, retry, finish.  Each is one script, fenced by the attempt's lease."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import structlog
from msgspec import Struct
from msgspec.structs import replace

from services.executor.store.checkpoints import Checkpoints
from services.executor.store.claims import Claims, Retention
from services.executor.store.orders import Claim, Order
from services.executor.store.scripts import Fields, Script, Scripts, asking, flat, mark_of
from shared import keys
from shared.documents import json_text
from shared.messages import State

log = structlog.get_logger()

Event = Mapping[str, Any]


class RunCancellation(StrEnum):
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


_EMIT = Script(
    "emit",
    keys=("metrics", "journal", "record"),
    args=("metrics_cap", "journal_cap", "kept_ms", "lease", "batch", "events[]"),
)
_RETRY = Script(
    "retry",
    keys=("queue", "record", "open_runs", "retries", "metrics", "journal"),
    args=(
        "entry", "timestamp", "lease", "order", "delay_ms", "metrics_cap", "journal_cap", "run", "kept_ms",
        "events[]", "fields[]",
    ),
)  # fmt: skip
_CANCEL = Script(
    "cancel",
    keys=("record", "open_runs", "metrics", "journal"),
    args=(
        "timestamp", "experiment_id", "result", "event", "kept_ms", "metrics_cap", "journal_cap", "state",
        "fields[]",
    ),
)  # fmt: skip
_LOG = Script("log", keys=("log", "record"), args=("log_cap", "kept_ms", "batch", "lengths[]", "parts[]"))
_FINISH = Script("finish", keys=("journal",), args=("kept_ms", "metrics_cap", "journal_cap", "endings[]"))


class _Ending(Struct, frozen=True):
    """The end of a run, as `lua/finish.lua` reads it.

    Attributes:
        queue, record, open_runs, metrics: keys.
        lease: "" for a run that never began.
        state: the experiment's next one, or "" to leave it.
        result, events: JSON.
        fields: of the record, names and values in turn.
    """

    queue: str
    record: str
    open_runs: str
    metrics: str
    entry: str
    timestamp: str
    lease: str
    experiment_id: str
    run: str
    state: str
    result: str
    events: list[str]
    fields: list[str]


_RESTORE = Script(
    "restore",
    keys=("record", "metrics", "journal"),
    args=(
        "lease", "kept_ms", "metrics_cap", "journal_cap", "result", "run", "experiment_id", "timestamp",
        "events[]", "fields[]",
    ),
)  # fmt: skip

LOST = "Redis lost its data while the run was under way (FLUSHALL, or a restart without its data)"


class Runs:
    """The records of runs, and all that is said about them."""

    def __init__(self, scripts: Scripts, claims: Claims, retention: Retention) -> None:
        self._scripts = scripts
        self._claims = claims
        self._keep = retention
        self._told: set[str] = set()

    def describe(self, claim: Claim, fields: Fields) -> None:
        """Add to the record of a run what only its worker knows.  Nobody waits for it, and it may be lost."""
        self._scripts.send("HSET", keys.run(claim.order.run_id), *flat(fields))

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
        self, claim: Claim, state: State, fields: Fields, events: Sequence[Event], result: Event
    ) -> Finished:
        """End a run that had begun: record, state, metrics, result and acknowledgement in one step.

        Args:
            claim: whose lease must still be the record's.
            state: of the experiment, unless somebody changed it meanwhile.
            fields: of the record, among them the final `status`.
            events: metric events, in order.
            result: the message on the result channel.

        If Redis has lost the run with all its data, what can still be said of it is said all the same.
        """
        answer = await self._end(claim, claim.lease, state, fields, events, result)
        if answer is Finished.STALE and await self.is_lost(claim):
            return await self._restore(claim, fields, events, result)
        return answer

    async def is_lost(self, claim: Claim) -> bool:
        """Whether Redis has lost its data since the run was claimed: by FLUSHALL, or a restart without any.

        Otherwise, a claim that isn't there any more was taken over.
        """
        if not claim.dataset:
            return False
        async with asking("dataset"):
            return bool(await self._scripts.client.get(keys.dataset()) != claim.dataset)

    async def _restore(
        self, claim: Claim, fields: Fields, events: Sequence[Event], result: Event
    ) -> Finished:
        order, note = claim.order, {"note": LOST}
        answer = await self._scripts.call(
            _RESTORE,
            [keys.run(order.run_id), keys.metrics(order.experiment_id), keys.journal()],
            [
                claim.lease,
                self._keep.record_ms,
                self._keep.metrics,
                self._keep.journal,
                json_text({**result, **note}),
                order.run_id,
                order.experiment_id,
                str(order.timestamp),
                [json_text(event) for event in events],
                flat({**fields, **note}),
            ],
        )
        if not answer:
            return Finished.STALE
        log.warning("run.restored", run_id=order.run_id, hint=LOST)
        return Finished.FINISHED

    async def reject(self, claim: Claim, fields: Fields, events: Sequence[Event], result: Event) -> Finished:
        """End a claimed run that never began; its experiment's state is left alone."""
        return await self._end(claim, "", "", fields, events, result)

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
                claim.entry,
                str(order.timestamp),
                claim.lease,
                order.encode(),
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

    async def cancel(self, order: Order, fields: Fields, event: Event, result: Event) -> RunCancellation:
        """End a run that waits, or have the worker end it that has it.

        Args:
            order: names the run.
            fields, event, result: of a run that ends while it waits.
        """
        answer = await self._claims.compiling(
            lambda may_move: self._scripts.call(
                _CANCEL,
                [
                    keys.run(order.run_id),
                    keys.open_runs(order.experiment_id),
                    keys.metrics(order.experiment_id),
                    keys.journal(),
                ],
                [
                    str(order.timestamp),
                    order.experiment_id,
                    json_text(result),
                    json_text(event),
                    self._keep.record_ms,
                    self._keep.metrics,
                    self._keep.journal,
                    State.FAILED if may_move else "",
                    flat(fields),
                ],
            )
        )
        return RunCancellation(answer)

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
        flat_lines = [flat(line) for line in lines]
        parts = [part for line in flat_lines for part in line]
        await self._scripts.call(
            _LOG,
            [keys.logs(run_id), keys.run(run_id)],
            [
                self._keep.log_lines,
                self._keep.record_ms,
                mark_of(parts),
                [len(line) for line in flat_lines],
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
        state: State | Literal[""],
        fields: Fields,
        events: Sequence[Event],
        result: Event,
    ) -> Finished:
        order, keep = claim.order, self._keep
        ending = _Ending(
            queue=claim.queue,
            record=keys.run(order.run_id),
            open_runs=keys.open_runs(order.experiment_id),
            metrics=keys.metrics(order.experiment_id),
            entry=claim.entry,
            timestamp=str(order.timestamp),
            lease=lease,
            experiment_id=order.experiment_id,
            run=order.run_id,
            state=state,
            result=json_text(result),
            events=[json_text(event) for event in events],
            fields=flat(fields),
        )
        answer, *skipped = await self._claims.compiling(
            lambda may_move: self._scripts.call_together(
                _FINISH,
                (keys.journal(),),
                lambda _: (keep.record_ms, keep.metrics, keep.journal),
                ending if may_move else replace(ending, state=""),
            )
        )
        self._tell(skipped)
        return Finished(answer)

    def _tell(self, skipped: Sequence[str]) -> None:
        """Say, once each, which keys a run was ended without."""
        for key in skipped:
            if key not in self._told:
                log.warning("key.unusable", key=key, hint="somebody has made another Redis type of it")
        self._told.update(skipped)
