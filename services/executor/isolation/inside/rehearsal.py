"""Has a process that others are forked from go through the motions of a fork, so that no fork is the first.

What Python does for the first time it does slowly, and notes what it found, in the code
and beside it, to be quicker later.  A fork does almost everything for the first time, and
each of those notes is written to a page that it shares with its parent: so it is copied.
"""

from __future__ import annotations

import _socket
import os
import socket
from typing import Any

from . import birth, wire

# More than CPython 3.9 to 3.14 wait for before they adapt a function to what it is used for.
TIMES = 32
_RUN = {"run_id": "", "experiment_id": "", "attempt": 1}
_CALL = {**_RUN, "timeout_seconds": 1.5, "single": True, "params": {}}

_BLOCKED = (True, None)
"""SIGCHLD stays as it is here: what the import has made of it is not to be called now."""

# As it was before the tool was imported, which may put another in its place.
_Socket = socket.socket


def rehearse(tool: Any) -> None:
    """Have the tool serve calls that do nothing, from a socket where nobody listens; it is as before then."""
    ours, theirs = (_Socket(fileno=end.detach()) for end in _socket.socketpair())
    stage = wire.Wire(theirs)
    before = tool.wire, tool.entry, tool.is_in_place, tool.retired, tool.forks_with
    tool.wire = tool.reports.wire = stage
    tool.entry = _nothing
    request = wire.encode({"jsonrpc": "2.0", "id": 1, "method": "call", "params": _CALL})
    try:
        for _ in range(TIMES):
            _be_born(stage, tool)
            ours.sendall(len(request).to_bytes(4, "big") + request)
            message = stage.read()
            tool.serve(message["id"], message["params"])
            ours.recv(wire.CHUNK_BYTES)
    except Exception:
        pass  # what goes wrong here goes wrong in the run as well, and is reported there
    finally:
        tool.wire, tool.entry, tool.is_in_place, tool.retired, tool.forks_with = before
        tool.reports.wire = tool.wire
        ours.close()
        stage.close()


def _be_born(stage: wire.Wire, tool: Any) -> None:
    """What a fork does first, with descriptors that nobody uses."""
    descriptors: list[int] = []
    try:
        while len(descriptors) < 7:
            descriptors.append(os.dup(stage.descriptor))
        given, seats = descriptors[:4], descriptors[4:]
        tool.forks_with = _BLOCKED
        tool.be_forked()
        birth.begin(os.getppid(), stage, seats, given, birth.spans(given))
        descriptors = seats
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    tool.move_to(tool.places)


def _nothing() -> None:
    """What is called in place of the tool."""
