"""Overhead of a case in a plan, compared with other libraries: `python -m benchmarks.planner`.

Each candidate gets the same cases, the same function and two processes, and returns every result
in the order of the cases.  The time from the list of cases to the list of results is divided by
their number; a case does nothing, so all of it is overhead.  The processes are started, and have
called the function some hundred times, before the time is taken.  The candidates take turns, round
after round, and the median of the rounds is printed.  Machines differ and are busy, so compare
the ratios rather than the times.

Ours is a plan on the `local` backend: every case is an isolated call with a seed and a time limit
that can be cancelled, and its outcome and its digest are computed.  The other libraries do none of
that.  Two further lines show where our time goes: the same calls without a plan, and the plan
on a backend that returns at once.  Another line is a plan on disk, as `fullsend plan run` executes
it: every attempt is recorded in a registry (SQLite), so that the plan survives a crash.  joblib
sends several short cases at a time (`auto`, its default); all others, and joblib with
`batch_size=1`, send one at a time.

joblib, loky, Dask and Ray take part if they can be imported; `--peers VENV` names an environment
in which they are installed.
"""

import argparse
import asyncio
import contextlib
import functools
import importlib
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from services.cli.plans.run_plan import run_in_loop
from services.executor.isolation.calls import Report
from services.executor.outcome import Status
from services.planner.backends.local import LocalBackend
from services.planner.cases import all_cases
from services.planner.execution import Execution, ExecutionResult, RunOptions
from services.planner.models import RunManifest, TestCase
from services.planner.plan import Plan
from services.planner.runtime import RuntimeConfig, ToolRuntime
from services.planner.scheduler import TaskScheduler
from services.planner.tasks import RunExecutionResult, TaskStatus
from shared.messages import Policy

CASES = 10_000
ROUNDS = 3
WARM_UP = 500
PROCESSES = 2
OURS = "a plan on `local`"
SOURCE = "def noop(x):\n    return x\n"

Run = Callable[[Sequence[int]], Sequence[Any]]
"""Calls the function for each number; the results in the same order."""


def noop(x: int) -> int:
    """The function that the other libraries call; the tool has the same source."""
    return x


# -- ours -----------------------------------------------------------------------------


class AtOnce:
    """A backend that returns at once, to measure the planner alone."""

    capacity = PROCESSES

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        """Return the parameter, as the tool would."""
        await asyncio.sleep(0)
        result = json.dumps(call.parameters["x"])
        return ExecutionResult(call.options.run_id, Status.COMPLETED, "memory", "memory://", result=result)


def a_plan(numbers: Sequence[int]) -> RunManifest:
    """Return a manifest with a case for each number."""
    cases = [TestCase(parameters={"x": x}) for x in numbers]
    return RunManifest.model_validate(
        {
            "workflow_id": "noop",
            "tool": "noop",
            "cases": cases,
            "execution_policy": {"concurrency": PROCESSES},
        }
    )


async def planned(backend: Any, numbers: Sequence[int]) -> list[Any]:
    """Execute a plan, including its creation and its seeds."""
    return values_in(await TaskScheduler(backend).run_manifest_async(a_plan(numbers)))


async def kept(backend: LocalBackend, folder: Path, numbers: Sequence[int]) -> list[Any]:
    """Execute a plan on disk."""
    directory = Path(tempfile.mkdtemp(dir=folder)) / "plan"
    plan = await asyncio.to_thread(Plan.create, a_plan(numbers), directory)
    return values_in(await plan.run(backend))


def values_in(found: RunExecutionResult) -> list[Any]:
    """Return what the tool returned for each case."""
    failed = [one for one in found.task_results if one.task_status is not TaskStatus.SUCCEEDED]
    assert not failed, (
        f"{len(failed)} failed, the first with {failed[0].error_type}: {failed[0].error_message}"
    )
    return [one.execution and json.loads(one.execution.result or "") for one in found.task_results]


