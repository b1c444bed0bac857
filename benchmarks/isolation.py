"""Isolated calls against a bare socket pair and other process pools: `python -m benchmarks.isolation`.

Everything is measured in one run on one machine, so read the ratios rather than
the times.  pebble and loky take part when they are installed.
"""

import asyncio
import contextlib
import hashlib
import importlib
import json
import logging
import os
import platform
import socket
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Call, Died, Event, Level, Module
from services.executor.isolation.pool import Pool

CALLS = 5_000
FORKS = 300
SPAWNS = 20
PROCESSES = 2
SOURCE = "import os\ndef noop(die=False):\n    if die: os._exit(1)\n"


def noop() -> None:
    """What the other pools call."""


def ignore(_: Event) -> None:
    """A report that costs nothing."""


def line(name: str, value: str) -> None:
    """Print one result."""
    print(f"  {name:<58}{value:>18}", flush=True)


# -- the floor ------------------------------------------------------------------------


def frame(value: dict[str, Any]) -> bytes:
    """The same envelope as the real protocol has."""
    payload = json.dumps(value, separators=(",", ":")).encode()
    return len(payload).to_bytes(4, "big") + payload


def echo(sock: socket.socket) -> None:
    """Answer every request at once, forever."""
    while True:
        data = sock.recv(65_536)
        if not data:
            os._exit(0)
        request = json.loads(data[4:])
        sock.sendall(frame({"jsonrpc": "2.0", "id": request["id"], "result": {"items": None, "value": None}}))


def start_echo() -> socket.socket:
    """Our end of a socket pair whose other end echoes in a process of its own."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        echo(theirs)
    theirs.close()
    return ours


def request(number: int) -> bytes:
    """A request of about the size of a real call."""
    params = {"run_id": "exp:1-0", "experiment_id": "exp", "attempt": 1, "params": {}, "timeout_seconds": 30}
    return frame({"jsonrpc": "2.0", "id": number, "method": "call", "params": params})


def blocking_echo_seconds(sock: socket.socket) -> list[float]:
    """Round trips with nothing but two blocking sockets."""
    times = []
    for number in range(CALLS):
        begun = time.perf_counter()
        sock.sendall(request(number))
        json.loads(sock.recv(65_536)[4:])
        times.append(time.perf_counter() - begun)
    return times


async def loop_echo_seconds(sock: socket.socket) -> list[float]:
    """Round trips with our end on the event loop, as the service needs it."""
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
    """A call of it."""
    return Call(tool, "exp:1-0", "exp", 1, params, 30.0, level)


async def timed(count: int, act: Callable[[], Awaitable[object]]) -> list[float]:
    """How long each of `count` acts takes, one after the other."""
    times = []
    for _ in range(count):
        begun = time.perf_counter()
        await act()
        times.append(time.perf_counter() - begun)
    return times


async def replacement_seconds(pool: Pool, tool: Module) -> list[float]:
    """From the death of a warm process to the answer of the one that takes its place."""
    times = []
    for _ in range(50):
        assert isinstance(await pool.call(a_call(tool, Level.WARM, die=True), ignore), Died)
        times += await timed(1, lambda: pool.call(a_call(tool, Level.WARM), ignore))
    return times


async def calls_per_second(pool: Pool, tool: Module, at_once: int) -> float:
    """With so many calls under way at any time."""
    call = a_call(tool, Level.WARM)

    async def work() -> None:
        for _ in range(CALLS // at_once):
            await pool.call(call, ignore)

    begun = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(at_once)))
    return CALLS // at_once * at_once / (time.perf_counter() - begun)


async def ours(directory: Path) -> tuple[float, float]:
    """Print all about this project's pool; the median warm call and the calls per second."""
    tool = a_tool(directory)
    pool = Pool(capacity=PROCESSES, max_runs=10**9, log=logging.getLogger("silent"))
    await pool.start()
    try:
        await pool.call(a_call(tool, Level.FORK), ignore)
        warm = await timed(CALLS, lambda: pool.call(a_call(tool, Level.WARM), ignore))
        percentiles("warm call", warm)
        percentiles("fork call", await timed(FORKS, lambda: pool.call(a_call(tool, Level.FORK), ignore)))
        percentiles("spawn call", await timed(SPAWNS, lambda: pool.call(a_call(tool, Level.SPAWN), ignore)))
        percentiles("first call after a death", await replacement_seconds(pool, tool))
        rate = await calls_per_second(pool, tool, PROCESSES)
    finally:
        await pool.stop()
    return statistics.median(warm), rate


# -- the others -----------------------------------------------------------------------


def others() -> dict[str, Callable[[], contextlib.AbstractContextManager[Any]]]:
    """The other pools that are installed."""
    found: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "ProcessPoolExecutor": lambda: ProcessPoolExecutor(PROCESSES)
    }
    with contextlib.suppress(ImportError):
        pebble = importlib.import_module("pebble")
        found["pebble"] = lambda: pebble.ProcessPool(PROCESSES)
    with contextlib.suppress(ImportError):
        loky = importlib.import_module("loky")
        found["loky"] = lambda: loky.ProcessPoolExecutor(PROCESSES)
    return found


def submitted_per_second(make: Callable[[], contextlib.AbstractContextManager[Any]]) -> float:
    """Calls a second when all of them are handed over at once, which suits these pools best."""
    with make() as pool:
        submit: Callable[..., Future[None]] = getattr(pool, "schedule", None) or pool.submit
        wait([submit(noop) for _ in range(PROCESSES)])
        begun = time.perf_counter()
        wait([submit(noop) for _ in range(CALLS)])
        return CALLS / (time.perf_counter() - begun)


# -- the report -----------------------------------------------------------------------


def percentiles(name: str, times: list[float]) -> None:
    """Print the median and the slowest tenth."""
    cuts = statistics.quantiles(times, n=10)
    line(f"{name}, p50 / p90", f"{statistics.median(times) * 1e6:,.0f} / {cuts[8] * 1e6:,.0f} us")


async def main() -> None:
    """Measure everything side by side."""
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with start_echo() as sock:
        blocking = blocking_echo_seconds(sock)
    with start_echo() as sock:
        looped = await loop_echo_seconds(sock)
    percentiles("bare socket pair, both ends blocking", blocking)
    percentiles("bare socket pair, our end on the event loop", looped)
    with tempfile.TemporaryDirectory() as directory:
        warm, rate = await ours(Path(directory))
    line("warm call / bare socket pair on the event loop", f"{warm / statistics.median(looped):.1f} x")
    line("warm call / bare socket pair, blocking", f"{warm / statistics.median(blocking):.1f} x")
    line(f"calls a second, {PROCESSES} processes", f"{rate:,.0f}")
    for name, make in others().items():
        theirs = submitted_per_second(make)
        line(f"calls a second, {name}", f"{theirs:,.0f}")
        line(f"  ours / {name}", f"{rate / theirs:.1f} x")


if __name__ == "__main__":
    asyncio.run(main())
