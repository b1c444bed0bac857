"""One run: begin, perform, judge, report.

A claim has begun the run already: its record says `running`, and that it is this worker's.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from services.executor import report
from services.executor.artifacts import Keeper
from services.executor.isolation.attempt import Caller
from services.executor.isolation.calls import Call
from services.executor.loader import Loader, Tool
from services.executor.metrics import Emitter
from services.executor.outcome import CANCELLED, GiveUp, Outcome, Retry, Status, judge, retry_or_give_up
from services.executor.policy import Defaults, RunOptions
from services.executor.result_cache import Identity, ResultCache
from services.executor.results import AttemptResults
from services.executor.store import Begun, Claim, Finished, Store, experiment_of
from services.executor.tools.bundles import parse
from services.executor.tools.readiness import Readiness
from shared.backoff import Backoff, Dice, shutdown_timeout, until_available
from shared.errors import FullsendError, StoreError, StoreUnavailableError
from shared.messages import Experiment, Policy, State
from shared.threads import Threads

log = structlog.get_logger()

STORING_THREADS = 8
OPTIONS_KEPT = 1_000
DETAILS_AFTER_SECONDS = 0.25
"""A run that is under way for so long gets what only its worker knows into its record before its end."""


@dataclass(slots=True, eq=False)
class Running:
    """A run that has a slot here, or had it until its tool was done, and is being reported.

    Attributes:
        claim: the order, held by this worker.
        cancel: when set, the attempt is ended.
    """

    claim: Claim
    on_free: Callable[[], None]
    has_slot: bool = True
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def free_slot(self) -> None:
        """The tool is done, and nothing is left to do but to report."""
        if self.has_slot:
            self.has_slot = False
            self.on_free()


@dataclass(frozen=True)
class Work:
    """A run that has begun, with all that its experiment and its tool say."""

    claim: Claim
    experiment: Experiment
    tool: Tool
    params: Mapping[str, Any]
    options: RunOptions

    @property
    def identity(self) -> Identity:
        """All that the result may depend on."""
        return Identity(
            tool_digest=self.tool.module.digest,
            entry_point=self.tool.description.entry,
            parameters=self.params,
            seed=self.experiment.policy.seed,
            environment_digest=self.tool.module.environment,
        )

    @functools.cached_property
    def details(self) -> report.Members:
        """What the record says besides what the claim wrote."""
        return report.details(self.claim.order, self.identity, self.params)


@dataclass(frozen=True)
class Fault:
    """A run that has begun and can't be performed, and why."""

    claim: Claim
    experiment: Experiment | None
    error: FullsendError
    limit_seconds: float
    tool_digest: str | None = None

    @functools.cached_property
    def details(self) -> report.Members:
        """What the record says besides what the claim wrote; of the tool, its digest at most."""
        return report.details(self.claim.order, self.tool_digest, self.claim.order.params)


class _Start(msgspec.Struct, frozen=True):
    """When an attempt began, unix seconds."""

    at: float = msgspec.field(default_factory=time.time)
    _monotonic: float = msgspec.field(default_factory=time.monotonic)

    def now(self) -> float:
        """Unix seconds as counted from there: setting the clock meanwhile makes no duration wrong."""
        return self.at + time.monotonic() - self._monotonic


