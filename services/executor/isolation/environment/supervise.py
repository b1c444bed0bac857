"""Runs a command and ends its whole process tree: `python -I -S .../supervise.py SPEC COMMAND [ARGUMENT...]`.

SPEC is empty, or what the command is confined to, as JSON: see `common/confine.py`.

When standard input is closed, or the process that holds its other end dies, the command and everything below
it is killed.  When the command ends by itself, whatever it left behind is killed, too.  The exit status is
the command's.  Run by path, never imported: standard library only.
"""

import importlib
import json
import os
import select
import signal
import sys
import types
from typing import Any

PACKAGE = "_fullsend"
NOT_STARTED = 127
STDIN = 0


def main(spec: str, command: list[str]) -> int:
    """Run the command until it ends or standard input is closed; return the exit status."""
    package = _package()
    tree = importlib.import_module(package + ".process_tree")
    tree.adopt_orphans()
    pid = _start(spec, command, package, tree)
    _await_end(pid)
    return _end_all(pid, tree)


def _package() -> str:
    package = types.ModuleType(PACKAGE)
    package.__path__ = [__file__.rpartition("/")[0] + "/../common"]
    sys.modules[PACKAGE] = package
    return PACKAGE


def _start(spec: str, command: list[str], package: str, tree: Any) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        tree.die_with_parent()
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and an exec keeps that
        os.dup2(os.open(os.devnull, os.O_RDONLY), STDIN)
        if spec:
            importlib.import_module(package + ".confine").apply(json.loads(spec))
        os.execv(command[0], command)  # noqa: S606 - it needs no shell
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        os.write(2, f"error: {command[0]} can't be started: {reason}\n".encode())
    finally:
        os._exit(NOT_STARTED)


def _await_end(pid: int) -> None:
    """Return when the command has ended or standard input is closed."""
    descriptor = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(STDIN, select.POLLIN)
    poll.poll()
    os.close(descriptor)


def _end_all(pid: int, tree: Any) -> int:
    """Kill everything that lives below this process and reap it; return the exit status of `pid`."""
    code = 0
    while True:
        for child in tree.children(os.getpid()):
            if not _has_ended(child):
                tree.kill(child)
        try:
            ended, status = os.wait()
        except ChildProcessError:
            return code
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            code = 128 - code if code < 0 else code


def _has_ended(pid: int) -> bool:
    """Whether a child of this process has ended and was not reaped yet."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
