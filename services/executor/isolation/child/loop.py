"""The loop of every process below the executor: read a request, carry it out, answer.

The first process, the fork server, loads no tool, so it stays small and quick to fork.  The processes that
it forks run the same loop, and one that has loaded a tool can be requested to fork as well.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import os
import signal
import socket
import sys
from typing import Any, Callable, NoReturn

from ..common import kernel, process_tree, protocol
from . import importer, os_state, supervisor
from .channel import Channel
from .tool import LoadedTool

MAIN_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
STDOUT, STDERR = 1, 2
DESCRIPTORS = 4
"""What each fork is given: its socket, stdout, stderr, and the file for its stacks."""


class Loop:
    """Serves the requests of the executor; its stacks, and those of its forks, go to `stacks`.

    `interpreter` is that of the environment that the tool needs, or empty.
    """

    def __init__(self, sock: socket.socket, stacks: int, interpreter: str) -> None:
        self.interpreter = interpreter
        self.channel = Channel(sock)
        self.stacks = stacks
        self.targets = (STDOUT, STDERR, stacks)
        self.supervisor: supervisor.Supervisor | None = None
        self.tool: LoadedTool | None = None
        self.methods: dict[str, Callable[[Any, dict[str, Any]], None]] = {
            "call": self._call,
            "describe": self._describe,
            "end": self._end,
            "fork": self._fork,
            "load": self._load,
            "ping": self.channel.respond,
            "sweep": self._sweep,
        }

    def run(self) -> NoReturn:
        """Serve until the executor is gone; also in each process that is forked meanwhile."""
        try:
            while True:
                message = self.channel.read() if self.supervisor is None else self._next(self.supervisor)
                method = self.methods.get(message.get("method", ""))
                if method is None:
                    reason = f"no method {message.get('method')!r}"
                    self.channel.refuse(message.get("id"), protocol.METHOD_NOT_FOUND, reason)
                else:
                    method(message.get("id"), message.get("params") or {})
        except (EOFError, ConnectionError):
            self._leave()

    def _next(self, children: supervisor.Supervisor) -> dict[str, Any]:
        """Wait for the next message, and report meanwhile which children have ended."""
        message = self.channel.take()
        while message is None:
            has_bytes, ended = children.wait()
            if ended:
                self.channel.notify("exited", {"children": ended})
            if has_bytes:
                self.channel.fill()
            message = self.channel.take()
        return message

    def _leave(self) -> NoReturn:
        """The executor is gone, or has hung up: leave nothing behind."""
        if self.supervisor is not None:
            process_tree.kill_all()
        os._exit(0)

    # -- requests to a parent --------------------------------------------------------

    def _fork(self, request_id: Any, params: dict[str, Any]) -> None:
        """Fork once for each of `children`: a token, and the directories of the new process."""
        children = params["children"]
        if self.supervisor is None:
            self.supervisor = self._become_parent()
        given = [self.channel.take_descriptors(DESCRIPTORS) for _ in children]
        passed = {descriptor for descriptors in given for descriptor in descriptors}
        others = os_state.ranges((passed | {self.supervisor.ends}) - set(self.targets))
        complete = sum(len(descriptors) == DESCRIPTORS for descriptors in given)
        pids, problem = self.supervisor.fork(complete)
        if pids and not pids[-1]:
            self._live(given[len(pids) - 1], others, children[len(pids) - 1][1], params["fresh"])
        for low, high in os_state.ranges(passed):
            os.closerange(low, high)
        forked = [(token, pid) for (token, _), pid in zip(children, pids)]  # noqa: B905 - strict= needs 3.10
        self.supervisor.adopt(forked)
        if complete < len(children):
            problem = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.channel.notify("forked", {"children": forked})
        if problem is not None:
            missing = [_not_forked(token, problem) for token, _ in children[len(pids) :]]
            self.channel.notify("exited", {"children": missing})

    def _become_parent(self) -> supervisor.Supervisor:
        """What exists now is shared with every fork, so the garbage collector must not write to it."""
        children = supervisor.Supervisor(self.channel.descriptor, self.stacks)
        if self.tool is not None:
            self.tool.sigchld_in_forks = children.sigchld_before
            self.tool.prepare_to_fork()
        gc.collect()
        gc.freeze()
        return children

    def _live(
        self,
        given: list[int],
        others: list[tuple[int, int]],
        directories: dict[str, str],
        fresh: bool,
    ) -> NoReturn:
        """In a new fork: go on with what it was given.

        What was its parent's is kept, not freed, and therefore this doesn't return: each object that a fork
        touches, if only to free it, is a page that has to be copied.
        """
        try:
            self._begin_life(given, others, fresh)
            if self.tool is None:
                self.supervisor = None
                self.run()
            self.tool.move_to(directories)
            while True:  # a fork that serves a tool receives nothing but calls
                message = self.channel.read()
                self._call(message["id"], message["params"])
        except (EOFError, ConnectionError):
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    def _begin_life(self, given: list[int], others: list[tuple[int, int]], fresh: bool) -> None:
        assert self.supervisor is not None
        os.setsid()
        os_state.take_over(self.supervisor.pid, self.channel, self.targets, given, others)
        if self.tool is None:  # otherwise the tool has done so right after the fork
            os_state.restore_sigchld(self.supervisor.sigchld_before)
        if fresh:
            _replace_interpreter(self.interpreter, self.channel.descriptor, self.stacks)

    def _end(self, request_id: Any, params: dict[str, Any]) -> None:
        if self.supervisor is not None:
            self.supervisor.end(params["child"], params["grace_seconds"], params["stacks"])

    def _sweep(self, request_id: Any, params: dict[str, Any]) -> None:
        if self.supervisor is not None:
            self.supervisor.sweep()

    # -- requests to a tool's process ------------------------------------------------

    def _load(self, request_id: Any, params: dict[str, Any]) -> None:
        self.tool = LoadedTool(params, self.channel, self.interpreter)
        self.channel.respond(request_id, self.tool.load())

    def _describe(self, request_id: Any, params: dict[str, Any]) -> None:
        from . import describe

        if self.tool is None:
            self.channel.refuse(request_id, protocol.NO_LONGER_FIT, "no tool is loaded")
            return
        self.channel.respond(request_id, describe.describe(self.tool))

    def _call(self, request_id: Any, params: dict[str, Any]) -> None:
        if self.tool is None or self.tool.retired:
            reason = "no tool is loaded, or it must not run again"
            self.channel.refuse(request_id, protocol.NO_LONGER_FIT, reason)
            return
        self.tool.call(request_id, params)


def _prepare_to_be_shared() -> None:
    """Before the first fork: load what most processes need, which then is shared with all of them.

    The garbage collector writes to everything that it looks at, so it must not look at this again.
    """
    from . import describe  # noqa: F401

    gc.collect()
    gc.freeze()


def _yield_the_processor() -> None:
    """Never interrupt the process that wakes this one; this holds for all forks as well.

    Otherwise the executor loses its processor whenever it sends a call, and gets it back when the call is
    over, which costs a third of the calls per second.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:  # a container may not allow it
        return


