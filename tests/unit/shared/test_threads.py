"""Blocking calls in threads: their results, their limit, and the end of the process."""

import asyncio
import subprocess
import sys
import threading

import pytest

from shared.threads import Threads, in_thread


async def test_a_result_or_an_error_is_passed_on() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(KeyError, match="gone"):
        await in_thread(dict[str, int]().__getitem__, "gone")


async def test_calls_are_limited() -> None:
    threads, gate, running = Threads(2), threading.Event(), []

    def work(number: int) -> int:
        running.append(number)
        gate.wait(10)
        return number

    calls = [asyncio.create_task(threads.run(work, number)) for number in range(5)]
    while len(running) < 2:
        await asyncio.sleep(0.001)
    at_once = len(running)
    gate.set()

    assert await asyncio.gather(*calls) == [0, 1, 2, 3, 4]
    assert at_once == 2


async def test_a_cancelled_call_ends_without_an_error() -> None:
    begun, gate = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        gate.wait(10)
        raise ValueError

    call = asyncio.create_task(in_thread(work))
    while not begun.is_set():
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.set()


def test_a_call_that_never_ends_does_not_keep_the_process_from_ending() -> None:
    program = """
import asyncio, threading
from shared.threads import in_thread
async def main():
    asyncio.create_task(in_thread(threading.Event().wait))
    await asyncio.sleep(0)
asyncio.run(main())
print("ended")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout) == (0, "ended\n")