class Runner:
    """Performs claimed runs.

    Args:
        store: where runs are reported.
        loader: finds tools.
        readiness: loads tools that are not loaded yet.
        caller: calls tools.
        keeper: keeps what they produce.
        defaults: see `Defaults`.
        dice: for the jitter of retries.
        observer: is told what happens to runs.
    """

    def __init__(
        self,
        store: Store,
        loader: Loader,
        readiness: Readiness,
        caller: Caller,
        keeper: Keeper,
        defaults: Defaults,
        dice: Dice,
        observer: report.Observer,
    ) -> None:
        self._store = store
        self._loader = loader
        self._readiness = readiness
        self._caller = caller
        self._keeper = keeper
        self._threads = Threads(STORING_THREADS)
        self._cache = ResultCache(store.cached_runs, keeper, self._threads)
        self._defaults = defaults
        self._options = functools.lru_cache(OPTIONS_KEPT)(defaults.options)
        self._dice = dice
        self._observer = observer

    async def run(self, running: Running) -> None:
        """Perform one attempt of a run and report what it came to, in a task of its own.

        Being cancelled as a task means that the worker stops: the tool is ended
        and the run goes back to the queue as if this attempt had not been.
        """
        claim = running.claim
        structlog.contextvars.bind_contextvars(run_id=claim.order.run_id)
        try:
            match claim.begun:
                case Begun.BEGUN:
                    await self._attempt(running)
                case Begun.ARCHIVED:
                    await self._reject(claim, Outcome.archived(claim.order))
                case Begun.CANCELLED:
                    await self._reject(claim, CANCELLED)
                case Begun.BROKEN:
                    await self._reject(claim, Outcome.of_error(StoreError(claim.error)))
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(claim))
            raise
        except Exception as exc:  # a fault of ours must not leave the run without an end
            log.exception("run.broke")
            await self._bury(claim, exc)

    async def _attempt(self, running: Running) -> None:
        claim, started = running.claim, _Start()
        order, loop = claim.order, asyncio.get_running_loop()
        self._observer.begun(claim, claim.tool, started.at)
        work = await self._prepare(claim)
        if isinstance(work, Fault) and self._readiness.may_be_elsewhere(work.error):
            await self._give_back(claim)
            return
        loop.call_soon(_say_started, work)  # when the tool is called, which doesn't wait for it
        later = loop.call_later(DETAILS_AFTER_SECONDS, lambda: self._store.runs.describe(claim, work.details))
        try:
            outcome = await self._perform(work, running)
        finally:
            later.cancel()
        self._observer.reporting(claim)
        decision = retry_or_give_up(
            order.attempt,
            retryable=outcome.retryable and not _must_not_repeat(work, outcome),
            retry_after_seconds=outcome.retry_after_seconds,
            backoff=self._retries(work),
            dice=self._dice,
        )
        match decision:
            case Retry(delay_seconds):
                is_stored = await self._retry(claim, outcome, work.details, delay_seconds)
                if not is_stored and await until_available("lost", lambda: self._store.runs.is_lost(claim)):
                    await self._finish(claim, outcome, work.details, started)
            case GiveUp(exhausted):
                # A case of a plan has one attempt here; the plan decides about others.
                is_case = bool(order.experiment)
                final = outcome.exhausted(order.attempt) if exhausted and not is_case else outcome
                is_finished = await self._finish(claim, final, work.details, started)
                if is_finished and final.partial_results is not None:
                    await self._store.runs.checkpoints(order.run_id).drop_partials()
                if is_finished and isinstance(work, Work) and work.experiment.policy.cache:
                    await self._cache.remember(work.identity.digest, order.run_id, final)

    # -- begin ------------------------------------------------------------------------

    async def _prepare(self, claim: Claim) -> Work | Fault:
        """Find all that is needed before the tool can be called."""
        experiment: Experiment | None = None
        limit_seconds = self._defaults.timeout_seconds
        try:
            experiment = experiment_of(claim.order, claim.stored)
            limit_seconds = experiment.policy.timeout_seconds or limit_seconds
            tool = self._loader.loaded(experiment.tool) or await self._readiness.load(
                experiment.tool, limit_seconds
            )
            params = {**experiment.params, **claim.order.params}
            tool.check(params)
            options = self._options(experiment.policy, tool.needs)
        except FullsendError as exc:
            return Fault(claim, experiment, exc, limit_seconds, self._digest(experiment))
        return Work(claim, experiment, tool, params, options)

    def _digest(self, experiment: Experiment | None) -> str | None:
        """The digest of code that was found, even if it can't be used."""
        if experiment is None:
            return None
        try:
            reference = parse(experiment.tool)
            return reference[1] if reference else self._loader.find(experiment.tool).digest
        except FullsendError:
            return None

    # -- perform, judge ---------------------------------------------------------------

    async def _perform(self, work: Work | Fault, running: Running) -> Outcome:
        """Call the tool, and judge its answer; what it produced is kept then."""
        order = work.claim.order
        memory = self._store.runs.checkpoints(order.run_id)
        products = AttemptResults(self._keeper, memory, self._threads, attempt=work.claim.lease)
        is_first = order.attempt == 1 and not order.losses
        if isinstance(work, Fault):
            fault = Outcome.of_fault(work.error, work.limit_seconds)
            return await products.complete(fault, is_first=is_first)
        if work.experiment.policy.cache:
            known = await self._cache.recall(work.identity.digest)
            if known is not None:
                return known
        products.mask, products.named = work.options.mask, work.options.named
        emitter = self._emitter(work, products)
        try:
            answer = await self._caller.call(
                _call(work), emitter.report, effects=products, cancel=running.cancel
            )
            await emitter.drain()
        except BaseException:
            emitter.drop()
            raise
        kept, fails = emitter.partials, work.options.reported_failures
        outcome = judge(answer, kept.items, kept.dropped, kept.explicit, reported_failures=fails)
        outcome = outcome.masked(work.options.mask)
        running.free_slot()
        return await products.complete(outcome, is_first=is_first)

    def _emitter(self, work: Work, products: AttemptResults) -> Emitter:
        claim, runs = work.claim, self._store.runs
        run_id = claim.order.run_id
        return Emitter(
            claim.order.experiment_id,
            run_id,
            emit=lambda events: until_available("metrics", lambda: runs.emit(claim, events)),
            log=lambda lines: until_available("log", lambda: runs.log(run_id, lines)),
            mask=work.options.mask,
            keep=products.keep_partials,
        )

    # -- report -----------------------------------------------------------------------

    def _retries(self, work: Work | Fault) -> Backoff:
        if isinstance(work, Work):
            return work.options.backoff
        return self._defaults.retries(work.experiment.policy if work.experiment else Policy())

    async def _retry(
        self, claim: Claim, outcome: Outcome, details: report.Members, delay_seconds: float
    ) -> bool:
        """Have another attempt follow; False when the run isn't this worker's any more."""
        order = claim.order.after_failure(report.failure(claim.order, outcome, time.time()))
        event = report.retrying_event(claim.order, outcome, delay_seconds)
        fields = details | {"attempts": list(order.history)}
        stored = await until_available(
            "retry", lambda: self._store.runs.retry(claim, order, delay_seconds, fields, [event])
        )
        self._observer.retried(claim, stored=stored)
        if not stored:
            log.warning("outcome.refused", attempt=claim.order.attempt)
            return False
        log.warning(
            "run.retrying",
            attempt=claim.order.attempt,
            delay_seconds=round(delay_seconds, 3),
            error_type=outcome.error_type,
            error=outcome.error,
        )
        return True

    async def _finish(self, claim: Claim, outcome: Outcome, details: report.Members, started: _Start) -> bool:
        """Report the end of the run; False when it isn't this worker's any more."""
        ended = started.now()
        state = State.RUN if outcome.status is Status.COMPLETED else State.FAILED
        ending = report.ending(claim.order, outcome, started.at, ended, details)
        answer = await until_available("finish", lambda: self._store.runs.finish(claim, state, *ending))
        self._observer.finished(claim, outcome.status, ended - started.at, answer)
        if answer is Finished.STALE:
            log.warning("outcome.refused", status=outcome.status)
        else:
            _log_end(outcome, ended - started.at)
        return answer is not Finished.STALE

    async def _reject(self, claim: Claim, outcome: Outcome) -> None:
        """Report the end of a run that never began."""
        now = time.time()
        ending = report.ending(claim.order, outcome, now, now)
        answer = await until_available("reject", lambda: self._store.runs.reject(claim, *ending))
        if answer is Finished.FINISHED:
            self._observer.ended_unbegun(outcome.status)
        _log_end(outcome, 0.0)

    async def _bury(self, claim: Claim, exc: Exception) -> None:
        """Report the end of a run that this worker can't go on with."""
        self._observer.abandoned(claim)
        now = time.time()
        ending = report.ending(claim.order, Outcome.of_error(exc), now, now)
        runs = self._store.runs
        answer = await until_available("finish", lambda: runs.finish(claim, State.FAILED, *ending))
        if answer is Finished.STALE:
            await until_available("reject", lambda: runs.reject(claim, *ending))

    async def _give_back(self, claim: Claim) -> None:
        self._observer.given_back(claim)
        try:
            async with shutdown_timeout():
                if await self._store.queue.requeue(claim, claim.order):
                    log.info("run.given_back")
        except StoreUnavailableError as exc:
            log.warning("run.not_given_back", error=str(exc), hint="recovery takes it up")


