"""One run: begin, perform, judge, report."""

import asyncio
import functools
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
from msgspec import Struct, field

from services.executor import policy, report
from services.executor.artifacts import Keeper
from services.executor.beginning import Beginning
from services.executor.isolation.calls import Answer, Call, Effects, Report
from services.executor.loader import Loader
from services.executor.metrics import Emitter
from services.executor.outcome import GiveUp, Outcome, Retry, Status, judge, retry_or_give_up
from services.executor.policy import Defaults, RunOptions
from services.executor.result_cache import ResultCache
from services.executor.results import AttemptResults
from services.executor.running import Running
from services.executor.store import Begun, Claim, Finished, Limit, Order, Store, Stored
from services.executor.work import Fault, Work, prepare
from shared.backoff import Backoff, Dice, shutdown_timeout, until_available
from shared.errors import ExperimentArchivedError, StoreUnavailableError
from shared.messages import Policy, State
from shared.threads import Threads

log = structlog.get_logger()

STORING_THREADS = 8
OPTIONS_KEPT = 1_000


class _Start(Struct, frozen=True):
    """When an attempt began, unix seconds."""

    at: float = field(default_factory=time.time)
    _monotonic: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """Unix seconds as counted from there: setting the clock meanwhile makes no duration wrong."""
        return self.at + time.monotonic() - self._monotonic


class Caller(Protocol):
    """Calls a tool in isolation."""

    async def call(
        self,
        call: Call,
        report: Report,
        *,
        effects: Effects | None = None,
        cancel: asyncio.Event | None = None,
    ) -> Answer:
        """Never raises for anything the tool does."""


