"""The parent of forked processes, as the executor sees it: a fork server, or a process with a tool."""

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.executor.isolation.common import process_tree
from services.executor.isolation.connection import Connection

MARK = "FULLSEND_FORK_SERVER"
"""In the environment of everything below a fork server, so that it can be found without its parents."""

PING_SECONDS = 2.0
MAX_STATUS = 0xFFFF
MAX_FORKS = 8
"""How many processes are forked per request: their descriptors have to fit into one message."""

_tokens = itertools.count(1)


class ForkObserver(Protocol):
    """Learns what becomes of a process that was forked on its behalf."""

    def on_forked(self, pid: int) -> None:
        """The process exists."""

    def on_exited(
        self, status: int | None, peak_rss_bytes: int | None, cpu_seconds: float | None, problem: str = ""
    ) -> None:
        """The process is gone.  None where nobody saw how it ended; `problem` says why it never started."""


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """A process that is to be forked.

    `descriptors` are passed on; the process speaks on the first of them.  A fork of a process that has a
    tool loaded uses the directories in `workdir` from its first call on.
    """

    child: ForkObserver
    descriptors: Sequence[int]
    workdir: Mapping[str, str]


class Parent:
    """Sends requests to a process that forks others, and passes on what it says about them.

    A request names a child by a token of the executor's, not by its process id.  So it can be sent
    before the child exists, and it never reaches another process that was given the same id.
    """

    connection: Connection
    mark: str = ""
    namespace_pid: int = 0
    """The process that created the process namespace of the children, if they have one of their own."""

    def __init__(self) -> None:
        self._children: dict[int, ForkObserver] = {}

    def fork(self, requests: Sequence[ForkRequest], *, fresh: bool) -> list[int]:
        """Request up to MAX_FORKS processes; return their tokens.

        One request forks several, because the memory pages that the parent writes to between two forks
        are copied once more for each.  `fresh` replaces each process by a new interpreter.
        """
        tokens = [next(_tokens) for _ in requests]
        for token, request in zip(tokens, requests, strict=True):
            self.expect(token, request.child)
        children = [(token, request.workdir) for token, request in zip(tokens, requests, strict=True)]
        descriptors = [descriptor for request in requests for descriptor in request.descriptors]
        self.connection.notify("fork", {"children": children, "fresh": fresh}, descriptors)
        if not self.connection.is_open:
            self.lose_children()
        return tokens

    def expect(self, token: int, child: ForkObserver) -> None:
        """Pass on what the parent says about this token."""
        self._children[token] = child

    @property
    def child_count(self) -> int:
        """The number of processes that it has forked, or is about to fork, and that have not ended."""
        return len(self._children)

    def end_child(self, token: int, grace_seconds: float, *, stacks: bool) -> None:
        """Request the end of a child's process tree: dump of its stacks, SIGTERM, the grace, SIGKILL."""
        self.connection.notify("end", {"child": token, "grace_seconds": grace_seconds, "stacks": stacks})

    def sweep(self) -> None:
        """Request the end of all processes below it that belong to no child of its own."""
        self.connection.notify("sweep", {})

    def handle_forked(self, params: Mapping[str, Any]) -> None:
        """The parent reports that children exist."""
        for token, number in params["children"]:
            if token in self._children:
                pid = int(number)
                if self.namespace_pid:
                    pid = process_tree.seen_from_outside(self.namespace_pid, pid)
                self._children[token].on_forked(pid)

    def handle_exited(self, params: Mapping[str, Any]) -> None:
        """The parent reports that children ended.  ValueError for a report that makes no sense."""
        for ended in params["children"]:
            match ended:
                case {
                    "child": int(token),
                    "status": int() | None as status,
                    "rss": int() | None as rss_bytes,
                    "cpu": int() | float() | None as cpu_seconds,
                } if status is None or 0 <= status <= MAX_STATUS:
                    child = self._children.pop(token, None)
                    if child is not None:
                        child.on_exited(status, rss_bytes, cpu_seconds, str(ended.get("problem", "")))
                case _:
                    raise ValueError("not a report of a child's end")

    def check(self) -> None:
        """A request is overdue: kill the parent unless it still answers."""
        answer = self.connection.request("ping", b"{}")
        asyncio.get_running_loop().call_later(PING_SECONDS, lambda: None if answer.done() else self.give_up())

    def give_up(self) -> None:
        """Kill the parent itself."""
        raise NotImplementedError

    def lose_children(self) -> None:
        """The parent is gone, and its children with it."""
        children, self._children = self._children, {}
        for child in children.values():
            child.on_exited(None, None, None)