async def unplanned(backend: LocalBackend, numbers: Sequence[int]) -> list[Any]:
    """Make the same calls without a plan, with a caller for each process."""
    cases = all_cases(a_plan(numbers))
    answers: list[Any] = [None] * len(cases)
    waiting = iter(enumerate(cases))

    async def work() -> None:
        for index, case in waiting:
            options = RunOptions(f"run-{index}", Policy(seed=case.seed))
            answer = await backend.run(Execution("noop", case.parameters, options))
            answers[index] = json.loads(answer.result or "")

    await asyncio.gather(*(work() for _ in range(PROCESSES)))
    return answers


@contextlib.asynccontextmanager
async def our_backend(directory: Path) -> AsyncIterator[LocalBackend]:
    """Open a `local` backend with all its files in one directory."""
    (directory / "tools").mkdir()
    (directory / "tools" / "noop.py").write_text(SOURCE)
    places = RuntimeConfig(
        tools_path=directory / "tools",
        artifacts=str(directory / "artifacts"),
        bundles_path=directory / "bundles",
        environments_path=directory / "environments",
    )
    async with LocalBackend(ToolRuntime(places, PROCESSES, os.environ), PROCESSES) as backend:
        yield backend


# -- other libraries ------------------------------------------------------------------


@contextlib.contextmanager
def process_pool() -> Iterator[Run]:
    """`concurrent.futures.ProcessPoolExecutor`, a `submit` for each case."""
    with ProcessPoolExecutor(PROCESSES) as pool:
        yield lambda numbers: [one.result() for one in [pool.submit(noop, x=x) for x in numbers]]


@contextlib.contextmanager
def loky() -> Iterator[Run]:
    """loky's executor, a `submit` for each case."""
    pool = importlib.import_module("loky").ProcessPoolExecutor(PROCESSES)
    try:
        yield lambda numbers: [one.result() for one in [pool.submit(noop, x=x) for x in numbers]]
    finally:
        pool.shutdown()


def joblib(batch_size: int | str) -> Callable[[], contextlib.AbstractContextManager[Run]]:
    """joblib with loky's processes."""

    @contextlib.contextmanager
    def opened() -> Iterator[Run]:
        module = importlib.import_module("joblib")
        pool = importlib.import_module("joblib.externals.loky")
        try:
            with module.Parallel(n_jobs=PROCESSES, backend="loky", batch_size=batch_size) as parallel:
                yield lambda numbers: list(parallel(module.delayed(noop)(x=x) for x in numbers))
        finally:
            pool.get_reusable_executor().shutdown(wait=True)  # joblib keeps it for its next user

    return opened


@contextlib.contextmanager
def dask() -> Iterator[Run]:
    """Dask distributed on this machine, one thread in each process."""
    module = importlib.import_module("distributed")
    options = {
        "processes": True,
        "threads_per_worker": 1,
        "dashboard_address": None,
        "silence_logs": logging.ERROR,
    }
    with (
        module.LocalCluster(n_workers=PROCESSES, host="127.0.0.1", **options) as cluster,
        module.Client(cluster) as client,
    ):
        yield lambda numbers: list(client.gather(client.map(noop, numbers, pure=False)))


@contextlib.contextmanager
def ray() -> Iterator[Run]:
    """Ray on this machine, a task for each case."""
    module = importlib.import_module("ray")
    module.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        remote = module.remote(noop)
        yield lambda numbers: list(module.get([remote.remote(x=x) for x in numbers]))
    finally:
        module.shutdown()


PEERS: dict[str, tuple[str, Callable[[], contextlib.AbstractContextManager[Run]]]] = {
    "ProcessPoolExecutor": ("concurrent.futures", process_pool),
    "loky": ("loky", loky),
    "joblib, batch_size=1": ("joblib", joblib(1)),
    "joblib, batch_size='auto'": ("joblib", joblib("auto")),
    "Dask distributed": ("distributed", dask),
    "Ray": ("ray", ray),
}


