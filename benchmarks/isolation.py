"""Compares isolated calls with a bare socket pair and other process pools: `python -m benchmarks.isolation`.

Latency is the round trip of single calls of a tool that does nothing.  Throughput is measured with two
processes per pool and the same number of calls in flight.  The other pools get their calls by `submit`
(pebble: `schedule`), one call per message, as their documentation recommends for single calls.  All
measurements alternate within one run, and the medians of the rounds are printed.  Compare ratios, not times:
they depend less on the machine and its load.

pebble and loky are measured if they can be imported; `--peers VENV` names an environment that has them.
"""

import argparse
import asyncio
import contextlib
import functools
import hashlib
import importlib
import json
import logging
import os
import platform
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Call, Died, Event, Level, Module
from services.executor.isolation.pool import Pool

ROUNDS = 7
CALLS = 5_000
WARM_UP_CALLS = 1_000
FORKS = 100
APART_SECONDS = 0.01
SPAWNS = 10
DEATHS = 30
PROCESSES = 2
IN_FLIGHT = (PROCESSES, 2 * PROCESSES, 1_000)
SOURCE = "import os\ndef noop(die=False):\n    if die: os._exit(1)\n"


def noop() -> None:
    """The function that the other pools call."""


def ignore(_: Event) -> None:
    """A report handler that does nothing."""


# -- bare sockets ----------------------------------------------------------------------


def frame(value: dict[str, Any]) -> bytes:
    """A message in the framing of the real protocol."""
    payload = json.dumps(value, separators=(",", ":")).encode()
    return len(payload).to_bytes(4, "big") + payload


def echo(sock: socket.socket) -> None:
    """Answer every request at once until the end of the input."""
    while data := sock.recv(65_536):
        request = json.loads(data[4:])
        sock.sendall(frame({"jsonrpc": "2.0", "id": request["id"], "result": {"items": None, "value": None}}))


def start_echo() -> socket.socket:
    """Start a process that echoes; returns our end of the socket pair."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        try:
            ours.close()
            echo(theirs)
        finally:
            os._exit(0)
    theirs.close()
    return ours


def request(number: int) -> bytes:
    """A request with the size of a real call."""
    params = {"run_id": "exp:1-0", "experiment_id": "exp", "attempt": 1, "params": {}, "timeout_seconds": 30}
    return frame({"jsonrpc": "2.0", "id": number, "method": "call", "params": params})


def blocking_echo_seconds(sock: socket.socket) -> list[float]:
    """Seconds of round trips between two blocking sockets."""
    sock.setblocking(True)
    times = []
    for number in range(CALLS):
        begun = time.perf_counter()
        sock.sendall(request(number))
        json.loads(sock.recv(65_536)[4:])
        times.append(time.perf_counter() - begun)
    return times


async def loop_echo_seconds(sock: socket.socket) -> list[float]:
    """Seconds of round trips with our end on the event loop, as in the service."""
    loop = asyncio.get_running_loop()
    sock.setblocking(False)
    answer: asyncio.Future[Any] = loop.create_future()
    loop.add_reader(sock.fileno(), lambda: answer.set_result(json.loads(sock.recv(65_536)[4:])))
    times = []
    for number in range(CALLS):
        begun = time.perf_counter()
        answer = loop.create_future()
        sock.send(request(number))
        await answer
        times.append(time.perf_counter() - begun)
    loop.remove_reader(sock.fileno())
    return times


# -- ours -----------------------------------------------------------------------------


def a_tool(directory: Path) -> Module:
    """A tool that does nothing."""
    path = directory / "noop.py"
    path.write_text(SOURCE)
    return Module("noop", path, hashlib.sha256(SOURCE.encode()).hexdigest())


def a_call(tool: Module, level: Level, **params: Any) -> Call:
    """A call of a tool."""
    return Call(tool, "exp:1-0", "exp", 1, params, 30.0, level)


async def timed(count: int, act: Callable[[], Awaitable[object]], apart_seconds: float = 0.0) -> list[float]:
    """The seconds that each of `count` calls of `act` takes, one after the other."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        await act()
        times.append(time.perf_counter() - begun)
        if apart_seconds:
            await asyncio.sleep(apart_seconds)
    return times


