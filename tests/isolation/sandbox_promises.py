"""Does everything that tools may rely on, from inside a confined process.

Run by path, `python sandbox_promises.py REQUEST`; prints a JSON object of what
came of each: "done", or what went wrong.  Standard library only.
"""
# What is tried here are system calls, by their names.
# ruff: noqa: PTH103, PTH104, PTH120, PTH123, PTH208, PTH211

import asyncio
import json
import mimetypes
import mmap
import os
import random
import resource
import shutil
import signal
import socket
import sqlite3
import ssl
import sys
import tempfile
import threading
import zoneinfo
from typing import Any

from tests.isolation.sandbox_attempts import Attempt, confined, opened, outcome, target_of


def temp_is_ours(t: Any) -> None:
    os.makedirs(t.temp + "/own/a/b")
    with open(t.temp + "/own/file", "w+") as file:
        file.write("text")
    os.rename(t.temp + "/own/file", t.temp + "/own/a/file")
    os.link(t.temp + "/own/a/file", t.temp + "/own/a/b/again")
    os.symlink("file", t.temp + "/own/a/link")
    with open(t.temp + "/own/a/file", "r+") as file:
        file.truncate(2)
    os.mkfifo(t.temp + "/own/pipe")
    opened(t.temp + "/own/a/file", os.O_WRONLY | os.O_TRUNC)
    shutil.rmtree(t.temp + "/own")


def a_database(t: Any) -> None:
    with sqlite3.connect(t.temp + "/base.sqlite") as base:
        base.execute("pragma journal_mode=wal")
        base.execute("create table fact (name text)")
    base.close()


def an_event_loop(t: Any) -> None:
    async def story() -> bytes:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", "print('heard')", stdout=asyncio.subprocess.PIPE
        )
        return (await child.communicate())[0]

    assert asyncio.run(story()) == b"heard\n"


def a_thread(t: Any) -> None:
    heard: list[int] = []
    thread = threading.Thread(target=heard.append, args=(1,))
    thread.start()
    thread.join()
    assert heard == [1]


def a_child(t: Any) -> None:
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    os.kill(pid, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def its_own_limits(t: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def a_pair_of_sockets(t: Any) -> None:
    ours, other = socket.socketpair()
    with ours, other:
        ours.sendall(b"heard")
        assert other.recv(5) == b"heard"


def a_file_in_memory(t: Any) -> None:
    with mmap.mmap(-1, 4096) as memory:
        memory[:4] = b"text"
    os.close(os.memfd_create("memory"))


def a_local_time(t: Any) -> None:
    assert zoneinfo.ZoneInfo("Europe/Berlin").key == "Europe/Berlin"


PROMISED: dict[str, Attempt] = {
    "the temp directory": temp_is_ours,
    "a temporary file": lambda t: tempfile.TemporaryFile(dir=t.temp).close(),
    "a database": a_database,
    "the tool's file": lambda t: opened(t.readable),
    "the tools folder": lambda t: os.listdir(os.path.dirname(t.readable)),
    "the standard library": lambda t: __import__("xml.dom.minidom"),
    "certificates": lambda t: ssl.create_default_context(),
    "media types": lambda t: mimetypes.guess_type("a.json"),
    "time zones": a_local_time,
    "randomness": lambda t: random.SystemRandom().random(),
    "a device of randomness": lambda t: opened("/dev/urandom"),
    "nothing": lambda t: opened("/dev/null", os.O_RDWR),
    "names of hosts": lambda t: opened("/etc/hosts"),
    "the machine's memory": lambda t: opened("/proc/meminfo"),
    "a pair of sockets": a_pair_of_sockets,
    "an event loop": an_event_loop,
    "a thread": a_thread,
    "a child": a_child,
    "its limits": its_own_limits,
    "memory": a_file_in_memory,
    "its own patience": lambda t: os.nice(0),
}
OF_THE_FIRST_PROCESS: dict[str, Attempt] = {
    "its own state": lambda t: opened("/proc/self/stat"),
    "its own descriptors": lambda t: os.listdir("/proc/self/fd"),
    "its own children": lambda t: opened(f"/proc/self/task/{os.getpid()}/children"),
}


def main() -> None:
    """Confine this process, then do everything."""
    request = json.loads(sys.argv[1])
    target = target_of(request)
    confined(request)
    promised = {**PROMISED, **OF_THE_FIRST_PROCESS}
    print(json.dumps({name: outcome(attempt, target) for name, attempt in promised.items()}))


if __name__ == "__main__":
    main()