def _say_started(work: Work | Fault) -> None:
    """Log the begin, and put the details together while the tool runs."""
    claim, _ = work.claim, work.details
    log.info("run.started", tool=claim.tool, attempt=claim.order.attempt, trigger=claim.order.trigger)


def _must_not_repeat(work: Work | Fault, outcome: Outcome) -> bool:
    """Whether a run that went down with others' processes is one that may have had its effect."""
    chosen = work.experiment.policy if work.experiment else Policy()
    return outcome.error_type == "ToolCrashedError" and chosen.on_worker_death == "fail"


def _call(work: Work) -> Call:
    order, options = work.claim.order, work.options
    return Call(
        module=work.tool.module,
        run_id=order.run_id,
        experiment_id=order.experiment_id,
        attempt=order.attempt,
        params=work.params,
        timeout_seconds=options.timeout_seconds,
        level=options.level,
        limits=options.limits,
        seed=work.experiment.policy.seed,
        environ=options.environ,
    )


def _log_end(outcome: Outcome, seconds: float) -> None:
    ended = {"status": outcome.status.value, "seconds": round(seconds, 3)}
    if outcome.status is Status.COMPLETED:
        log.info("run.finished", **ended)
    else:
        log.warning("run.failed", **ended, error_type=outcome.error_type, error=outcome.error)