def installed() -> dict[str, Callable[[], contextlib.AbstractContextManager[Run]]]:
    """Return the libraries that can be imported."""
    found = {}
    for name, (module, open_it) in PEERS.items():
        try:
            importlib.import_module(module)
        except ImportError as exc:
            print(f"  {name} is left out, it can't be imported: {exc}; --peers names a venv that has it")
        else:
            found[name] = open_it
    return found


# -- the report -----------------------------------------------------------------------


def peer_seconds(
    open_it: Callable[[], contextlib.AbstractContextManager[Run]], numbers: Sequence[int]
) -> float:
    """Measure one round of a library, and close it: its threads would slow down the others."""
    with open_it() as run:
        run(range(WARM_UP))
        begun = time.perf_counter()
        answers = run(numbers)
        seconds = time.perf_counter() - begun
    assert list(answers) == list(numbers), "a result was lost"
    return seconds


async def our_seconds(numbers: Sequence[int]) -> dict[str, float]:
    """Measure one round of ours, and of its parts."""
    with tempfile.TemporaryDirectory() as directory:
        async with our_backend(Path(directory)) as backend:
            return {
                OURS: await timed(functools.partial(planned, backend), numbers),
                "  the plan on disk": await timed(functools.partial(kept, backend, Path(directory)), numbers),
                "  the calls without a plan": await timed(functools.partial(unplanned, backend), numbers),
                "  the plan without calls": await timed(functools.partial(planned, AtOnce()), numbers),
            }


async def timed(run: Callable[[Sequence[int]], Awaitable[list[Any]]], numbers: Sequence[int]) -> float:
    """Return how long it takes in seconds, after a warm-up."""
    await run(range(WARM_UP))
    begun = time.perf_counter()
    answers = await run(numbers)
    seconds = time.perf_counter() - begun
    assert answers == list(numbers), "a result was lost"
    return seconds


def measured(numbers: Sequence[int]) -> dict[str, list[float]]:
    """Return the seconds of all rounds by name; a library that fails once is left out."""
    peers, rounds = installed(), dict[str, list[float]]()
    for number in range(ROUNDS):
        for name, seconds in run_in_loop(our_seconds(numbers)).items():
            rounds.setdefault(name, []).append(seconds)
        for name, open_it in list(peers.items()):
            try:
                rounds.setdefault(name, []).append(peer_seconds(open_it, numbers))
            except Exception as exc:  # a failure of the library, whatever it is
                print(f"  {name} is left out, it failed in round {number + 1}: {type(exc).__name__}: {exc}")
                del peers[name], rounds[name]
    return rounds


def show(rounds: dict[str, list[float]], cases: int) -> None:
    """Print the overhead of each candidate, and its ratio to ours."""
    for name, seconds in rounds.items():
        micros = statistics.median(seconds) / cases * 1e6
        ratios = [one / ours for one, ours in zip(seconds, rounds[OURS], strict=True)]
        spread = f"{min(ratios):.2g} to {max(ratios):.2g}"
        print(f"  {name:<30}{micros:>10,.0f} us a case{statistics.median(ratios):>9.2g} x ours   ({spread})")


def arguments() -> argparse.Namespace:
    """Parse the command line, and make the packages of `--peers` importable."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--cases", type=int, default=CASES, metavar="N", help=f"number of cases, by default {CASES:,}"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="VENV", help="an environment with joblib, loky, Dask and Ray"
    )
    given = parser.parse_args()
    if given.peers is not None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = str(given.peers.resolve() / "lib" / version / "site-packages")
        sys.path.append(packages)
        os.environ["PYTHONPATH"] = packages  # most of them start interpreters
    return given


def main() -> None:
    """Measure all candidates side by side."""
    given = arguments()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    os.environ["DASK_LOGGING__DISTRIBUTED"] = "critical"  # its workers complain while they are being closed
    load = os.getloadavg()[0]
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {load:.1f}; {given.cases:,} cases"
    )
    show(measured(range(given.cases)), given.cases)


if __name__ == "__main__":
    main()
