"""Measures plans on Dask beside what Dask itself needs, on the same workers and in the same run.

    python -m benchmarks.clusters [--cases N] [--rounds N]

Three pairs, in turn, so that a busy machine slows both: no-op cases beside bare async futures, a
batch of cases of 50 ms beside the ideal, and an artifact of 10 MB beside a bare future that returns
10 MB.  As many calls are under way as a plan would have, and the processes of a tool have called it
before its time is taken: each worker runs four, which serve one tool after the other here.  Prints the
median of each and their ratio, and what the batch takes when its processes have to be started first.
"""

import argparse
import asyncio
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from distributed import Client

from services.planner.backends.dask_backend import DaskBackend
from services.planner.backends.dask_connection import PRELOAD
from services.planner.execution import Execution, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime

WORKERS, THREADS = 2, 4
AT_ONCE = WORKERS * THREADS
NAP_SECONDS, NAPS = 0.05, 200
SIZE_BYTES = 10_000_000
TOOLS = {
    "noop": "def noop(n): return n\n",
    "nap": f"import time\ndef nap(n): time.sleep({NAP_SECONDS})\n",
    "large": "import os\nfrom shared import toolkit\n"
    f"def large(n): toolkit.artifact('x', os.urandom({SIZE_BYTES}))\n",
}
Work = Callable[[int], Awaitable[Any]]


async def bare(number: int) -> int:
    """What a bare future runs: nothing, in the worker's event loop as calls of tools do."""
    return number


async def bare_bytes(number: int) -> bytes:
    """What a bare future returns beside a large artifact."""
    return os.urandom(SIZE_BYTES)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start a scheduler and two workers, each a process; yield the address."""
    place = folder / "scheduler.json"
    commands = [["scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0"]]
    commands += [["worker", "--nthreads", str(THREADS), "--no-dashboard", "--preload", PRELOAD]] * WORKERS
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command, "--scheduler-file", str(place)],
            cwd=folder, stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]  # fmt: skip
    try:
        while not place.exists():
            time.sleep(0.05)
        yield str(place)
    finally:
        for one in reversed(running):
            one.terminate()
            one.wait()


async def seconds_for(count: int, work: Work, at_once: int = AT_ONCE) -> float:
    """Do the work so often, and return how long it took."""
    room = asyncio.Semaphore(at_once)

    async def one(number: int) -> None:
        async with room:
            await work(number)

    began = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(count)))
    return time.perf_counter() - began


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Client, DaskBackend]]:
    """Open a client and a backend on a cluster with all its workers."""
    (folder / "tools").mkdir()
    for name, text in TOOLS.items():
        (folder / "tools" / f"{name}.py").write_text(text)
    config = RuntimeConfig(
        tools_path=folder / "tools", artifacts=str(folder / "artifacts"),
        bundles_path=folder / "bundles", environments_path=folder / "environments",
    )  # fmt: skip
    with cluster(folder) as place:
        async with Client(scheduler_file=place, asynchronous=True, set_as_default=False) as client:
            await client.wait_for_workers(WORKERS)
            runtime = ToolRuntime(config, 1, os.environ)
            async with DaskBackend(client.scheduler.address, runtime) as backend:
                yield client, backend


async def measure(cases: int, rounds: int) -> None:
    """Print all pairs."""
    with tempfile.TemporaryDirectory() as name:
        async with opened(Path(name)) as (client, backend):

            def future(function: Callable[[int], Awaitable[Any]]) -> Work:
                return lambda number: client.submit(
                    function, number, key=f"bare-{secrets.token_hex(16)}", pure=False
                ).result()

            def call(tool: str) -> Work:
                return lambda number: backend.run(Execution(tool, {"n": number}, RunOptions(f"run-{number}")))

            pairs: dict[str, tuple[list[float], list[float]]] = {}
            for _ in range(rounds):
                for title, ours, theirs in (
                    ("no-op cases, ms", (cases, call("noop"), AT_ONCE), (cases, future(bare), AT_ONCE)),
                    ("10 MB, ms", (10, call("large"), 1), (10, future(bare_bytes), 1)),
                ):
                    found = pairs.setdefault(title, ([], []))
                    await seconds_for(2 * AT_ONCE, ours[1])
                    for times, (count, work, at_once) in zip(found, (ours, theirs), strict=True):
                        times.append(await seconds_for(count, work, at_once) / count * 1_000)
                for title in ("200 cases of 50 ms, first, s", "200 cases of 50 ms, s"):
                    naps = pairs.setdefault(title, ([], []))
                    naps[0].append(await seconds_for(NAPS, call("nap"), backend.capacity))
                    naps[1].append(NAPS * NAP_SECONDS / AT_ONCE)
    for title, (mine, bare_ones) in pairs.items():
        ratio = median(mine) / median(bare_ones)
        print(f"{title:<28} {median(mine):8.2f}  bare {median(bare_ones):8.2f}  ratio {ratio:.2f}")


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000, help="no-op cases in each round")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    asyncio.run(measure(given.cases, given.rounds))


if __name__ == "__main__":
    main()
