"""Measures plans on Modal beside what Modal itself needs, in the same containers and in the same run.

    python -m benchmarks.containers [--cases N] [--rounds N]

The server is the one of the tests, the client and the containers are Modal's own.  Two pairs, in turn, so
that a busy machine slows both: 50 no-op cases at once beside 50 bare calls of a function, and many cases
that all wait in Modal's queue at once, beside as many bare calls.  Prints the median of each and their
ratio.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

import modal

from services.planner.backends.modal_backend import ModalBackend
from services.planner.execution import Execution, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime
from tests.modal_server.fixtures import MODAL_OPTIONS, serve_modal

AT_ONCE = 50
Work = Callable[[int], Awaitable[Any]]


async def bare(number: int) -> int:
    """What a bare call runs: nothing, in the container's event loop as calls of tools do."""
    return number


async def deploy_bare() -> Any:
    """Deploy `bare` with as many containers as the backend has; return it as a planner finds it."""
    app = modal.App("bare", include_source=False)
    made = app.function(max_containers=MODAL_OPTIONS.max_containers, name="bare", serialized=True)
    made(modal.concurrent(max_inputs=MODAL_OPTIONS.slots)(bare))
    await app.deploy.aio()
    return modal.Function.from_name("bare", "bare")


async def seconds_for(count: int, work: Work) -> float:
    """Do the work so often, all at once, check the order of results, and return how long it took."""
    began = time.perf_counter()
    results = await asyncio.gather(*(work(number) for number in range(count)))
    seconds = time.perf_counter() - began
    assert results == list(range(count)), "each call has its own result"
    return seconds


async def measure(folder: Path, cases: int, rounds: int) -> None:
    """Print both pairs."""
    (folder / "tools").mkdir()
    (folder / "tools" / "noop.py").write_text("def noop(n): return n\n")
    config = RuntimeConfig(
        tools_path=folder / "tools", artifacts=str(folder / "artifacts"),
        bundles_path=folder / "bundles", environments_path=folder / "environments",
    )  # fmt: skip
    function = await deploy_bare()
    async with ModalBackend(MODAL_OPTIONS, ToolRuntime(config, 1, os.environ), concurrency=cases) as backend:

        async def case(number: int) -> int:
            result = await backend.run(Execution("noop", {"n": number}, RunOptions(f"run-{number}")))
            return int(result.result or -1)

        async def bare_call(number: int) -> int:
            called = await function.spawn.aio(number)
            return int(await called.get.aio())

        pairs: dict[int, tuple[list[float], list[float]]] = {AT_ONCE: ([], []), cases: ([], [])}
        for work in (case, bare_call):
            await seconds_for(AT_ONCE, work)
        for _ in range(rounds):
            for count, found in pairs.items():
                for times, work in zip(found, (case, bare_call), strict=True):
                    times.append(await seconds_for(count, work))
    for count, (ours, theirs) in pairs.items():
        ratio = median(ours) / median(theirs)
        print(f"{count:5} at once, s  {median(ours):8.2f}  bare {median(theirs):8.2f}  ratio {ratio:.2f}")


def main() -> None:
    """Read the arguments, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1_000, help="cases that wait at once")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "server").mkdir()
        with serve_modal(folder / "server"):
            asyncio.run(measure(folder, given.cases, given.rounds))


if __name__ == "__main__":
    main()
