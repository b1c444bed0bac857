"""Who hears what a process says while a tool runs, and who answers what it asks."""

from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog

from services.executor.isolation import speech
from services.executor.isolation.calls import Effects, Event, LogLine, NothingKept, Report
from services.executor.isolation.connection import Connection
from services.executor.isolation.steps import Steps
from services.executor.isolation.workdir import Place, remove

log = structlog.get_logger(__name__)

MAX_KEPT = 1_000


class Audience:
    """The run that a process serves, as far as the process has anything to tell it."""

    def __init__(self, tool: str, place: Place) -> None:
        self.has_heard = False
        self._tool = tool
        self._artifacts = place.artifacts
        self._report: Report | None = None
        self._effects: Effects | None = None
        self._steps = Steps()
        self._has_files = False
        self._kept: deque[Event] | None = None

    def attend(self, report: Report | None, effects: Effects | None) -> bool:
        """From now on, what the process says goes to this run; whether what was kept goes there as well."""
        self._report, self._effects = report, effects
        self.has_heard = False
        kept, self._kept = self._kept, None
        for event in kept or ():
            self.tell(event)
        return kept is not None

    def keep(self) -> None:
        """Until somebody attends, keep what the process says: it imports its tool ahead of a run."""
        self._kept = deque(maxlen=MAX_KEPT)

    def hear(self, method: str, params: dict[str, Any], request_id: Any, speaker: Connection) -> None:
        """Take in one message of the toolkit; TypeError, ValueError or the like if it makes no sense."""
        self.has_heard = True
        match method:
            case "progress" | "metrics" | "partial":
                for event in speech.events(method, params):
                    self.tell(event)
            case "recall" | "record" | "keep" | "fetch":
                if type(request_id) is not int:
                    raise TypeError("a question needs a number to be answered by")
                self._steps.answer(self._asked(method, params), request_id, speaker)
            case _:
                raise ValueError("no such method")

    def hear_line(self, at: float, stream: str, text: str) -> None:
        """Take in a line that it printed."""
        self.tell(LogLine(at, stream, text))

    def tell(self, event: Event) -> None:
        """Pass an event on, whatever comes of it."""
        if self._report is None:
            if self._kept is not None:
                self._kept.append(event)
            return
        try:
            self._report(event)
        except Exception:
            log.exception("report.failed", tool=self._tool)

    def forget_files(self) -> None:
        """The run is over: remove what is left of its artifacts."""
        if self._has_files:
            self._has_files = False
            remove(self._artifacts)

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        self._steps.close()

    def _asked(self, method: str, params: dict[str, Any]) -> Coroutine[Any, Any, Any]:
        """What answers a question of the toolkit."""
        effects = self._effects or NothingKept()
        match method:
            case "recall":
                return effects.recall(str(params["key"]))
            case "record":
                return effects.record(str(params["key"]), params.get("value"))
            case "keep":
                self._has_files = True
                return effects.keep(speech.capture(params, self._artifacts))
            case _:
                self._has_files = True
                return self._fetched(effects, str(params["reference"]), int(params["number"]))

    async def _fetched(self, effects: Effects, reference: str, number: int) -> str:
        path = Path(self._artifacts, str(number))
        await effects.fetch(reference, path)
        return str(path)
