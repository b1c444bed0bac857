"""Counts the files of ours that one warm run passes, from PUBLISH to result: `python -m benchmarks.trace`.

An idle worker runs one tool several times.  These files are counted:

- Python files in `services/` and `shared/` of which a function is called or resumed, in the service's
  process and in the tool's process.  A profile hook in each process finds them.
- Lua files of which the called scripts consist.  MONITOR finds them.

The time is from the PUBLISH of the trigger to the PUBLISH of the result.  Of several runs, the one with
the median count is printed, so that a heartbeat during a run is not counted.
"""

import argparse
import asyncio
import codecs
import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shared import keys
from shared.connection import connect
from shared.embedded import EmbeddedServer

ROOT = Path(__file__).parents[1]
OURS = tuple(f"{ROOT / name}{os.sep}" for name in ("services", "shared"))
WARM_UP, MEASURED = 6, 5
LIMIT_SECONDS = 60.0
PAUSE_SECONDS = 0.05
"""Between runs, so that the worker is idle when a run begins."""
EXPERIMENT = "exp_traced"
LINE_MAX_BYTES = 10_000_000

HOOK = f"""
import json, sys, time

calls, now = [], time.time

def hook(frame, event, argument):
    path = frame.f_code.co_filename
    if event == "call" and path.startswith({OURS!r}):
        calls.append((now(), path))
"""
SERVICE = """
import atexit, runpy, threading

def write(path=sys.argv[1]):
    sys.setprofile(None)
    with open(path, "w") as file:
        json.dump(calls, file)

atexit.register(write)
sys.argv[1:] = []
threading.setprofile(hook)
sys.setprofile(hook)
runpy.run_module("services.executor.main", run_name="__main__", alter_sys=True)
"""
TOOL = """
# The child removes a profile hook after each run; this one stays.
set_profile, sys.setprofile = sys.setprofile, lambda hook: None
set_profile(hook)

def traced(path=None):
    if path:
        with open(path, "w") as file:
            json.dump(calls, file)
"""


@dataclass(frozen=True, slots=True)
class Use:
    """The first use of a file in a run: `at` is Unix time; `where` is `service`, `child` or `lua`."""

    at: float
    where: str
    path: str


@dataclass(frozen=True, slots=True)
class Command:
    """A command that the server has executed, also one of a script; `at` is Unix time."""

    at: float
    words: list[str]

    @classmethod
    def parsed(cls, line: str) -> "Command":
        """One line of MONITOR, such as `+1700000000.123456 [0 127.0.0.1:6379] "PUBLISH" "channel" "text"`."""
        words = re.findall(r'"((?:[^"\\]|\\.)*)"', line.partition("]")[2])
        return cls(float(line[1:].partition(" ")[0]), [_unescaped(word) for word in words])

    @property
    def verb(self) -> str:
        """Its name in capitals."""
        return self.words[0].upper()


def _unescaped(word: str) -> str:
    return codecs.escape_decode(word.encode())[0].decode(errors="replace")