class Runner:
    """Performs claimed runs.

    Args:
        store: where runs are claimed and reported.
        loader: finds tools.
        caller: calls them.
        keeper: keeps what they produce.
        defaults: see `Defaults`.
        dice: for the jitter of retries.
    """

    def __init__(
        self,
        store: Store,
        loader: Loader,
        caller: Caller,
        keeper: Keeper,
        defaults: Defaults,
        dice: Dice,
    ) -> None:
        self._store = store
        self._loader = loader
        self._caller = caller
        self._keeper = keeper
        self._threads = Threads(STORING_THREADS)
        self._cache = ResultCache(store.cached_runs, keeper, self._threads)
        self._defaults = defaults
        self._options = functools.lru_cache(OPTIONS_KEPT)(defaults.options)
        self._dice = dice

    async def run(self, running: Running) -> None:
        """Perform one attempt of a run and report what it came to, in a task of its own.

        Being cancelled as a task means that the worker stops: the tool is ended
        and the run goes back to the queue as if this attempt had not been.
        """
        claim = running.claim
        structlog.contextvars.bind_contextvars(run_id=claim.order.run_id)
        try:
            await self._attempt(running)
        except asyncio.CancelledError:
            await asyncio.shield(self._give_back(claim))
            raise
        except Exception as exc:  # a fault of ours must not leave the run without an end
            log.exception("run.broke")
            await self._bury(claim, exc)

    async def _attempt(self, running: Running) -> None:
        started, claim = _Start(), running.claim
        stored = claim.stored or await self._read(claim.order)
        work = await prepare(self._loader, claim, stored, self._defaults.timeout_seconds)
        limits = self._limits(work)
        outcome: Outcome | None = None
        async with Beginning(self._begin(work, stored, started, limits), running.cancel) as beginning:
            runs_ahead = not limits and isinstance(work, Work) and work.may_run_ahead and running.is_sure()
            if runs_ahead or (await beginning.answer())[0] is Begun.BEGUN:
                outcome = await self._perform(work, beginning, running)
            begun, stored = await beginning.answer()
        if begun is Begun.BEGUN and outcome is not None:
            await self._report(work, stored, outcome, started)
        else:
            await self._let_go(claim, begun, started)

    async def _let_go(self, claim: Claim, begun: Begun, started: _Start) -> None:
        """The attempt is not to be."""
        if begun is Begun.LOST:
            log.warning("claim.lost", worker=claim.worker)
        elif begun is Begun.CANCELLED:
            log.info("run.let_go")
        elif begun is Begun.WAITING:
            log.info("run.waiting")
        else:
            await self._refuse_archived(claim, started)

    # -- begin ------------------------------------------------------------------------

    async def _begin(
        self, work: Work | Fault, stored: Stored, started: _Start, limits: Sequence[Limit]
    ) -> tuple[Begun, Stored]:
        claim, name = work.claim, work.experiment.tool if work.experiment else None
        identity = work.identity if isinstance(work, Work) else work.tool_digest
        params = work.params if isinstance(work, Work) else claim.order.params
        fields = report.begin_fields(claim, name, identity, params, started.at)
        event = report.started_event(claim.order, name)
        answer = await until_available(
            "begin", lambda: self._store.runs.begin(claim, stored, fields, event, limits)
        )
        if answer[0] is Begun.BEGUN:
            log.info("run.started", tool=name, attempt=claim.order.attempt, trigger=claim.order.trigger)
        return answer

    # -- perform ----------------------------------------------------------------------

    async def _perform(self, work: Work | Fault, beginning: Beginning, running: Running) -> Outcome:
        order = work.claim.order
        memory = self._store.runs.checkpoints(order.run_id)
        products = AttemptResults(self._keeper, memory, self._threads, beginning.then)
        is_first = order.attempt == 1 and not order.losses
        if isinstance(work, Fault):
            return await products.complete(work.outcome, is_first=is_first)
        if work.experiment.policy.cache:
            known = await self._cache.recall(work.identity.digest)
            if known is not None:
                return known
        outcome = await self._called(work, products, beginning, running.cancel)
        running.free_slot()
        return await products.complete(outcome, is_first=is_first)

    async def _called(
        self, work: Work, products: AttemptResults, beginning: Beginning, cancel: asyncio.Event
    ) -> Outcome:
        options = self._options(work.experiment.policy, work.tool.needs)
        emitter = self._emitter(work.claim, beginning, options.mask)
        call = _call(work, options)
        try:
            answer = await self._caller.call(call, emitter.report, effects=products, cancel=cancel)
            await emitter.drain()
        except BaseException:
            emitter.drop()
            raise
        return judge(answer, emitter.partials, emitter.partials_dropped).masked(options.mask)

    @staticmethod
    def _limits(work: Work | Fault) -> list[Limit]:
        if isinstance(work, Fault):
            return []
        chosen, tool = work.experiment.policy, work.tool
        return policy.shared_limits(work.claim.order, chosen, tool.module.name, tool.needs)

    def _emitter(self, claim: Claim, beginning: Beginning, mask: Callable[[str], str]) -> Emitter:
        experiment_id, run_id = claim.order.experiment_id, claim.order.run_id
        runs = self._store.runs
        return Emitter(
            experiment_id,
            run_id,
            emit=lambda events: beginning.then(
                lambda: until_available("metrics", lambda: runs.emit(claim, events))
            ),
            log=lambda lines: beginning.then(lambda: until_available("log", lambda: runs.log(run_id, lines))),
            mask=mask,
        )

    # -- report -----------------------------------------------------------------------

    async def _report(self, work: Work | Fault, stored: Stored, outcome: Outcome, started: _Start) -> None:
        match retry_or_give_up(
            work.claim.order.attempt,
            retryable=outcome.retryable and not self._must_not_repeat(work, outcome),
            retry_after_seconds=outcome.retry_after_seconds,
            backoff=self._retries(work),
            dice=self._dice,
        ):
            case Retry(delay_seconds):
                await self._retry(work.claim, outcome, delay_seconds)
            case GiveUp(exhausted):
                final = outcome.exhausted(work.claim.order.attempt) if exhausted else outcome
                is_finished = await self._finish(work.claim, stored, final, started)
                if is_finished and isinstance(work, Work) and work.experiment.policy.cache:
                    await self._cache.remember(work.identity.digest, work.claim.order.run_id, final)

    def _retries(self, work: Work | Fault) -> Backoff:
        if isinstance(work, Work):
            return self._options(work.experiment.policy, work.tool.needs).backoff
        return self._defaults.retries(work.experiment.policy if work.experiment else Policy())

    @staticmethod
    def _must_not_repeat(work: Work | Fault, outcome: Outcome) -> bool:
        """Whether a run that went down with others' processes is one that may have had its effect."""
        chosen = work.experiment.policy if work.experiment else Policy()
        return outcome.error_type == "ToolCrashedError" and chosen.on_worker_death == "fail"

    async def _retry(self, claim: Claim, outcome: Outcome, delay_seconds: float) -> None:
        order = claim.order.after_failure(report.failure(claim.order, outcome, time.time()))
        event = report.retrying_event(claim.order, outcome, delay_seconds)
        fields = {"attempts": list(order.history)}
        stored = await until_available(
            "retry", lambda: self._store.runs.retry(claim, order, delay_seconds, fields, [event])
        )
        if not stored:
            log.warning("outcome.refused", attempt=claim.order.attempt)
            return
        log.warning(
            "run.retrying",
            attempt=claim.order.attempt,
            delay_seconds=round(delay_seconds, 3),
            error_type=outcome.error_type,
            error=outcome.error,
        )

    async def _finish(self, claim: Claim, stored: Stored, outcome: Outcome, started: _Start) -> bool:
        """Report the end of the run; False when it isn't this worker's any more."""
        ended = started.now()
        state = State.RUN if outcome.status is Status.COMPLETED else State.FAILED
        fields = report.end_fields(claim.order, outcome, started.at, ended)
        events = report.end_events(claim.order, outcome, started.at, ended)
        message = report.result(claim.order, outcome, started.at, ended)
        answer = await until_available(
            "finish", lambda: self._store.runs.finish(claim, stored, state, fields, events, message)
        )
        if answer is Finished.STALE:
            log.warning("outcome.refused", status=outcome.status)
        else:
            _log_end(outcome, ended - started.at)
        return answer is not Finished.STALE

    async def _refuse_archived(self, claim: Claim, started: _Start) -> None:
        ended, order = started.now(), claim.order
        error = ExperimentArchivedError(
            f"experiments:{order.experiment_id} is archived; nothing of it is run"
        )
        outcome = Outcome.of_error(error, Status.CANCELLED)
        fields = report.identity_fields(order) | report.end_fields(order, outcome, started.at, ended)
        events = report.end_events(order, outcome, started.at, ended)
        message = report.result(order, outcome, started.at, ended)
        await until_available("reject", lambda: self._store.runs.reject(claim, fields, events, message))
        _log_end(outcome, ended - started.at)

    async def _bury(self, claim: Claim, exc: Exception) -> None:
        now = time.time()
        outcome = Outcome.of_error(exc)
        fields = report.identity_fields(claim.order) | report.end_fields(claim.order, outcome, now, now)
        events = report.end_events(claim.order, outcome, now, now)
        message = report.result(claim.order, outcome, now, now)
        stored = await self._read(claim.order)
        answer = await until_available(
            "finish", lambda: self._store.runs.finish(claim, stored, State.FAILED, fields, events, message)
        )
        if answer is Finished.STALE:
            await until_available("reject", lambda: self._store.runs.reject(claim, fields, events, message))

    async def _read(self, order: Order) -> Stored:
        return await until_available("experiment", lambda: self._store.experiments.read(order.experiment_id))

    async def _give_back(self, claim: Claim) -> None:
        try:
            async with shutdown_timeout():
                if await self._store.queue.requeue(claim, claim.order):
                    log.info("run.given_back")
        except StoreUnavailableError as exc:
            log.warning("run.not_given_back", error=str(exc), hint="recovery takes it up")


def _call(work: Work, options: RunOptions) -> Call:
    order = work.claim.order
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
    if outcome.status is Status.COMPLETED:
        log.info("run.finished", status=outcome.status.value, seconds=round(seconds, 3))
    else:
        log.warning(
            "run.failed",
            status=outcome.status.value,
            seconds=round(seconds, 3),
            error_type=outcome.error_type,
            error=outcome.error,
        )
