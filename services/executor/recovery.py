"""Shows that this worker lives, takes up the runs of dead ones, and queues the retries that are due."""

import asyncio
import time

import structlog
from msgspec.structs import replace

from services.executor import report
from services.executor.intake import Intake
from services.executor.outcome import Outcome, Status
from services.executor.store import Claim, Order, Store
from services.executor.triggers import Triggers
from services.executor.work import experiment_of, may_run_ahead
from shared.backoff import Outage, shutdown_timeout, until_available
from shared.documents import iso
from shared.errors import ContractError, FullsendError, StoreError, StoreUnavailableError
from shared.messages import Experiment, State

log = structlog.get_logger()

BEATS_PER_TTL = 3
PROMOTE_SECONDS = 0.5
MAX_LOSSES = 3


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
    """

    def __init__(
        self, store: Store, worker: str, ttl_seconds: float, intake: Intake, triggers: Triggers | None
    ) -> None:
        self._store = store
        self._worker = worker
        self._ttl_seconds = ttl_seconds
        self._intake = intake
        self._triggers = triggers
        self._dead: set[str] = set()
        self._found = asyncio.Event()

    async def register(self) -> None:
        """Be known before the first claim: who is not known and holds claims counts as dead."""
        await self._store.queue.create_group()
        await self._store.workers.heartbeat(self._worker, self._ttl_seconds, listening=False)

    async def beat(self) -> None:
        """Show that this worker lives, until cancelled."""
        last = time.monotonic()
        outage = Outage("heartbeat")
        while True:
            try:
                sent = time.monotonic()
                dead = await self._heartbeat()
                if time.monotonic() - last > self._ttl_seconds:
                    await self._intake.drop_lost()
                last = time.monotonic()
                self._intake.sure_until = sent + self._ttl_seconds
                self._dead.update(dead)
                self._found.set()
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
        dead = await self._store.workers.heartbeat(self._worker, self._ttl_seconds, listening=listening)
        dead += await self._store.workers.strays()
        return [worker for worker in dead if worker != self._worker]

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
        experiment = await self._experiment(claim.order)
        has_begun = await self._lease_in_record(claim) == claim.lease
        if not has_begun and not (experiment and may_run_ahead(claim, experiment)):
            if await self._store.queue.requeue(claim, claim.order):
                log.info("run.recovered", attempt=claim.order.attempt)
            return
        doubt = "" if has_begun else "; its tool may have been called by then"
        loss = {
            "attempt": claim.order.attempt,
            "error": f"worker {claim.worker} died{doubt}",
            "error_type": WorkerDiedError.__name__,
            "at": iso(time.time()),
        }
        order = claim.order.after_loss(loss)
        if order.losses >= MAX_LOSSES:
            await self._bury(claim, order, f"that was the last of {MAX_LOSSES} times that are allowed")
            return
        if experiment and experiment.policy.on_worker_death == "fail":
            await self._bury(claim, order, "the experiment's on_worker_death is 'fail'")
            return
        attempts = report.attempts_text(order)
        if await self._store.queue.requeue(claim, order, ("status", "running", "attempts", attempts)):
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

    async def _bury(self, claim: Claim, order: Order, reason: str) -> None:
        now = time.time()
        error = WorkerDiedError(f"worker {claim.worker} died during the run; {reason}")
        artifacts = await until_available("artifacts", self._store.runs.checkpoints(order.run_id).artifacts)
        outcome = replace(Outcome.of_error(error, Status.LOST), artifacts=artifacts)
        stored = await self._store.experiments.read(order.experiment_id)
        fields = report.end_fields(order, outcome, now, now)
        events = report.end_events(order, outcome, now, now)
        message = report.result(order, outcome, now, now)
        await until_available(
            "bury",
            lambda: self._store.runs.finish(claim, stored, State.FAILED, fields, events, message),
        )
        log.error("run.buried", losses=order.losses, reason=reason)