async def trace() -> list[Use]:
    """The files that one warm run passes, in the order of their first use."""
    with tempfile.TemporaryDirectory(prefix="trace-") as name:
        folder = Path(name)
        (folder / "tools").mkdir()
        (folder / "tools" / "traced.py").write_text(HOOK + TOOL)
        server = EmbeddedServer.acquire(folder / "redis")
        try:
            async with _monitor(server.url) as commands, _worker(server.url, folder):
                await _perform(server.url, folder, WARM_UP + MEASURED + 1)
        finally:
            server.release()
        calls = [
            Use(at, where, path)
            for where in ("service", "child")
            for at, path in json.loads((folder / where).read_text())
        ]
    calls += _lua_files(commands)
    # In the last run the tool writes the child's calls.
    runs = [_first_uses(*run, calls) for run in list(_runs(commands))[WARM_UP:-1]]
    return sorted(runs, key=len)[len(runs) // 2]


def _lua_files(commands: Iterable[Command]) -> Iterator[Use]:
    """The Lua files in the scripts that are called: a script contains each line of code of its files."""
    commands = list(commands)
    files = {path: _code(path.read_text(encoding="utf-8")) for path in ROOT.glob("services/**/*.lua")}
    sent = {"SCRIPT": 2, "EVAL": 1}  # the place of the text
    texts = [command.words[sent[command.verb]] for command in commands if command.verb in sent]
    code = {hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(): _code(text) for text in texts}
    for command in commands:
        if command.verb in ("EVAL", "EVALSHA"):
            script = command.words[1]
            called = _code(script) if command.verb == "EVAL" else code[script]
            yield from (Use(command.at, "lua", str(path)) for path, lines in files.items() if lines <= called)


def _code(text: str) -> frozenset[str]:
    lines = map(str.strip, text.splitlines())
    return frozenset(line for line in lines if line and not line.startswith("--"))


def _runs(commands: Iterable[Command]) -> Iterator[tuple[float, float]]:
    """For each run, the times of the PUBLISH of its trigger and of its result."""
    start = 0.0
    for command in commands:
        match command.words[:2]:
            case [_, keys.EXECUTE_NOW] if command.verb == "PUBLISH":
                start = command.at
            case [_, keys.RESULTS] if command.verb == "PUBLISH":
                yield start, command.at


def _first_uses(start: float, end: float, calls: Iterable[Use]) -> list[Use]:
    first: dict[tuple[str, str], Use] = {}
    for use in sorted(calls, key=lambda use: use.at):
        if start <= use.at <= end:
            first.setdefault((use.where, use.path), use)
    return list(first.values())


@contextlib.asynccontextmanager
async def _monitor(url: str) -> AsyncIterator[list[Command]]:
    """The commands that the server executes meanwhile; redis-py's own MONITOR loses where a word ends."""
    address = urlsplit(url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port, limit=LINE_MAX_BYTES)
    commands: list[Command] = []

    async def listen() -> None:
        while line := await reader.readline():
            commands.append(Command.parsed(line.decode()))

    writer.write(b"MONITOR\r\n")
    await reader.readline()
    listening = asyncio.create_task(listen())
    yield commands
    listening.cancel()
    writer.close()


@contextlib.asynccontextmanager
async def _worker(url: str, folder: Path) -> AsyncIterator[None]:
    """A worker with the hook.  It writes its calls when it ends."""
    settings = {
        "REDIS_URL": url,
        "TOOLS_PATH": str(folder / "tools"),
        "SCHEDULE_MODE": "trigger",
        "LOG_LEVEL": "warning",
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HOOK + SERVICE, str(folder / "service")),
        cwd=folder,
        env={**os.environ, **settings},
    )
    try:
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _perform(url: str, folder: Path, number: int) -> None:
    """Run the tool, one run after the other."""
    redis: Any = connect(url)
    await redis.hset(keys.experiment(EXPERIMENT), mapping={"tool": "traced"})
    async with redis.pubsub(ignore_subscribe_messages=True) as results, asyncio.timeout(LIMIT_SECONDS):
        await results.subscribe(keys.RESULTS)
        await results.get_message(timeout=None)
        for left in reversed(range(number)):
            params = {} if left else {"path": str(folder / "child")}
            trigger = json.dumps({"experiment_id": EXPERIMENT, "params": params})
            while not await redis.publish(keys.EXECUTE_NOW, trigger):
                await asyncio.sleep(PAUSE_SECONDS)  # the worker does not listen yet
            result = json.loads((await results.get_message(timeout=None))["data"])
            if result["type"] != "experiment_completed":
                raise RuntimeError(f"a run has failed: {result}")
            await asyncio.sleep(PAUSE_SECONDS)
    await redis.aclose()


def main() -> None:
    """Print the files in the order of their first use, and their number."""
    argparse.ArgumentParser(prog="python -m benchmarks.trace", description=__doc__).parse_args()
    uses = asyncio.run(trace())
    for number, use in enumerate(uses, start=1):
        after_ms, path = 1_000 * (use.at - uses[0].at), os.path.relpath(use.path, ROOT)
        print(f"{number:3}  {after_ms:6.2f} ms  {use.where:7}  {path}")
    counts = Counter(use.where for use in uses)
    print(f"{len(uses)} files: {counts['service']} service, {counts['child']} child, {counts['lua']} lua")


if __name__ == "__main__":
    main()
