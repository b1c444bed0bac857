"""Carries plans out for the commands: backend, progress, Ctrl-C, evaluations, report."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from services.cli import connection
from services.cli.connection import places
from services.cli.output import CommandError
from services.cli.progressing import Display
from services.executor.artifacts import open_blobs
from services.executor.config import Settings
from services.executor.service import retention
from services.executor.store import Store
from services.planner.aggregation import Aggregator
from services.planner.backends import Backend, backend_class
from services.planner.cancellation import CancellationToken
from services.planner.estimate import Estimate, estimate
from services.planner.evaluation import Evaluations
from services.planner.models import RunManifest
from services.planner.plan import PLANS, Plan, plans_in, recorded_durations
from services.planner.progress import Progress
from services.planner.report import write_report
from services.planner.tasks import RunExecutionResult, TaskResult, TaskStatus
from services.planner.workbench import Workbench
from shared import log
from shared.connection import connect, connect_patiently
from shared.errors import ToolError

ALL_AT_ONCE: Final = 1_000
"""On the fleet: what the executors can take is the limit."""


class BackendName(StrEnum):
    """Where a plan's cases run: in this process, or on the executors that share one Redis."""

    LOCAL = "local"
    FLEET = "fleet"


@dataclass(frozen=True, slots=True)
class Carried:
    """What carrying out a plan came to.

    Attributes:
        plan: that was carried out.
        result: of all its cases.
        report: the files that were written, by kind; empty after an interruption.
        signal: the signal that ended it, if one did.
    """

    plan: Plan
    result: RunExecutionResult
    report: dict[str, Path]
    signal: int | None


def carry_out(plan: Plan, backend: BackendName, *, failed: bool = True) -> Carried:
    """Run what is left of a plan, showing its progress, and write its report.

    Args:
        plan: new, or taken up before.
        backend: where its cases run.
        failed: whether cases that did not succeed are run again.
    """
    log.configure(level="error")
    return asyncio.run(_carried_out(plan, backend, connection.settings(), failed))


def estimated(manifest: RunManifest, backend: BackendName) -> Estimate:
    """What a plan will take there, by what earlier plans in this directory took."""
    log.configure(level="error")
    durations = recorded_durations(manifest.tool)
    capacity = asyncio.run(_capacity(manifest, backend, connection.settings()))
    return estimate(manifest, durations, backend, capacity)


def places_at_once(backend: BackendName) -> int:
    """Cases at once where nobody says how many: one for each CPU here, and all that the executors take."""
    return len(os.sched_getaffinity(0)) if backend is BackendName.LOCAL else ALL_AT_ONCE


def reported(plan: Plan) -> dict[str, Path]:
    """Write a plan's report from what its runs left behind, without running any."""
    log.configure(level="error")
    return asyncio.run(_reported(plan, connection.settings()))


def found(name: str) -> Plan:
    """The plan of this id, or of an id that begins so and no other does, or in this directory."""
    known = {directory.name: directory for directory in plans_in()}
    if name in known:
        return Plan.open(known[name])
    if Path(name).is_dir():
        return Plan.open(Path(name))
    matching = [directory for plan_id, directory in known.items() if plan_id.startswith(name)]
    if len(matching) == 1:
        return Plan.open(matching[0])
    if matching:
        raise CommandError(f"{name!r} may be {', '.join(one.name for one in matching)}")
    raise CommandError(f"there is no plan {name!r} in {PLANS}; `fullsend plan status` lists those there are")


# -- carrying out ---------------------------------------------------------------------


async def _carried_out(plan: Plan, name: BackendName, chosen: Settings, failed: bool) -> Carried:
    # First of all alone: to open the fleet for a plan cancels what an earlier planner left there.
    with plan.alone() as turn:
        token, settled = CancellationToken(), await asyncio.to_thread(plan.settled, failed=failed)
        progress = _progress(plan, settled)
        with Display(plan.plan_id, progress.now) as display, _interruptible(token, display) as ended_by:
            async with (
                _open(plan, name, chosen, display.say) as (backend, aggregator),
                Evaluations(plan.manifest, aggregator, already=settled, on_stop=token.cancel) as evaluations,
            ):
                result = await turn.resume(backend, token, progress, (evaluations.stopper,), failed=failed)
                display.stop()
                report: dict[str, Path] = {}
                if not ended_by and not await _is_cancelled(plan, result):
                    report = await _written(plan, evaluations)
    return Carried(plan, result, report, ended_by[0] if ended_by else None)


async def _is_cancelled(plan: Plan, result: RunExecutionResult) -> bool:
    """Whether somebody is waiting for the end of this command."""
    sitting = await asyncio.to_thread(plan.registry.last_sitting)
    return result.stopped is not None and sitting is not None and sitting.asked_to_end is not None


