"""Records the submitted runs, the starts that tools noted, and the faults."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_SECONDS = 30.0


class Notes:
    """The file with a line for each start of the tool: `RUN_ID ATTEMPT TOKEN`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        path.touch()

    def fresh(self) -> set[str]:
        """The tokens that were noted since the last call."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        return {line.split(b" ")[2].decode() for line in text.splitlines()}

    def starts(self) -> Mapping[tuple[str, int], int]:
        """The number of starts of the tool for each attempt of each run."""
        lines = [line.split(" ") for line in self.path.read_text().splitlines()]
        return Counter((run_id, int(attempt)) for run_id, attempt, _ in lines)


@dataclass(slots=True)
class Ledger:
    """The books of one run of the program.

    `published` holds, for each token, when it was said and how many heard it.
    `unsure` are those whose connection broke, so that nobody knows.
    """

    notes: Notes
    published: dict[str, tuple[float, int]] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)
    enqueued: set[str] = field(default_factory=set)
    behaviours: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    killed_at: dict[int, float] = field(default_factory=dict)
    may_submit: float = 0.0
    _heard_by_few: set[str] = field(default_factory=set)

    @property
    def asked_for(self) -> int:
        """The number of submitted runs, without cron's."""
        return len(self.published) + len(self.unsure) + len(self.enqueued)

    @property
    def certain(self) -> set[str]:
        """The tokens that Redis has acknowledged; they must have become runs."""
        return self.published.keys() | self.enqueued

    def note_published(self, token: str, at: float, heard: int, listeners: int) -> None:
        """Record that `heard` of `listeners` executors received a message."""
        self.published[token] = (at, heard)
        if heard < listeners:
            self._heard_by_few.add(token)

    def on_few_shoulders(self) -> set[str]:
        """What not every executor heard and no tool has started for yet.

        A PUBLISH exists nowhere but with those who heard it; when the only one
        of them is killed before it was admitted, nobody could know of it.  What
        has not started after a long while is lost already.
        """
        since = time.time() - PATIENCE_SECONDS
        waiting = self._heard_by_few - self.notes.fresh()
        self._heard_by_few = {token for token in waiting if self.published[token][0] > since}
        return self._heard_by_few
