"""What a script has read at the keys of experiments and schedules: documents, or why they can't be read."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from shared import keys
from shared.documents import json_object
from shared.errors import ContractError, ExperimentNotFoundError
from shared.messages import RECURRING, Experiment, State, place_of_state, read_experiment
from shared.schedules import Schedule, read_schedule
from shared.yaml_reader import LARGE_CHARACTERS, prepare

REMEMBERED = 1_000
REMEMBERED_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class Stored:
    """What is at an experiment's key: the experiment, or why it can't be read.

    `would_recur` identifies the content of an experiment that speedrun would run if it could be read.
    """

    experiment: Experiment | None
    error: ContractError | None
    would_recur: str = ""

    def readable(self) -> Experiment:
        """The experiment.  Raises the `ContractError` that reading it gave."""
        if self.experiment is None:
            raise self.error or ContractError("nothing was read")
        return self.experiment


NOTHING_STORED = Stored(None, None)
"""Stands for an experiment that was not read."""


async def prepare_stored(kind: str, content: Sequence[str] | str) -> None:
    """Have a large text read in a process, so that `read_stored` takes no time right after this."""
    if takes_long(kind, content):
        await prepare(_fields(content).get("spec", ""))


def takes_long(kind: str, content: Sequence[str] | str) -> bool:
    """Whether `prepare_stored` may read a text in a process."""
    return kind == "hash" and _characters(content) > LARGE_CHARACTERS


def read_stored(experiment_id: str, kind: str, content: Sequence[str] | str) -> Stored:
    """What a script has read at the key of an experiment: fields and values in turn, or a text."""
    if kind == "none":
        return Stored(None, not_found(experiment_id))
    parts = content if isinstance(content, str) else tuple(content)
    read = _read if _characters(parts) > REMEMBERED_CHARACTERS else _remembered
    return stored_as(read(experiment_id, kind, parts))


def would_recur(kind: str, content: Sequence[str] | str) -> str:
    """See `Stored.would_recur`.  A key below an experiment's, which others use, looks like no experiment."""
    if kind == "hash":
        fields = _fields(content)
        is_experiment = not fields.keys().isdisjoint(("state", "tool", "execution", "spec"))
        state = fields.get("state") or State.READY
    elif kind == "string":
        is_experiment = any(f'"{name}"' in content for name in ("state", "tool", "execution", "experiment"))
        place = place_of_state(str(content))
        state = place[0] if place else State.READY if _is_broken(str(content)) else ""
    else:
        return ""
    is_due = is_experiment and state in RECURRING
    return hashlib.sha256(repr(content).encode()).hexdigest() if is_due else ""


def _is_broken(text: str) -> bool:
    """Whether a text is no JSON object, so that nobody can tell what state it says."""
    try:
        json_object("", text)
    except ContractError:
        return True
    return False


def stored_as(read: Experiment | str) -> Stored:
    """What is stored: an experiment, or the reason why it can't be read.

    An error is made anew each time, for a traceback grows where one is raised.
    """
    return Stored(None, ContractError(read)) if isinstance(read, str) else Stored(read, None)


def not_found(experiment_id: str) -> ExperimentNotFoundError:
    """The error for an experiment that nobody has published."""
    return ExperimentNotFoundError(
        f"{keys.experiment(experiment_id)} does not exist; publish the experiment first"
    )


def schedule_at(
    experiment_id: str, kind: str, content: Mapping[str, str] | str
) -> Schedule | ContractError | None:
    """What is at the key of a schedule: the schedule, what is wrong with it, or nothing."""
    if kind == "none":
        return None
    try:
        return read_schedule(experiment_id, kind, content)
    except ContractError as exc:
        return exc


def read_stored_schedule(
    experiment_id: str, kind: str, content: Sequence[str] | str
) -> Schedule | ContractError | None:
    """The same as a script has read it: fields and values in turn, or a text."""
    return schedule_at(experiment_id, kind, content_of(kind, content))


def _read(experiment_id: str, kind: str, parts: tuple[str, ...] | str) -> Experiment | str:
    try:
        content = parts if isinstance(parts, str) else _fields(parts)
        return read_experiment(experiment_id, kind, content)
    except ContractError as exc:
        return str(exc)


# A document is read once while it stays the same, also one that can't be read.
_remembered = lru_cache(maxsize=REMEMBERED)(_read)


def _characters(parts: Sequence[str] | str) -> int:
    return len(parts) if isinstance(parts, str) else sum(map(len, parts))


def content_of(kind: str, content: Sequence[str] | str) -> Any:
    """The fields of a hash by name, or the text."""
    return _fields(content) if kind == "hash" else content


def _fields(flat: Sequence[str]) -> dict[str, str]:
    return dict(zip(flat[::2], flat[1::2], strict=True))