def _progress(plan: Plan, settled: list[TaskResult]) -> Progress:
    succeeded = sum(one.task_status is TaskStatus.SUCCEEDED for one in settled)
    return Progress(len(plan.manifest.cases), succeeded, len(settled) - succeeded)


@contextlib.contextmanager
def _interruptible(token: CancellationToken, display: Display) -> Iterator[list[int]]:
    """Have the first Ctrl-C or SIGTERM end the plan, and the second one this process; what came is listed."""
    loop, came = asyncio.get_running_loop(), list[int]()

    def interrupt(number: int) -> None:
        if came:
            display.stop()
            sys.stderr.flush()
            os._exit(128 + number)  # the subprocesses end with it; what is left is noted as running
        came.append(number)
        token.cancel("interrupted")
        display.say("ending what runs; once more ends it at once")

    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, interrupt, number)
    try:
        yield came
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _reported(plan: Plan, chosen: Settings) -> dict[str, Path]:
    ended = await asyncio.to_thread(plan.settled, failed=False)
    async with (
        _bench(plan, chosen, 2) as bench,
        Evaluations(plan.manifest, Aggregator(bench), already=ended) as evaluations,
    ):
        return await _written(plan, evaluations)


async def _written(plan: Plan, evaluations: Evaluations) -> dict[str, Path]:
    results = await asyncio.to_thread(plan.results)
    made = await evaluations.finish(results)
    directory, manifest = plan.report_directory, plan.manifest
    return await asyncio.to_thread(write_report, directory, manifest, results, made, notes=evaluations.notes)


# -- backends -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def _open(
    plan: Plan, name: BackendName, chosen: Settings, tell: Callable[[str], None]
) -> AsyncIterator[tuple[Backend, Aggregator]]:
    """The backend, and what aggregates what it produces."""
    concurrency = plan.manifest.execution_policy.concurrency
    if name is BackendName.LOCAL:
        bench = _workbench(plan, chosen, concurrency)
        async with backend_class(name)(bench, concurrency) as backend:
            await _check_tool(plan, bench, tell)
            yield backend, Aggregator(bench)
        return
    async with _fleet(plan.name, chosen, tell) as backend, _bench(plan, chosen, 2) as bench:
        yield backend, Aggregator(bench)


@contextlib.asynccontextmanager
async def _fleet(plan_id: str, chosen: Settings, tell: Callable[[str], None]) -> AsyncIterator[Backend]:
    url, blobs = connection.address(chosen, connection.STARTING_SECONDS), open_blobs(chosen.artifacts)
    client, patient = connect(url), connect_patiently(url)
    place = {"storage_type": str(blobs.storage_type), "storage_base": blobs.base}
    try:
        store = Store.on(client, patient, retention(chosen))
        async with backend_class(BackendName.FLEET)(store, **place, plan_id=plan_id, tell=tell) as backend:
            yield backend
    finally:
        await client.aclose()
        await patient.aclose()


@contextlib.asynccontextmanager
async def _bench(plan: Plan, chosen: Settings, capacity: int) -> AsyncIterator[Workbench]:
    """An open workbench; a plan without an evaluator needs no process for it."""
    bench = _workbench(plan, chosen, capacity)
    if plan.manifest.evaluator is None:
        yield bench
        return
    await bench.open()
    try:
        yield bench
    finally:
        await bench.close()


def _workbench(plan: Plan, chosen: Settings, capacity: int) -> Workbench:
    """One that keeps what it produces with the plan, and finds bundles where everybody does."""
    here = replace(places(chosen), artifacts=str(plan.artifacts))
    return Workbench(here, capacity, os.environ, open_blobs(chosen.artifacts))


async def _check_tool(plan: Plan, bench: Workbench, tell: Callable[[str], None]) -> None:
    """Say now, and not once for each case, that the tool can't be used, or is not what it was before."""
    try:
        tool = await bench.loader.load(plan.manifest.tool, bench.defaults.timeout_seconds)
    except ToolError as exc:
        raise CommandError(f"{exc}; afterwards: fullsend plan resume {plan.plan_id}") from None
    before = await asyncio.to_thread(plan.registry.fact, "tool_digest")
    if before not in (None, tool.module.digest):
        tell(f"the code of {plan.manifest.tool} has changed since this plan's first run; results may differ")


async def _capacity(manifest: RunManifest, name: BackendName, chosen: Settings) -> int:
    if name is BackendName.LOCAL:
        return manifest.execution_policy.concurrency
    async with _fleet("estimate", chosen, lambda line: None) as backend:
        return backend.capacity
