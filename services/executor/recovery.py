"""Heartbeats, runs of dead workers, retries that are due, and runs that nobody wants any more."""

import asyncio
import re
import time
from collections.abc import Sequence

import structlog
from msgspec.structs import replace

from services.executor import report
from services.executor.intake import Intake
from services.executor.outcome import Outcome, Status
from services.executor.store import Claim, Finished, Order, RunCancellation, Store, experiment_of
from services.executor.triggers import Triggers
from shared import keys
from shared.backoff import Outage, shutdown_timeout, until_available
from shared.documents import iso, json_object, member
from shared.errors import ContractError, FullsendError, StoreError, StoreUnavailableError
from shared.messages import Experiment, State

log = structlog.get_logger()

BEATS_PER_TTL = 3
PROMOTE_SECONDS = 0.5
MAX_LOSSES = 3
LONGEST_PAUSE_SECONDS = 1.0
_RUN_ID = re.compile(r".+:\d+-\d+", re.DOTALL)


class RunCancelledError(FullsendError):
    """Somebody asked for the run's end."""


class WorkerDiedError(FullsendError):
    """The worker that held the run ended before it could report."""


class Recovery:
    """The watch that one worker keeps over itself and the others.

    Args:
        store: where it is kept.
        worker: this worker's name.
        ttl_seconds: after which silence counts as death.
        intake: what runs here.
        triggers: whether this worker listens.
        observer: is told of the runs of the dead.
    """

    def __init__(
        self,
        store: Store,
        worker: str,
        ttl_seconds: float,
        intake: Intake,
        triggers: Triggers | None,
        observer: report.Observer,
    ) -> None:
        self._store = store
        self._worker = worker
        self._ttl_seconds = ttl_seconds
        self._intake = intake
        self._triggers = triggers
        self._observer = observer
        self._dead: set[str] = set()
        self._found = asyncio.Event()

    async def register(self) -> None:
        """Be known before the first claim: who is not known and holds claims counts as dead."""
        await self._store.queue.create_group()
        await self._store.workers.identify_data()
        await self._show(listening=False)

    async def beat(self) -> None:
        """Show that this worker lives, until cancelled."""
        last = time.monotonic()
        outage = Outage("heartbeat")
        while True:
            try:
                dead = await self._heartbeat()
                is_same_data = await self._store.workers.identify_data()
                # When data was lost, nobody has taken over what runs here.
                if is_same_data and time.monotonic() - last > self._ttl_seconds:
                    await self._intake.drop_lost(self._store.runs.is_lost)
                last = time.monotonic()
                self._dead.update(dead)
                self._found.set()
                outage.ended()
            except StoreError as exc:
                outage.failed(exc)
            await asyncio.sleep(self._ttl_seconds / BEATS_PER_TTL)

    async def watch(self) -> None:
        """End the runs here that nobody wants any more, until cancelled; no heartbeat waits for that."""
        outage = Outage("unwanted")
        while True:
            try:
                await self._end_unwanted()
                outage.ended()
            except StoreError as exc:
                outage.failed(exc)
            await asyncio.sleep(self._ttl_seconds / BEATS_PER_TTL)

    async def rescue(self) -> None:
        """Take over from the dead that a heartbeat has found, until cancelled; the heart goes on beating."""
        while True:
            await self._found.wait()
            self._found.clear()
            while self._dead:
                worker = self._dead.pop()
                try:
                    await self._take_over(worker)
                except StoreError as exc:  # still dead at the next heartbeat
                    log.warning("worker.not_taken_over", dead=worker, error=str(exc))
                except Exception:  # a fault of ours in looking after others must not end what runs here
                    log.exception("worker.not_taken_over", dead=worker)

    async def promote(self) -> None:
        """Queue the retries that are due, until cancelled."""
        outage = Outage("retries", longest_pause_seconds=PROMOTE_SECONDS)
        while True:
            try:
                _, next_ms = await self._store.queue.promote()
            except StoreError as exc:
                pause = outage.failed(exc)
            else:
                outage.ended()
                pause = PROMOTE_SECONDS if next_ms is None else min(next_ms / 1_000, PROMOTE_SECONDS)
            await asyncio.sleep(pause)

    async def leave(self) -> None:
        """Take this worker off the list."""
        try:
            async with shutdown_timeout():
                await self._store.workers.forget(self._worker)
        except FullsendError as exc:
            log.warning("worker.not_forgotten", error=str(exc))

    async def _heartbeat(self) -> list[str]:
        listening = self._triggers is not None and self._triggers.listening.is_set()
        dead = await self._show(listening=listening)
        dead += await self._store.workers.strays()
        return [worker for worker in dead if worker != self._worker]

    async def _show(self, *, listening: bool) -> list[str]:
        return await self._store.workers.heartbeat(
            self._worker, self._ttl_seconds, listening=listening, slots=self._intake.concurrency
        )

    async def _end_unwanted(self) -> None:
        """End the runs here that somebody cancelled, or whose experiment was archived."""
        running = [one for one in self._intake.running if not one.cancel.is_set()]
        if not running:
            return
        ids = list(dict.fromkeys(one.claim.order.experiment_id for one in running))
        stored = dict(zip(ids, await self._store.experiments.read_many(ids), strict=True))
        cancelled = await self._store.runs.to_be_cancelled([one.claim.order.run_id for one in running])
        for one in running:
            experiment = stored[one.claim.order.experiment_id].experiment
            archived = experiment is not None and experiment.state is State.ARCHIVED
            if archived or one.claim.order.run_id in cancelled:
                reason = "archived" if archived else "cancelled"
                log.warning("run.cancelling", run_id=one.claim.order.run_id, reason=reason)
                one.cancel.set()

    # -- runs of the dead -------------------------------------------------------------

    async def _take_over(self, worker: str) -> None:
        for claim in await self._store.queue.claims_of(worker):
            with structlog.contextvars.bound_contextvars(run_id=claim.order.run_id):
                try:
                    await self._take_up(claim)
                except StoreError as exc:  # one bad claim must not keep the others
                    log.warning("run.not_recovered", error=str(exc))
                except Exception:
                    log.exception("run.not_recovered")
        if await self._store.workers.forget(worker):
            log.warning("worker.died", dead=worker)

    async def _take_up(self, claim: Claim) -> None:
        if await self._lease_in_record(claim) != claim.lease:  # it had not begun
            await self._requeue(claim, claim.order)
            return
        loss = {
            "attempt": claim.order.attempt,
            "error": f"worker {claim.worker} died",
            "error_type": WorkerDiedError.__name__,
            "at": iso(time.time()),
        }
        order = claim.order.after_loss(loss)
        experiment = await self._experiment(claim.order)
        if order.losses >= MAX_LOSSES:
            await self._bury(claim, order, experiment, f"that was the last of {MAX_LOSSES} allowed times")
        elif experiment and experiment.policy.on_worker_death == "fail":
            await self._bury(claim, order, experiment, "the experiment's on_worker_death is 'fail'")
        else:
            await self._requeue(claim, order, ("status", "running", "attempts", report.attempts_text(order)))

    async def _requeue(
        self, claim: Claim, order: Order, fields: Sequence[str] = ("status", "running")
    ) -> None:
        if await self._store.queue.requeue(claim, order, fields):
            self._observer.taken_over()
            log.warning("run.recovered", attempt=order.attempt, losses=order.losses)

    async def _lease_in_record(self, claim: Claim) -> str | None:
        """The lease that the run's record carries; None where nobody can read it, which its begin reports."""
        try:
            return (await self._store.runs.record(claim.order.run_id)).get("lease")
        except StoreUnavailableError:
            raise
        except StoreError as exc:
            log.warning("record.unreadable", error=str(exc))
            return None

    async def _experiment(self, order: Order) -> Experiment | None:
        """What is run; None where nobody can read it, which the next attempt reports."""
        stored = await self._store.experiments.read(order.experiment_id)
        try:
            return experiment_of(order, stored)
        except ContractError:
            return None

    async def _bury(self, claim: Claim, order: Order, experiment: Experiment | None, reason: str) -> None:
        now = time.time()
        error = WorkerDiedError(f"worker {claim.worker} died during the run; {reason}")
        artifacts = await until_available("artifacts", self._store.runs.checkpoints(order.run_id).artifacts)
        outcome = replace(Outcome.of_error(error, Status.LOST), artifacts=artifacts)
        ending = report.ending(order, outcome, now, now)
        answer = await until_available("bury", lambda: self._store.runs.finish(claim, State.FAILED, *ending))
        if answer is Finished.FINISHED:
            self._observer.buried(outcome.status, experiment.tool if experiment else None)
        log.error("run.buried", losses=order.losses, reason=reason)


