"""The loop of every process below the executor: read a request, do it, answer.

The first process (the fork server) loads no tool, so it stays small and quick to
fork.  What it forks runs this same loop, and one that has loaded a tool can
be asked to fork as well.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import json
import os
import signal
import socket
import sys
from typing import Any, Callable, NoReturn

from ..common import process_tree, protocol
from . import after_fork, importer, subreaper, supervisor, tool
from .channel import Channel

METHOD_NOT_FOUND = -32601
INVALID_REQUEST = -32600
MAIN_FILE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
INTERPRETER_OPTIONS = ["-I", "-S", "-X", "utf8"]
STDOUT, STDERR = 1, 2
DESCRIPTORS = 4
"""What a process is given by whoever has it forked: its socket, stdout, stderr, and where its stacks go."""


class Loop:
    """One process' conversation with the executor; its stacks, and those of its forks, go to `stacks`."""

    def __init__(self, sock: socket.socket, stacks: int) -> None:
        self.wire = Channel(sock)
        self.stacks = stacks
        self.seats = (STDOUT, STDERR, stacks)
        self.owner: supervisor.Owner | None = None
        self.tool: Any = None
        self.methods: dict[str, Callable[[Any, dict[str, Any]], None]] = {
            "call": self._call,
            "describe": self._describe,
            "end": self._end,
            "fork": self._fork,
            "load": self._load,
            "ping": self.wire.respond,
        }

    def run(self) -> NoReturn:
        """Serve until the other side is gone, also in every process that is forked meanwhile."""
        try:
            while True:
                message = self.wire.read() if self.owner is None else self._next(self.owner)
                method = self.methods.get(message.get("method", ""))
                if method is None:
                    self.wire.refuse(
                        message.get("id"), METHOD_NOT_FOUND, f"no method {message.get('method')!r}"
                    )
                else:
                    method(message.get("id"), message.get("params") or {})
        except (EOFError, ConnectionError):
            self._leave()

    def _next(self, children: supervisor.Owner) -> dict[str, Any]:
        """Wait for the next message, and tell meanwhile whose end has come."""
        message = self.wire.take()
        while message is None:
            has_bytes, ended = children.wait()
            if ended:
                self.wire.notify("exited", {"children": ended})
            if has_bytes:
                self.wire.fill()
            message = self.wire.take()
        return message

    def _leave(self) -> NoReturn:
        """The executor is gone, or wants this process gone: leave nothing behind."""
        if self.owner is not None:
            process_tree.kill_all()
        os._exit(0)

    # -- requests to the owner of processes ------------------------------------------

    def _fork(self, request_id: Any, params: dict[str, Any]) -> None:
        """Fork once for each of `children`, which are a token and the places of the new process."""
        children = params["children"]
        if self.owner is None:
            self.owner = self._become_owner()
        given = [self.wire.take_descriptors(DESCRIPTORS) for _ in children]
        passed = {descriptor for descriptors in given for descriptor in descriptors}
        others = after_fork.spans((passed | {self.owner.ends}) - set(self.seats))
        complete = sum(len(descriptors) == DESCRIPTORS for descriptors in given)
        pids, problem = self.owner.fork(complete)
        if pids and not pids[-1]:
            self._live(given[len(pids) - 1], others, children[len(pids) - 1][1], params["fresh"])
        for low, high in after_fork.spans(passed):
            os.closerange(low, high)
        born = [(token, pid) for (token, _), pid in zip(children, pids)]  # noqa: B905 - strict= needs Python 3.10
        self.owner.adopt(born)
        if complete < len(children):
            problem = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        self.wire.notify("forked", {"children": born})
        if problem is not None:
            unborn = [_not_forked(token, problem) for token, _ in children[len(pids) :]]
            self.wire.notify("exited", {"children": unborn})

    def _become_owner(self) -> supervisor.Owner:
        """What is there now is shared with every fork: the collector must not write to it."""
        children = supervisor.Owner(self.wire.descriptor, self.stacks)
        if self.tool is not None:
            self.tool.forks_with = children.signals_before
        gc.collect()
        gc.freeze()
        return children

    def _live(
        self, given: list[int], others: list[tuple[int, int]], places: dict[str, str], fresh: bool
    ) -> NoReturn:
        """This is a new fork: go on with what it was given, in place of what was its parent's.

        What was its parent's is kept, not freed, and that is why this doesn't return either: each
        object that a fork touches, if only to free it, is a page that has to be copied for it.
        """
        try:
            self._begin_life(given, others, fresh)
            if self.tool is None:
                self.owner = None
                self.run()
            self.tool.move_to(places)
            while True:  # a fork that serves a tool is asked for nothing but calls
                message = self.wire.read()
                self._call(message["id"], message["params"])
        except (EOFError, ConnectionError):
            os._exit(0)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)

    def _begin_life(self, given: list[int], others: list[tuple[int, int]], fresh: bool) -> None:
        assert self.owner is not None
        os.setsid()
        after_fork.begin(self.owner.pid, self.wire, self.seats, given, others)
        if self.tool is None:  # which has seen to it after the fork
            after_fork.hear_of_ends(self.owner.signals_before)
        if fresh:
            _start_over(self.wire.descriptor, self.stacks)

    def _end(self, request_id: Any, params: dict[str, Any]) -> None:
        if self.owner is not None:
            self.owner.end(params["child"], params["grace_seconds"], params["stacks"])

    # -- requests to a tool's process ------------------------------------------------

    def _load(self, request_id: Any, params: dict[str, Any]) -> None:
        self.tool = tool.Tool(params, self.wire)
        problem = self.tool.load()
        payload = json.dumps({"jsonrpc": "2.0", "id": request_id, "result": problem})
        self.wire.send(payload.encode("utf-8", "replace"))

    def _describe(self, request_id: Any, params: dict[str, Any]) -> None:
        from . import describe

        if self.tool is None:
            self.wire.refuse(request_id, INVALID_REQUEST, "no tool is loaded")
            return
        self.wire.respond(request_id, describe.describe(self.tool))

    def _call(self, request_id: Any, params: dict[str, Any]) -> None:
        if self.tool is None or self.tool.retired:
            self.wire.refuse(request_id, INVALID_REQUEST, "no tool is loaded, or it may not run again")
            return
        self.tool.call(request_id, params)


