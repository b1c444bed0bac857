"""The right to execute a plan: one process at a time has it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from services.planner.backends import Backend
from services.planner.cancellation import CancellationToken
from services.planner.listening import SILENT, Listener
from services.planner.models import RunManifest
from services.planner.opening import check_open
from services.planner.performing import Work, name_of, perform
from services.planner.registry import UNFINISHED, Registry
from services.planner.seat import Seat, seat
from services.planner.standing import UNSUCCESSFUL
from services.planner.stopping import Stopper
from services.planner.tasks import RunExecutionResult, TaskResult, TaskStatus


@dataclass(frozen=True, slots=True)
class Turn:
    """The right to execute a plan, which nobody else has meanwhile; see `Plan.alone`.

    Attributes:
        manifest: of the plan.
        registry: of its runs.
    """

    manifest: RunManifest
    registry: Registry

    async def resume(
        self,
        backend: Backend,
        token: CancellationToken | None = None,
        listener: Listener = SILENT,
        stoppers: Sequence[Stopper] = (),
        *,
        failed: bool = True,
        criteria: Stopper | None = None,
    ) -> RunExecutionResult:
        """Run the cases that are left, with the seeds they have, on an open backend.

        Args:
            backend: need not be the one of before.
            token: to end it; so does `Plan.cancel`, from any process.
            listener: hears of the cases by their index in the plan.
            stoppers: besides the plan's budget, which counts what was used before.
            failed: whether cases that did not succeed are run again.
            criteria: judges the evaluator's criteria, such as `Evaluations.stopper`; None has that
                done on the backend, see `services.planner.judging`.

        Returns:
            One result for each case of the plan, also of those that have run before.

        Raises:
            PlanError: the backend is not open here, the plan's budget is used up, a criterion can't be
                judged, or its registry can't be written.
        """
        check_open(backend)
        async with self.sit(name_of(backend), token, failed=failed) as taken:
            work = replace(await asyncio.to_thread(self.work, failed=failed), criteria=criteria)
            return await perform(taken, work, backend, None, listener, stoppers)

    @contextlib.asynccontextmanager
    async def sit(
        self, backend: str, token: CancellationToken | None = None, *, failed: bool = True
    ) -> AsyncIterator[Seat]:
        """Take the plan up: in the block, others see that it is executed, and can have it end.

        For whoever has to prepare something first, or goes on after the last case; who performs
        its cases (see `services.planner.performing`) heeds the token of the seat.

        Args:
            backend: the name of the one that is going to be used.
            token: to end it.
            failed: whether cases that did not succeed are run again.
        """
        cases = await asyncio.to_thread(self._left, failed)
        async with seat(self.registry, backend, cases, token) as taken:
            yield taken

    def work(self, *, failed: bool = True) -> Work:
        """What there is to do; takes its time where there are many cases."""
        before = self.registry.results()
        return Work(self.manifest, before, [one.index for one in before if is_left(one, failed)])

    def _left(self, failed: bool) -> int:
        counts = self.registry.counts()
        settled = (TaskStatus.SUCCEEDED, *(() if failed else UNSUCCESSFUL))
        return sum(counts.values()) - sum(counts.get(one, 0) for one in settled)


def is_left(result: TaskResult, failed: bool) -> bool:
    """Whether the case is to be run yet, or again if `failed` ones are."""
    if result.task_status in UNFINISHED:
        return True
    return failed and result.task_status is not TaskStatus.SUCCEEDED
