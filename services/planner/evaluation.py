"""Evaluations: the evaluator's function over the replicates of each case, and the criteria judged by them."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, Self

import structlog

from services.planner.aggregation import AggregationTask, Aggregator
from services.planner.backends import runtime_of
from services.planner.cases import all_cases
from services.planner.models import Evaluator, RunManifest, TestCase
from services.planner.scheduling.early_stop import CriteriaTracker, Stopper, criteria_needing_evaluations
from services.planner.tasks import TERMINAL, TaskResult, TaskStatus
from shared.canonical_json import canonical_json
from shared.errors import FullsendError, PlanError, ReplicateFailedError
from shared.threads import in_thread

log = structlog.get_logger()

AT_ONCE: Final = 8
"""How many evaluations are made at once when a plan has ended; the pool has a limit of its own."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of the evaluator's function over the replicates of one case.

    Attributes:
        dataset, scenario, parameters: common to the replicates.
        cases: the indexes of the replicates in the plan.
        n: how many of them the function got.
        loss: a finite number; None if there is an error.
        diagnostics, outputs: further results of the function.
        artifacts: references of the artifacts that the function stored, by name.
        aggregation_id: the digest of code, function, target data and inputs.
        error: why the evaluation failed; None if it did not.
    """

    dataset: str
    scenario: str
    parameters: Mapping[str, Any]
    cases: tuple[int, ...]
    n: int = 0
    loss: float | None = None
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Mapping[str, str] = field(default_factory=dict)
    aggregation_id: str = ""
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, for a file."""
        return asdict(self)


def group_key(case: TestCase) -> bytes:
    """Return a key that the replicates of one case share, and no other case has: all but seed and number."""
    return canonical_json([case.dataset, case.scenario, case.parameters])


def group_replicates(results: Iterable[TaskResult]) -> list[list[TaskResult]]:
    """Group the results into replicates, in the order of the plan."""
    groups: dict[bytes, list[TaskResult]] = {}
    for result in sorted(results, key=lambda one: one.index):
        groups.setdefault(group_key(result.case), []).append(result)
    return list(groups.values())