def _not_forked(token: int, error: OSError) -> dict[str, Any]:
    """The report of the end of a process that never was."""
    problem = f"fork: {error.strerror}"
    return {"child": token, "status": None, "rss": None, "cpu": None, "problem": problem}


def _replace_interpreter(interpreter: str, sock: int, stacks: int) -> NoReturn:
    """Replace this process by a new interpreter, which is started as this one was."""
    supervisor.keep_on_exec(sock)
    supervisor.keep_on_exec(stacks)
    options = importer.interpreter_options()
    arguments = [sys.executable, *options, MAIN_FILE, interpreter, str(sock), str(stacks)]
    os.execv(sys.executable, arguments)


def main(interpreter: str, descriptors: list[int]) -> None:
    """Serve on the socket `descriptors[0]`; the second, if any, receives the stacks."""
    kernel.set_dumpable(False)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if len(descriptors) == 1:
        _prepare_to_be_shared()
        supervisor.become_subreaper(descriptors[0])
        descriptors.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    sock, stacks = descriptors
    faulthandler.register(supervisor.STACKS_SIGNAL, file=stacks, all_threads=True, chain=False)
    _yield_the_processor()
    loop = Loop(socket.socket(fileno=sock), stacks, interpreter)
    try:
        loop.channel.notify("hello", {"version": protocol.VERSION, "python": sys.version.split()[0]})
    except ConnectionError:  # the executor is gone already
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    loop.run()
