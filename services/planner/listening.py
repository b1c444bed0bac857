"""How an execution says how it goes on."""

from typing import Final, Protocol

from services.executor.isolation.calls import Event
from services.planner.tasks import Task, TaskResult


class Listener(Protocol):
    """Hears how the execution of a plan goes on, in its event loop; must not block."""

    def moved(self, task: Task) -> None:
        """The task has entered another state."""

    def ended(self, result: TaskResult) -> None:
        """A case has come to its result; once for every case."""

    def said(self, task: Task, event: Event) -> None:
        """The tool says something while it runs."""


class _Silent:
    def moved(self, task: Task) -> None: ...

    def ended(self, result: TaskResult) -> None: ...

    def said(self, task: Task, event: Event) -> None: ...


SILENT: Final[Listener] = _Silent()
"""Does nothing with it."""
