"""Forks that stand by: made ahead of the calls that they will serve, several at a time."""

import contextlib
from collections.abc import Callable

from services.executor.isolation.connection import Disconnected
from services.executor.isolation.process import Process

MAX_STANDBYS = 4
"""How many forks of a template stand by at most, as many as there are calls for it otherwise.

The pages that a template touches between two forks are copied for each, so those that
are forked together cost it half as much.  With more of them that becomes no better.
"""


class Standbys:
    """The next forks of each template, the oldest first; `prepare` makes the object for one of them."""

    def __init__(self, prepare: Callable[[Process], Process]) -> None:
        self._prepare = prepare
        self._by_template: dict[Process, list[Process]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._by_template.values()))

    def of(self, template: Process) -> list[Process]:
        """Those of one template."""
        return self._by_template.get(template, [])

    def everywhere(self) -> set[Process]:
        """Those of all templates."""
        return {standby for standbys in self._by_template.values() for standby in standbys}

    def take(self, template: Process) -> Process:
        """One that stands by, or one that is made now; OSError if that is not possible."""
        while standbys := self.of(template):
            standby = standbys.pop(0)
            if standby.connection.is_open:
                return standby
        self._fork(template, self._wanted(template))
        return self.of(template).pop(0)

    def replenish(self, template: Process) -> None:
        """Fork the next ones, if none is left, while nobody waits for them yet."""
        if not self.of(template):
            with contextlib.suppress(OSError, Disconnected):
                self._fork(template, self._wanted(template))

    def _wanted(self, template: Process) -> int:
        """As many as there are calls under way, each of which another one may follow."""
        return min(max(1, template.offspring), MAX_STANDBYS)

    def _fork(self, template: Process, number: int) -> None:
        """Have so many forks stand by; one at least, or OSError."""
        forks: list[Process] = []
        try:
            for _ in range(number):
                forks.append(self._prepare(template))
            template.fork_all(forks)
        except OSError:
            for fork in forks:
                fork.end(grace_seconds=0)
            if number == 1:
                raise
            self._fork(template, 1)  # there may be descriptors for a single one
        else:
            self._by_template[template] = forks

    def give_up(self, template: Process) -> None:
        """End those of one template."""
        for standby in self._by_template.pop(template, ()):
            standby.end(grace_seconds=0)

    def forget(self, process: Process) -> None:
        """It has ended: it stands by no more, nor does any fork of it."""
        self._by_template.pop(process, None)
        if isinstance(process.owner, Process) and process in self.of(process.owner):
            self.of(process.owner).remove(process)
