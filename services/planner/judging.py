"""Who judges the criteria of a plan while it is executed."""

import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import structlog

from services.planner.aggregation import Aggregator
from services.planner.evaluation import Evaluations
from services.planner.models import RunManifest
from services.planner.stopping import Stopper
from services.planner.tasks import TaskResult
from services.planner.verdicts import Verdicts, needing_evaluations
from services.planner.workbench import Workbench
from shared.errors import PlanError

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
        executor: executes its cases; its `bench`, if it has one, evaluates them.
        on_stop: told why the plan may stop, where that is found out between two completions.
        already: results of an earlier execution of the plan that are not executed again.

    Raises:
        PlanError: a criterion needs evaluations, and there is nothing to make them with.
    """
    needing = needing_evaluations(manifest.evaluator)
    bench = getattr(executor, "bench", None)
    if not needing:
        verdicts = Verdicts(manifest.evaluator)
        reasons = [verdicts.case_ended(result) for result in already]
        if reason := next(filter(None, reasons), None):
            on_stop(reason)
        yield verdicts.case_ended
        _log(verdicts.notes)
    elif isinstance(bench, Workbench):
        async with Evaluations(manifest, Aggregator(bench), already=already, on_stop=on_stop) as evaluations:
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