async def replacement_seconds(pool: Pool, tool: Module) -> list[float]:
    """Seconds from the death of a warm process to the answer of its replacement."""
    times = []
    for _ in range(DEATHS):
        assert isinstance(await pool.call(a_call(tool, Level.WARM, die=True), ignore), Died)
        times += await timed(1, lambda: pool.call(a_call(tool, Level.WARM), ignore))
    return times


async def calls_per_second(pool: Pool, tool: Module, in_flight: int, calls: int = CALLS) -> float:
    """Calls per second with `in_flight` callers that each wait for their answer."""
    call = a_call(tool, Level.WARM)

    async def work() -> None:
        for _ in range(calls // in_flight):
            await pool.call(call, ignore)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return calls // in_flight * in_flight / (time.perf_counter() - begun)


async def our_rates(pool: Pool, tool: Module) -> dict[int, float]:
    """One round of our pool, after a warm-up as for the other pools."""
    await calls_per_second(pool, tool, PROCESSES, WARM_UP_CALLS)
    return {in_flight: await calls_per_second(pool, tool, in_flight) for in_flight in IN_FLIGHT}


@contextlib.asynccontextmanager
async def our_pool(directory: Path) -> AsyncIterator[tuple[Pool, Module]]:
    """Our pool with warm processes, and the tool."""
    tool = a_tool(directory)
    pool = Pool(capacity=PROCESSES, max_runs=10**9, log=logging.getLogger("silent"))
    await pool.start()
    try:
        await calls_per_second(pool, tool, PROCESSES, WARM_UP_CALLS)
        await pool.call(a_call(tool, Level.FORK), ignore)
        yield pool, tool
    finally:
        await pool.stop()


# -- the others -----------------------------------------------------------------------


def others() -> dict[str, Callable[[], Any]]:
    """The constructors of the other installed pools."""
    found: dict[str, Callable[[], Any]] = {"ProcessPoolExecutor": lambda: ProcessPoolExecutor(PROCESSES)}
    for name, kind in (("pebble", "ProcessPool"), ("loky", "ProcessPoolExecutor")):
        try:
            found[name] = functools.partial(getattr(importlib.import_module(name), kind), PROCESSES)
        except ImportError:
            print(f"  {name} can't be imported and is left out; --peers names an environment that has it")
    return found


def rates_of(make: Callable[[], Any]) -> dict[int, float]:
    """One round of another pool, which is closed afterwards, as its threads would slow down the others."""
    pool = make()
    try:
        submitted_per_second(pool, PROCESSES, WARM_UP_CALLS)
        return {in_flight: submitted_per_second(pool, in_flight) for in_flight in IN_FLIGHT}
    finally:
        close(pool)


def submitted_per_second(pool: Any, in_flight: int, calls: int = CALLS) -> float:
    """Calls per second with `in_flight` calls submitted and not done."""
    submit: Callable[..., Future[None]] = getattr(pool, "schedule", None) or pool.submit
    room = threading.Semaphore(in_flight)
    futures = []
    begun = time.perf_counter()
    for _ in range(calls):
        room.acquire()
        future = submit(noop)
        future.add_done_callback(lambda _: room.release())
        futures.append(future)
    wait(futures)
    return calls / (time.perf_counter() - begun)


def close(pool: Any) -> None:
    """Close one of the other pools."""
    if hasattr(pool, "schedule"):
        pool.close()
        pool.join()
    else:
        pool.shutdown()


# -- the report -----------------------------------------------------------------------


async def latencies(pool: Pool, tool: Module) -> None:
    """Print the latency of single calls, next to bare sockets."""
    with start_echo() as sock:
        blocking, looped, warm, blocking_ratios, looped_ratios = [], [], [], [], []
        for _ in range(ROUNDS):
            blocking.append(statistics.median(blocking_echo_seconds(sock)))
            looped.append(statistics.median(await loop_echo_seconds(sock)))
            warm.append(
                statistics.median(await timed(CALLS, lambda: pool.call(a_call(tool, Level.WARM), ignore)))
            )
            blocking_ratios.append(warm[-1] / blocking[-1])
            looped_ratios.append(warm[-1] / looped[-1])
    line("bare socket pair, both ends blocking, p50", f"{statistics.median(blocking) * 1e6:,.0f} us")
    line("bare socket pair, our end on the event loop, p50", f"{statistics.median(looped) * 1e6:,.0f} us")
    line("warm call, p50", f"{statistics.median(warm) * 1e6:,.0f} us", "150 us at most")
    line("warm call / bare socket pair on the event loop", ratio(looped_ratios), "2 x at most")
    line("warm call / bare socket pair, blocking", ratio(blocking_ratios))


async def rarer_calls(pool: Pool, tool: Module) -> None:
    """Print the latency of calls that start a process."""
    forks = await timed(FORKS, lambda: pool.call(a_call(tool, Level.FORK), ignore))
    percentiles("fork call", forks, "1,500 us at most")
    apart = await timed(FORKS, lambda: pool.call(a_call(tool, Level.FORK), ignore), APART_SECONDS)
    percentiles(f"fork call {APART_SECONDS * 1e3:g} ms after the one before", apart, "1,500 us at most")
    percentiles("spawn call", await timed(SPAWNS, lambda: pool.call(a_call(tool, Level.SPAWN), ignore)))
    percentiles("first call after a death", await replacement_seconds(pool, tool), "5,000 us at most")


async def throughputs(pool: Pool, tool: Module) -> None:
    """Print the throughput of every pool for several numbers of calls in flight."""
    peers = others()
    ours: list[dict[int, float]] = []
    theirs: dict[str, list[dict[int, float]]] = {name: [] for name in peers}
    for _ in range(ROUNDS):
        ours.append(await our_rates(pool, tool))
        for name, make in peers.items():
            theirs[name].append(rates_of(make))
    for in_flight in IN_FLIGHT:
        rate = statistics.median(round_[in_flight] for round_ in ours)
        line(f"calls a second, {PROCESSES} processes, {in_flight} in flight", f"{rate:,.0f}")
        for name, rounds in theirs.items():
            line(f"  {name}", f"{statistics.median(round_[in_flight] for round_ in rounds):,.0f}")
            ratios = [one[in_flight] / other[in_flight] for one, other in zip(ours, rounds, strict=True)]
            line(f"    ours / {name}", ratio(ratios), "2 x at least")


def ratio(ratios: list[float]) -> str:
    """The median ratio as text."""
    return f"{statistics.median(ratios):.1f} x"


def percentiles(name: str, times: list[float], target: str = "") -> None:
    """Print the minimum, the median and the 90th percentile."""
    cuts = statistics.quantiles(times, n=10)
    values = f"{min(times) * 1e6:,.0f} / {statistics.median(times) * 1e6:,.0f} / {cuts[8] * 1e6:,.0f} us"
    line(f"{name}, best / p50 / p90", values, target)


def line(name: str, value: str, target: str = "") -> None:
    """Print one result and its target."""
    print(f"  {name:<52}{value:>28}" + (f"   ({target})" if target else ""), flush=True)


def with_peers() -> None:
    """Make the packages of the environment named on the command line importable."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=Path, metavar="VENV", help="environment with pebble and loky")
    venv = parser.parse_args().peers
    if venv is not None:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = str(venv.resolve() / "lib" / version / "site-packages")
        sys.path.append(packages)
        os.environ["PYTHONPATH"] = packages  # for the interpreters that loky starts


async def main() -> None:
    """Run all measurements."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        async with our_pool(Path(directory)) as (pool, tool):
            await latencies(pool, tool)
            await rarer_calls(pool, tool)
            await throughputs(pool, tool)


if __name__ == "__main__":
    with_peers()
    asyncio.run(main())
