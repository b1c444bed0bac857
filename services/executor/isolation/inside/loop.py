"""The loop of every process below the executor: read a request, do it, answer.

The first process (the fork server) loads no tool, so it stays small and quick to
fork.  What it forks runs this same loop, and one that has loaded a tool can
be asked to fork as well.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import select
import signal
import socket
import sys
from typing import Any, Callable

from . import guard, owner, source, tool, tree, wire

METHOD_NOT_FOUND = -32601
INVALID_REQUEST = -32600
CHILD_FILE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "child.py")
INTERPRETER_OPTIONS = ["-I", "-S", "-X", "utf8"]


class Loop:
    """One process' conversation with the executor."""

    def __init__(self, sock: socket.socket, stacks: int | None) -> None:
        self.wire = wire.Wire(sock)
        self.stacks = stacks
        self.owner: owner.Owner | None = None
        self.tool: Any = None
        self.reborn: Loop | None = None
        self.methods: dict[str, Callable[[Any, dict[str, Any]], None]] = {
            "call": self._call,
            "describe": self._describe,
            "end": self._end,
            "fork": self._fork,
            "load": self._load,
            "ping": self.wire.respond,
        }
        if stacks is not None:
            faulthandler.register(owner.STACKS_SIGNAL, file=stacks, all_threads=True, chain=False)

    def run(self) -> Loop | None:
        """Serve until the other side is gone; in a fresh fork, return the loop of the child."""
        try:
            while self.reborn is None:
                message = self._next()
                method = self.methods.get(message.get("method", ""))
                if method is None:
                    self.wire.refuse(
                        message.get("id"), METHOD_NOT_FOUND, f"no method {message.get('method')!r}"
                    )
                else:
                    method(message.get("id"), message.get("params") or {})
        except (EOFError, ConnectionError):
            self._leave()
        return self.reborn

    def _next(self) -> dict[str, Any]:
        if self.owner is None:
            return self.wire.read()
        message = self.wire.take()
        while message is None:
            self._wait(self.owner)
            message = self.wire.take()
        return message

    def _wait(self, children: owner.Owner) -> None:
        """Wait for bytes or for a child's end, whichever is first."""
        poll = select.poll()
        poll.register(self.wire, select.POLLIN)
        poll.register(children.wake, select.POLLIN)
        due_seconds = children.due_seconds()
        ready = dict(poll.poll(None if due_seconds is None else due_seconds * 1000))
        if children.wake in ready:
            for ended in children.reap():
                self.wire.notify("exited", ended)
        if due_seconds is not None:
            children.advance()
        if self.wire.fileno() in ready:
            self.wire.fill()

    def _leave(self) -> None:
        """The executor is gone, or wants this process gone: leave nothing behind."""
        if self.owner is not None:
            tree.kill_all()
        os._exit(0)

    # -- requests to the owner of processes ------------------------------------------

    def _fork(self, request_id: Any, params: dict[str, Any]) -> None:
        sock, out, err, stacks = self.wire.take_descriptors(4)
        if self.owner is None:
            self.owner = owner.Owner()
            # What is there now is shared with every fork; the collector must not write to it.
            gc.collect()
            gc.freeze()
        if self.tool is not None:
            self.tool.forks_itself = True
        try:
            pid = self.owner.fork(params["child"], stacks)
        except OSError as error:
            self._not_forked(params["child"], error, (sock, out, err, stacks))
            return
        if pid:
            for descriptor in (sock, out, err):
                os.close(descriptor)
            self.wire.notify("forked", {"child": params["child"], "pid": pid})
            return
        self.wire.close()
        if self.stacks is not None:
            os.close(self.stacks)
        _redirect(out, err)
        if params.get("fresh"):
            _start_over(sock, stacks)
        self.reborn = Loop(socket.socket(fileno=sock), stacks)
        if self.tool is not None:
            self.tool.move_to(self.reborn.wire, params["places"])
            self.reborn.tool = self.tool

    def _not_forked(self, token: int, error: OSError, descriptors: tuple[int, ...]) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        problem = f"fork: {error.strerror}"
        self.wire.notify(
            "exited", {"child": token, "status": None, "rss": None, "cpu": None, "problem": problem}
        )

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


def _redirect(out: int, err: int) -> None:
    """Make what is printed here, by whatever means, the log of this process."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.close(out)
    os.close(err)


def _start_over(sock: int, stacks: int) -> None:
    """Replace this process by a new interpreter."""
    owner.keep_on_exec(sock)
    owner.keep_on_exec(stacks)
    arguments = [sys.executable, *INTERPRETER_OPTIONS, CHILD_FILE, str(sock), str(stacks)]
    os.execv(sys.executable, arguments)


def main(descriptors: list[int]) -> None:
    """Serve on the socket `descriptors[0]`; the second, if any, receives the stacks."""
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if len(descriptors) == 1:
        _prepare_to_be_shared()
        guard.stand_by(descriptors[0])
    _give_way()
    source.find_installed()
    sock = socket.socket(fileno=descriptors[0])
    first = Loop(sock, descriptors[1] if len(descriptors) > 1 else None)
    try:
        first.wire.notify("hello", {"version": wire.VERSION, "python": sys.version.split()[0]})
    except ConnectionError:  # the executor, which may have been refused its settings, is gone already
        os._exit(0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    loop: Loop | None = first
    while loop is not None:
        loop = loop.run()