def _prepare_to_be_shared() -> None:
    """Before the first fork: what is there now is shared with all of them.

    What describes a tool is there as well: most processes describe theirs, and would each import it.
    The collector writes to all that it looks at, so it must not look again.
    """
    from . import describe  # noqa: F401

    gc.collect()
    gc.freeze()


def _give_way() -> None:
    """Have this process, and all that it forks, never interrupt the one that wakes it.

    Otherwise the executor loses its processor whenever it sends a call, and gets it back
    when the call is over: that is a third fewer calls a second.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:  # a container may not allow it
        return


def _not_forked(token: int, error: OSError) -> dict[str, Any]:
    """The end of a process that never was."""
    problem = f"fork: {error.strerror}"
    return {"child": token, "status": None, "rss": None, "cpu": None, "problem": problem}


def _start_over(sock: int, stacks: int) -> NoReturn:
    """Replace this process by a new interpreter."""
    supervisor.keep_on_exec(sock)
    supervisor.keep_on_exec(stacks)
    arguments = [sys.executable, *INTERPRETER_OPTIONS, MAIN_FILE, str(sock), str(stacks)]
    os.execv(sys.executable, arguments)


def main(descriptors: list[int]) -> None:
    """Serve on the socket `descriptors[0]`; the second, if any, receives the stacks."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if len(descriptors) == 1:
        _prepare_to_be_shared()
        subreaper.stand_by(descriptors[0])
        descriptors.append(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))
    sock, stacks = descriptors
    faulthandler.register(supervisor.STACKS_SIGNAL, file=stacks, all_threads=True, chain=False)
    _give_way()
    importer.find_installed()
    loop = Loop(socket.socket(fileno=sock), stacks)
    try:
        loop.wire.notify("hello", {"version": protocol.VERSION, "python": sys.version.split()[0]})
    except ConnectionError:  # the executor, which may have been refused its settings, is gone already
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    loop.run()