# -- cancellation -----------------------------------------------------------------------


async def cancel(store: Store, run_id: str) -> RunCancellation:
    """Ask for a run's end.

    A run that waits ends at once; one under way is ended by the worker that has
    it, at its next heartbeat.  May be asked for by any number of workers at once.

    Args:
        store: where the run is.
        run_id: `{experiment_id}:{timestamp}`.
    """
    experiment_id, _, timestamp = run_id.rpartition(":")
    order = Order(experiment_id, trigger="", timestamp=timestamp)
    now = time.time()
    outcome = Outcome.of_error(RunCancelledError("the run was cancelled while it waited"), Status.CANCELLED)
    fields = {"run_id": run_id, "experiment_id": experiment_id}
    fields |= report.end_fields(order, outcome, now, now)
    [event] = report.end_events(order, outcome, now, now)
    return await store.runs.cancel(order, fields, event, report.result(order, outcome, now, now))


class Cancellations:
    """Listens for run ids on `fullsend:executor:cancel`: `{"run_id": ...}`."""

    def __init__(self, store: Store, observer: report.Observer) -> None:
        self._store = store
        self._observer = observer

    async def run(self) -> None:
        """Listen until cancelled; a broken connection is made again."""
        outage = Outage("cancellations", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                async with self._store.subscriptions.to((keys.CANCEL,)) as messages:
                    outage.ended()
                    async for message in messages:
                        await self._take(message.data)
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))

    async def _take(self, data: str) -> None:
        try:
            run_id = member(
                "cancellation", "run_id", json_object("cancellation", data).get("run_id"), _run_id
            )
        except ContractError as exc:
            log.warning("cancellation.refused", error=str(exc))
            return
        answer = await until_available("cancellation", lambda: cancel(self._store, run_id))
        if answer is RunCancellation.CANCELLED:
            self._observer.ended_unbegun(Status.CANCELLED)
        log.info("run.cancellation", run_id=run_id, answer=answer.value)


def _run_id(value: object) -> str:
    if not isinstance(value, str) or not _RUN_ID.fullmatch(value):
        raise ValueError("must be {experiment_id}:{timestamp}")
    return value
