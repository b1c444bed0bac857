"""What a plan finds: the evaluator's function over the replicates of each case, as they end."""

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
"""Evaluations that are made side by side once a plan has ended; the pool has its own limit."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was found for one case over its replicates.

    Attributes:
        dataset, scenario, parameters: what the replicates share.
        cases: their indexes in the plan.
        n: how many of them went into it.
        loss: a finite number; None if there is an error.
        diagnostics, outputs: what the function says besides.
        artifacts: references of what it kept, by name.
        aggregation_id: of code, function, target data and inputs.
        error: why nothing was found.
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
        """Plain values, for a file."""
        return asdict(self)


def group_key(case: TestCase) -> bytes:
    """What replicates of one case have in common, and no other case: all but the seed and the number."""
    return canonical_json([case.dataset, case.scenario, case.parameters])


def group_replicates(results: Iterable[TaskResult]) -> list[list[TaskResult]]:
    """The replicates of each case in their order, the cases in the order of their first one."""
    groups: dict[bytes, list[TaskResult]] = {}
    for result in sorted(results, key=lambda one: one.index):
        groups.setdefault(group_key(result.case), []).append(result)
    return list(groups.values())


class Evaluations:
    """Evaluates each case as soon as its replicates have ended, and judges the plan's criteria.

    A stopper can't wait for an evaluation, so that one is made beside the plan: inside the
    block, one after the other, by a task of its own.  The criteria are judged at every
    completion over what is known then, and over each evaluation when it is there; a reason to
    stop that comes with an evaluation is handed to `on_stop` at once, and is also the stopper's
    answer at the next completion.

    Args:
        manifest: the plan.
        aggregator: on a workbench that is open for as long as this is used.
        already: results of an earlier execution of the plan that are not executed again.
        on_stop: told why the plan may stop, such as `CancellationToken.cancel`.
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
        """Why the plan may stop, or might have after its last case; the first reason counts."""
        return self._reason

    @property
    def notes(self) -> tuple[str, ...]:
        """The criteria that could not be judged, and why."""
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
        """Take a case that ended into account; why the plan is to stop, if it is.  Never waits."""
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
        """One evaluation for each case of which something ran, in the order of the cases.

        Those that were not made yet are made now.

        Args:
            results: of all cases.
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
        assert evaluator is not None, "without one there is no such task"
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
        """The evaluation of these very results, made now unless it was before."""
        key = tuple(one.task_id for one in replicates)
        if key not in self._made:
            async with room:
                self._made[key] = await self._evaluated(evaluator, replicates)
        return self._made[key]

    async def _evaluated(self, evaluator: Evaluator, replicates: Sequence[TaskResult]) -> Evaluation:
        """Whatever goes wrong with one evaluation is its error; the plan goes on."""
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
    """Before the aggregator does: it knows runs by their ids, which are others in every execution."""
    failed = [one for one in replicates if one.task_status is not TaskStatus.SUCCEEDED]
    if failed:
        first = failed[0]
        why = f"{first.error_type}: {first.error_message}" if first.error_type else "no error is known"
        raise ReplicateFailedError(
            f"case {first.index} is {first.task_status}: {why}; {len(failed)} of {len(replicates)} "
            "did not succeed (on_failed='skip' leaves them out)"
        )


log = structlog.get_logger()


@contextlib.asynccontextmanager
async def judging(
    manifest: RunManifest,
    executor: Any,
    on_stop: Callable[[str], None],
    already: Sequence[TaskResult] = (),
) -> AsyncIterator[Stopper]:
    """Inside the block, a stopper that judges the criteria of the manifest's evaluator.

    Criteria that name what evaluations find have each case evaluated as soon as its replicates
    have ended, on the workbench of the executor.  What could never be judged is logged at the end.

    Args:
        manifest: the plan.
        executor: executes its cases; its `runtime`, if it has one, evaluates them.
        on_stop: told why the plan may stop, where that is found out between two completions.
        already: results of an earlier execution of the plan that are not executed again.

    Raises:
        PlanError: a criterion needs evaluations, and there is nothing to make them with.
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
            f"the criterion {needing[0]!r} needs evaluations, and these are made in processes of this "
            "machine, as LocalBackend has them; use that, or `fullsend plan run`, or hand in `criteria`, "
            "such as `Evaluations.stopper`, or leave the criterion out"
        )


def _log(notes: Sequence[str]) -> None:
    for note in notes:
        log.warning("criterion.not_judged", criterion=note)