class Evaluations:
    """Evaluates each case as soon as its replicates have ended, and judges the plan's criteria.

    A stopper must not block, so a task of its own makes the evaluations inside the block, one
    after the other.  The criteria are judged whenever a case ends, over what is known then, and
    after each evaluation.  If an evaluation gives a reason to stop, `on_stop` is called with it at
    once, and the stopper returns it when the next case ends.

    Args:
        manifest: the plan.
        aggregator: on a runtime that stays open while this is used.
        already: results of earlier sessions whose cases are not run again.
        on_stop: is called with the reason to stop, such as `CancellationToken.cancel`.
    """

    def __init__(
        self,
        manifest: RunManifest,
        aggregator: Aggregator,
        *,
        already: Sequence[TaskResult] = (),
        on_stop: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._manifest = manifest
        self._aggregator = aggregator
        self._already = already
        self._on_stop = on_stop
        self._verdicts = CriteriaTracker(manifest.evaluator)
        self._reason: str | None = None
        self._sizes: Counter[bytes] = Counter()
        self._ended: dict[bytes, dict[int, TaskResult]] = {}
        self._complete: asyncio.Queue[list[TaskResult]] = asyncio.Queue()
        self._made: dict[tuple[str, ...], Evaluation] = {}
        self._working: asyncio.Task[None] | None = None

    @property
    def reason(self) -> str | None:
        """Why the plan may stop, also if found after its last case; the first reason counts."""
        return self._reason

    @property
    def notes(self) -> tuple[str, ...]:
        """The criteria that could not be judged, with the reasons."""
        return self._verdicts.notes

    async def __aenter__(self) -> Self:
        if self._manifest.evaluator is not None:
            cases = await in_thread(all_cases, self._manifest)
            self._sizes = Counter(map(group_key, cases))
            reasons = [self.stopper(result) for result in self._already]
            if any(reasons):
                self._on_stop(next(filter(None, reasons)))
            self._working = asyncio.create_task(self._work(), name="evaluations")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._working is not None:
            self._working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._working
            self._working = None

    def stopper(self, result: TaskResult) -> str | None:
        """Add the result of a case; return why the plan is to stop, if it is.  Never blocks."""
        reason = self._verdicts.case_ended(result)
        self._reason = self._reason or reason
        group = group_key(result.case) if self._sizes else b""
        if self._sizes[group] and result.task_status in TERMINAL - {TaskStatus.CANCELLED}:
            ended = self._ended.setdefault(group, {})
            ended[result.index] = result
            if len(ended) == self._sizes[group]:
                self._complete.put_nowait([ended[index] for index in sorted(ended)])
        return self._reason

    async def finish(self, results: Sequence[TaskResult]) -> tuple[Evaluation, ...]:
        """Return an evaluation for each case with a replicate that ran, in the order of the cases.

        Makes those that are missing.

        Args:
            results: of all cases of the plan.
        """
        evaluator = self._manifest.evaluator
        if evaluator is None:
            return ()
        if self._working is not None:
            await self._complete.join()
        room = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            making = [
                tasks.create_task(self._once(evaluator, replicates, room))
                for replicates in group_replicates(results)
                if any(one.execution is not None for one in replicates)
            ]
        return tuple(task.result() for task in making)

    async def _work(self) -> None:
        evaluator = self._manifest.evaluator
        assert evaluator is not None, "the task is created only with an evaluator"
        room = asyncio.Semaphore(1)
        while True:
            found = await self._once(evaluator, await self._complete.get(), room)
            if found.loss is not None:
                self._judge(self._verdicts.evaluated(found.loss, found.diagnostics, found.outputs))
            self._complete.task_done()

    def _judge(self, reason: str | None) -> None:
        if reason is not None and self._reason is None:
            self._reason = reason
            self._on_stop(reason)

    async def _once(
        self, evaluator: Evaluator, replicates: Sequence[TaskResult], room: asyncio.Semaphore
    ) -> Evaluation:
        """Return the evaluation of these results; make it unless it exists."""
        key = tuple(one.task_id for one in replicates)
        if key not in self._made:
            async with room:
                self._made[key] = await self._evaluated(evaluator, replicates)
        return self._made[key]

    async def _evaluated(self, evaluator: Evaluator, replicates: Sequence[TaskResult]) -> Evaluation:
        """Make one evaluation; a failure becomes its error, and the plan goes on."""
        case = replicates[0].case
        about = Evaluation(
            case.dataset, case.scenario, case.parameters, tuple(one.index for one in replicates)
        )
        try:
            return await self._aggregated(evaluator, replicates, about)
        except FullsendError as exc:
            return replace(about, error=f"{type(exc).__name__}: {exc}")
        except Exception as exc:
            log.exception("evaluation.failed", cases=about.cases)
            return replace(about, error=f"{type(exc).__name__}: {exc}")

    async def _aggregated(
        self, evaluator: Evaluator, replicates: Sequence[TaskResult], about: Evaluation
    ) -> Evaluation:
        if evaluator.on_failed == "fail":
            _require_success(replicates)
        task = AggregationTask(
            self._manifest.tool,
            evaluator.entry_point,
            [one.execution for one in replicates if one.execution is not None],
            evaluator.target_data,
            evaluator.on_failed,
        )
        found = await self._aggregator.aggregate(task)
        return replace(
            about,
            n=found.n_replicates,
            loss=found.loss,
            diagnostics=found.diagnostics,
            outputs=found.outputs,
            artifacts=found.artifacts,
            aggregation_id=found.aggregation_id,
        )


def _require_success(replicates: Sequence[TaskResult]) -> None:
    """Raise for failed replicates by index; the aggregator would name run ids, which differ per execution."""
    failed = [one for one in replicates if one.task_status is not TaskStatus.SUCCEEDED]
    if failed:
        first = failed[0]
        why = f"{first.error_type}: {first.error_message}" if first.error_type else "no error is known"
        raise ReplicateFailedError(
            f"case {first.index} is {first.task_status}: {why}; {len(failed)} of {len(replicates)} "
            "did not succeed (on_failed='skip' leaves them out)"
        )


@contextlib.asynccontextmanager
async def judging(
    manifest: RunManifest,
    executor: Any,
    on_stop: Callable[[str], None],
    already: Sequence[TaskResult] = (),
) -> AsyncIterator[Stopper]:
    """Yield a stopper that judges the criteria of the manifest's evaluator.

    If a criterion names what evaluations find, each case is evaluated as soon as its replicates
    have ended, by the runtime of the executor.  Criteria that could never be judged are logged at
    the end.

    Args:
        manifest: the plan.
        executor: executes the cases; its `runtime`, if it has one, evaluates them.
        on_stop: is called with the reason if an evaluation says that the plan may stop.
        already: results of earlier sessions whose cases are not run again.

    Raises:
        PlanError: a criterion needs evaluations, and the executor has no runtime for them.
    """
    needing = criteria_needing_evaluations(manifest.evaluator)
    runtime = runtime_of(executor)
    if not needing:
        verdicts = CriteriaTracker(manifest.evaluator)
        reasons = [verdicts.case_ended(result) for result in already]
        if reason := next(filter(None, reasons), None):
            on_stop(reason)
        yield verdicts.case_ended
        _log(verdicts.notes)
    elif runtime is not None:
        async with Evaluations(
            manifest, Aggregator(runtime), already=already, on_stop=on_stop
        ) as evaluations:
            yield evaluations.stopper
        _log(evaluations.notes)
    else:
        raise PlanError(
            f"the criterion {needing[0]!r} needs evaluations, which run in processes of this machine; "
            "use LocalBackend or `fullsend plan run`, pass `criteria`, such as `Evaluations.stopper`, or "
            "leave the criterion out"
        )


def _log(notes: Sequence[str]) -> None:
    for note in notes:
        log.warning("criterion.not_judged", criterion=note)
