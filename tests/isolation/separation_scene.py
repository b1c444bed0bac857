"""A service with secrets, tools of its own that are after them, and what they get.

Run by path as some user, `python separation_scene.py LEVEL SANDBOX`; prints a JSON object.
"""

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Level, Returned
from services.executor.isolation.sandbox import Sandbox
from tests.isolation.bench import Bench, bench

ROOT = Path(__file__).parents[2]
SECRET = "-".join(["hunter", "2"] * 3)

ATTACK = f"""
    import os, resource, sys, time, types
    sys.path.insert(0, {str(ROOT)!r})
    from tests.isolation import sandbox_attempts as attempts

    def memory_of(pid, secret):
        found = False
        with open(f"/proc/{{pid}}/maps") as maps, open(f"/proc/{{pid}}/mem", "rb", 0) as memory:
            for line in maps:
                span, rights = line.split()[:2]
                start, end = (int(text, 16) for text in span.split("-"))
                if rights.startswith("rw") and end - start < 100_000_000:
                    try:
                        memory.seek(start)
                        found = found or secret.encode() in memory.read(end - start)
                    except (OSError, ValueError):
                        continue
        return found

    def status():
        lines = open("/proc/self/status").read().splitlines()
        return {{name: value.strip() for name, _, value in (line.partition(":") for line in lines)}}

    def attacked(target):
        tries = {{
            **attempts.of_process("environ"), **attempts.of_process("maps"), **attempts.of_process("mem"),
            **attempts.SIGNALS,
            "see where it is": lambda t: os.readlink(f"/proc/{{t.neighbour}}/cwd"),
            "see an open file": lambda t: os.readlink(f"/proc/{{t.neighbour}}/fd/0"),
            "connect to an abstract socket": attempts.OTHER_SOCKETS["connect to an abstract socket"],
        }}
        tries |= {{
            "change a limit": lambda t: resource.prlimit(t.parent, resource.RLIMIT_CORE, (0, 0)),
            "change the priority": attempts.PROCESSES["renice"],
            "change the group's priority": lambda t: os.setpriority(os.PRIO_PGRP, t.parent, 0),
            "change the user's priority": lambda t: os.setpriority(os.PRIO_USER, 12345, 0),
            "change the I/O priority": lambda t: attempts.syscall(
                30 if attempts.ARM else 251, 1, t.parent, 2 << 13 | 4),
            "change the processors": attempts.PROCESSES["pin to a processor"],
            "change the scheduling": lambda t: os.sched_setscheduler(t.parent, 3, os.sched_param(0)),
            "change the scheduling's parameters": lambda t: os.sched_setparam(t.parent, os.sched_param(0)),
            "change all of the scheduling": lambda t: attempts.syscall(
                274 if attempts.ARM else 314, t.parent, b"0" + bytes(47), 0),
        }}
        tries |= {{
            "keep a key for others": lambda t: attempts.syscall(
                217 if attempts.ARM else 248, b"user", b"key", b"content", 7, -4),
            "read the user's keys": lambda t: attempts.syscall(219 if attempts.ARM else 250, 11, -4, 0, 0),
        }}
        tries |= {{name: attempts.PROCESSES[name] for name in ("trace", "read memory", "take a descriptor")}}
        return {{name: attempts.outcome(attempt, target) for name, attempt in tries.items()}}

    def run(others, secret, abstract, wait=False):
        came = {{}}
        for name, pid in others.items():
            target = types.SimpleNamespace(parent=pid, neighbour=pid, abstract=abstract)
            came[name] = attacked(target)
            try:
                came[name]["find a secret"] = "done" if memory_of(pid, secret[::-1]) else "not found"
            except OSError as error:
                came[name]["find a secret"] = attempts.errno.errorcode[error.errno]
        print("ready", os.getpid(), flush=True)
        if wait: time.sleep(60)
        seen = status()
        return {{"came": came, "CapEff": seen["CapEff"], "CapPrm": seen["CapPrm"], "CapBnd": seen["CapBnd"],
                "NoNewPrivs": seen["NoNewPrivs"], "environ": dict(os.environ)}}
"""


async def main(level: Level, sandbox: Sandbox) -> dict[str, Any]:
    """Let one tool attack the service, the processes in between, another program and other tools."""
    os.environ["SERVICE_SECRET"] = SECRET
    listener = socket.socket(socket.AF_UNIX)
    abstract = f"fullsend-separation-{os.getpid()}"
    listener.bind("\0" + abstract)
    listener.listen()
    program = subprocess.Popen(["sleep", "1000"], env={"SECRET": SECRET})
    with tempfile.TemporaryDirectory() as folder:
        async with bench(Path(folder)) as own:
            try:
                return await _attack(own, level, sandbox, program.pid, abstract)
            finally:
                program.kill()
                program.wait()
                listener.close()


async def _attack(own: Bench, level: Level, sandbox: Sandbox, program: int, abstract: str) -> dict[str, Any]:
    tool = replace(own.tool(ATTACK), sandbox=sandbox)
    # Backwards, so that the attacker's own memory and what is sent to it don't have it.
    said = {"secret": SECRET[::-1], "abstract": abstract}
    cancel = asyncio.Event()
    waiting = [
        asyncio.create_task(
            own.run(one, level=level, params={**said, "others": {}, "wait": True}, cancel=cancel)
        )
        for one in (tool, replace(own.tool(ATTACK + "\n    OTHER = True"), sandbox=sandbox))
    ]
    await own.until(lambda _: len(own.lines()) == len(waiting))
    same, other = sorted(int(line.split()[1]) for line in own.lines())
    [server] = own.pool.inspect().fork_servers
    parents = [
        int(text) for text in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    ]
    others = {
        "service": os.getpid(), "guard": server.pid, "fork server": parents[0],
        "program": program, "tool": same, "other tool": other,
    }  # fmt: skip
    others |= {f"template {one.pid}": one.pid for one in own.pool.inspect().templates}
    answer = await own.run(tool, level=level, params={**said, "others": others})
    cancel.set()
    await asyncio.gather(*waiting)
    assert isinstance(answer, Returned), answer
    return dict(answer.value)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Level(sys.argv[1]), Sandbox(sys.argv[2])))))
