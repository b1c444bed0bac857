"""A plan of cases that do nothing, against other ways to run many: `python -m benchmarks.planner`.

Everybody gets the same cases, the same two processes and the same function, all
cases at once, and has to hand back every result in the order of the cases.
What is measured is the time from the list of cases to the list of results divided by
their number; since a case does nothing, all of it is overhead.  Starting the
processes is not part of it: each has called the function some hundred times before.
Everything takes turns within one run, round after round, and what is printed is the
median of the rounds; since machines differ and are busy, read the ratios rather than
the times.

Ours is a plan on the `local` backend: every case is a call in isolation that can be
cancelled and has a time limit, is told its seed, has its outcome judged and its
identity computed.  The others do nothing of that.  Two more lines say where our time
goes: the same calls without a plan, and the plan on a backend that answers at once.
Another says what `fullsend plan run` takes, which keeps a plan in a directory: every case
and every attempt is noted in its registry (SQLite), so that the plan outlives a crash.
joblib hands over several cases at a time if they are short (`auto`, its default);
everybody else, also joblib with `batch_size=1`, one by one.

joblib, loky, Dask and Ray take part when they can be imported; `--peers VENV` names an
environment that has them.
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
    """What the others call; the tool is the same text."""
    return x


# -- ours -----------------------------------------------------------------------------


class AtOnce:
    """A backend that answers at once, to see what the planner itself takes."""

    capacity = PROCESSES

    async def run(
        self, call: Execution, *, report: Report | None = None, cancel: asyncio.Event | None = None
    ) -> ExecutionResult:
        """The parameter, as the tool would return it."""
        await asyncio.sleep(0)
        result = json.dumps(call.parameters["x"])
        return ExecutionResult(call.options.run_id, Status.COMPLETED, "memory", "memory://", result=result)


def a_plan(numbers: Sequence[int]) -> RunManifest:
    """A case for each number."""
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
    """All of it: the plan is made, its seeds are computed, its cases run."""
    return values_in(await TaskScheduler(backend).run_manifest_async(a_plan(numbers)))


async def kept(backend: LocalBackend, folder: Path, numbers: Sequence[int]) -> list[Any]:
    """The same, as a plan on disk."""
    directory = Path(tempfile.mkdtemp(dir=folder)) / "plan"
    plan = await asyncio.to_thread(Plan.create, a_plan(numbers), directory)
    return values_in(await plan.run(backend))


def values_in(found: RunExecutionResult) -> list[Any]:
    """What the tool returned to each case."""
    failed = [one for one in found.task_results if one.task_status is not TaskStatus.SUCCEEDED]
    assert not failed, (
        f"{len(failed)} failed, the first with {failed[0].error_type}: {failed[0].error_message}"
    )
    return [one.execution and json.loads(one.execution.result or "") for one in found.task_results]


async def unplanned(backend: LocalBackend, numbers: Sequence[int]) -> list[Any]:
    """The same calls, with a caller for each process."""
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
    """The `local` backend with everything below one directory."""
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


# -- the others -----------------------------------------------------------------------


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
            pool.get_reusable_executor().shutdown(wait=True)  # it is kept for whoever comes next

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
    """The others that can be imported."""
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
    """One round of another, which is gone afterwards: its threads would slow down everybody else."""
    with open_it() as run:
        run(range(WARM_UP))
        begun = time.perf_counter()
        answers = run(numbers)
        seconds = time.perf_counter() - begun
    assert list(answers) == list(numbers), "somebody lost a result"
    return seconds


async def our_seconds(numbers: Sequence[int]) -> dict[str, float]:
    """One round of ours, and of its parts."""
    with tempfile.TemporaryDirectory() as directory:
        async with our_backend(Path(directory)) as backend:
            return {
                OURS: await timed(functools.partial(planned, backend), numbers),
                "  the plan on disk": await timed(functools.partial(kept, backend, Path(directory)), numbers),
                "  the calls without a plan": await timed(functools.partial(unplanned, backend), numbers),
                "  the plan without calls": await timed(functools.partial(planned, AtOnce()), numbers),
            }


async def timed(run: Callable[[Sequence[int]], Awaitable[list[Any]]], numbers: Sequence[int]) -> float:
    """How long it takes once it is warm."""
    await run(range(WARM_UP))
    begun = time.perf_counter()
    answers = await run(numbers)
    seconds = time.perf_counter() - begun
    assert answers == list(numbers), "we lost a result"
    return seconds


def measured(numbers: Sequence[int]) -> dict[str, list[float]]:
    """Seconds of all rounds, by name; who fails once is left out from there on."""
    peers, rounds = installed(), dict[str, list[float]]()
    for number in range(ROUNDS):
        for name, seconds in asyncio.run(our_seconds(numbers)).items():
            rounds.setdefault(name, []).append(seconds)
        for name, open_it in list(peers.items()):
            try:
                rounds.setdefault(name, []).append(peer_seconds(open_it, numbers))
            except Exception as exc:  # whatever it is, it is not ours to mend
                print(f"  {name} is left out, it failed in round {number + 1}: {type(exc).__name__}: {exc}")
                del peers[name], rounds[name]
    return rounds


def show(rounds: dict[str, list[float]], cases: int) -> None:
    """Print the overhead of each, and how many times ours it is, round by round."""
    for name, seconds in rounds.items():
        micros = statistics.median(seconds) / cases * 1e6
        ratios = [one / ours for one, ours in zip(seconds, rounds[OURS], strict=True)]
        spread = f"{min(ratios):.2g} to {max(ratios):.2g}"
        print(f"  {name:<30}{micros:>10,.0f} us a case{statistics.median(ratios):>9.2g} x ours   ({spread})")


def arguments() -> argparse.Namespace:
    """What was asked for; the environment that was named can be imported from afterwards."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--cases", type=int, default=CASES, metavar="N", help=f"{CASES:,} unless told otherwise"
    )
    parser.add_argument(
        "--peers", type=Path, metavar="VENV", help="where joblib, loky, Dask and Ray are installed"
    )
    given = parser.parse_args()
    if given.peers is not None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = str(given.peers.resolve() / "lib" / version / "site-packages")
        sys.path.append(packages)
        os.environ["PYTHONPATH"] = packages  # most of them start interpreters of their own
    return given


def main() -> None:
    """Measure everything side by side."""
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
