"""Checks experiment files before they are published: every mistake at once, each with its place."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import ValidationError

from services.cli.output import Mistakes
from services.executor.scheduling.cron import Cron
from shared.documents import kind, mistakes, printable, shown, validated
from shared.errors import ContractError, ScheduleError
from shared.messages import (
    CONFINEMENT,
    Experiment,
    Policy,
    State,
    experiment_parts,
    read_experiment_file,
)
from shared.schedules import Schedule
from shared.yaml_reader import yaml_object, yaml_outline

PLAN_MEMBERS: Final = frozenset({"workflow_id", "sweep", "cases"})
OUTER_MEMBERS: Final = ("id", "state", "execution", "experiment")
RUN_MEMBERS: Final = ("tool", "params")
"""Members that are only read in `execution`."""

KNOWN: Final = (*RUN_MEMBERS, "schedule", "timezone", *Policy.model_fields, *CONFINEMENT)
OTHER_WORDS: Final = {
    "args": "params", "arguments": "params", "kwargs": "params", "inputs": "params", "parameters": "params",
    "cron": "schedule", "crontab": "schedule", "tz": "timezone",
    "timeout": "timeout_seconds", "retries": "max_attempts", "max_retries": "max_attempts",
    "concurrency": "max_concurrent", "memory": "memory_mb",
}  # fmt: skip
"""What other systems call members of `execution`."""

NEAR: Final = 0.8
JSON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "array": (list,), "object": (dict,), "null": (type(None),),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Publication:
    """A valid experiment file; `notes` say what is probably not meant."""

    path: Path
    text: str
    experiment: Experiment
    schedule: Schedule | None
    cron: Cron | None
    notes: Sequence[str] = ()


def read_files(paths: Iterable[Path], state: State | None = None) -> list[Publication]:
    """Read and check experiment files.

    Args:
        paths: the files.
        state: replaces the state in each file.

    Raises:
        Mistakes: every mistake in every file.
    """
    good: list[Publication] = []
    wrong: list[str] = []
    for path in paths:
        try:
            good.append(read_file(path, state))
        except Mistakes as exc:
            wrong += exc.lines
    paths_by_id: dict[str, Path] = {}
    for one in good:
        twin = paths_by_id.setdefault(one.experiment.id, one.path)
        if twin != one.path:
            wrong.append(f"{twin} and {one.path} both define experiment '{one.experiment.id}'")
    if wrong:
        raise Mistakes([*wrong, *(["nothing was published"] if good else [])])
    return good


def read_file(path: Path, state: State | None = None) -> Publication:
    """Read and check one experiment file.

    Raises:
        Mistakes: the file and its mistakes.
    """
    text = _read_text(path)
    outline = yaml_outline(text)
    wrong = [f"{path} {mistake}" for mistake in outline.mistakes]
    try:
        root = outline.value if isinstance(outline.value, dict) else yaml_object(str(path), text)
    except ContractError as exc:
        raise Mistakes([str(exc)]) from None
    if PLAN_MEMBERS & root.keys() and "experiment" not in root:
        raise Mistakes([f"{path} is a plan, not an experiment; execute it with `fullsend plan run {path}`"])
    document = _Document(path, root, outline.lines)
    wrong += document.mistakes()
    if wrong:
        raise Mistakes(list(dict.fromkeys(wrong)))
    experiment = read_experiment_file(str(path), text)
    if state is not None:
        experiment = msgspec.structs.replace(experiment, state=state)
    schedule, cron = document.schedule(experiment)
    return Publication(path, text, experiment, schedule, cron, tuple(document.notes()))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as exc:
        byte = f"byte {exc.start} is {exc.object[exc.start]:#04x}"
        raise Mistakes([f"{path} is not UTF-8 text: {byte}"]) from None
    except OSError as exc:
        raise Mistakes([f"{path} can't be read: {exc.strerror or exc}"]) from None


class _Document:
    """An experiment file.

    Args:
        path: of the file.
        root: its content.
        lines: the line of each member by its path.
    """

    def __init__(self, path: Path, root: dict[str, Any], lines: Mapping[tuple[str, ...], int]) -> None:
        self._path = path
        self._root = root
        self._lines = lines
        inner = root.get("experiment")
        self._is_wrapped = isinstance(inner, dict)
        self._body: dict[str, Any] = inner if isinstance(inner, dict) else root
        execution = self._body.get("execution")
        self._execution: dict[str, Any] = execution if isinstance(execution, dict) else self._body

    def place(self, name: str) -> str:
        """Where a member is, or where it would be, as messages begin with it."""
        above = ("experiment",) if self._is_wrapped else ()
        inner = above if name in OUTER_MEMBERS else (*above, "execution")
        for path in ((*inner, name), (*above, name), inner, above):
            if path in self._lines:
                return f"{self._path} line {self._lines[path]}:"
        return str(self._path)

    def mistakes(self) -> Iterator[str]:
        """Say what is wrong, in the order in which it is read."""
        outer = self._root.get("experiment")
        if "experiment" in self._root and not self._is_wrapped:
            yield f"{self.place('experiment')} member 'experiment' is {kind(outer)}; expected an object"
            return
        try:
            parts = experiment_parts(self._body.get("id"), self.place, self._root)
        except ContractError as exc:
            yield str(exc)
            return
        del parts["policy"]
        for read in parts.values():
            yield from _complaint(read)
        yield from self._schedule_mistakes()
        yield from self._policy()
        yield from self._unknown()

    def schedule(self, experiment: Experiment) -> tuple[Schedule | None, Cron | None]:
        """Return the schedule of the experiment, if it has one, of a document without mistakes."""
        if experiment.schedule is None:
            return None, None
        members = {
            "experiment_id": experiment.id,
            "cron": experiment.schedule,
            "timezone": experiment.timezone,
            "enabled": experiment.is_schedule_enabled,
        }
        schedule = validated(Schedule, self.place("schedule"), members)
        return schedule, Cron.parse(schedule.cron, schedule.timezone, experiment.id)

    def notes(self) -> Iterator[str]:
        """Say which members nobody reads, as far as they may be meant for an executor."""
        if self._execution is not self._body:
            unknown = [name for name in self._execution if name not in KNOWN]
            if unknown:
                names = ", ".join(f"'{printable(name)}'" for name in unknown)
                yield f"no executor reads {names} in 'execution'"
            for name in self._body:
                if name not in (*self._execution, *OUTER_MEMBERS, *KNOWN) and (meant := _meant(name)):
                    yield f"no executor reads '{printable(name)}'; did you mean '{meant}'?"

    def _schedule_mistakes(self) -> Iterator[str]:
        """Say what is wrong with the expression and the time zone, as far as they can be read."""
        experiment_id = str(self._body.get("id"))
        try:
            found = experiment_parts(experiment_id, self.place, self._root)["schedule"]()
        except ContractError:
            return
        cron, zone = found.get("cron"), found.get("timezone")
        if cron is not None:
            wrong = [
                *self._cron_mistake("schedule", cron, None, experiment_id),
                *self._cron_mistake("timezone", "@daily", zone, experiment_id),
            ]
            yield from wrong or self._cron_mistake("schedule", cron, zone, experiment_id)

    def _cron_mistake(self, name: str, cron: str, zone: str | None, experiment_id: str) -> Iterator[str]:
        try:
            Cron.parse(cron, zone, experiment_id)
        except ScheduleError as exc:
            yield f"{self.place(name)} {exc}"

    def _policy(self) -> Iterator[str]:
        given = {
            name: value
            for name, value in {**self._body, **self._execution}.items()
            if value not in ("", None)
        }
        try:
            Policy.model_validate(given)
        except ValidationError as exc:
            for one in mistakes(exc, Policy.model_fields):
                yield f"{self.place(one.member)} member '{one.member}' is {shown(one.value)}: {one.problem}"

    def _unknown(self) -> Iterator[str]:
        """Refuse members that are almost known, or that stand where nobody reads them."""
        if "execution" not in self._body:
            for name in difflib.get_close_matches("execution", self._body, cutoff=NEAR):
                yield f"{self.place(name)} member '{name}' is not known: did you mean 'execution'?"
        if self._execution is not self._body:
            for name in RUN_MEMBERS:
                if name in self._body and name not in self._execution:
                    yield f"{self.place(name)} member '{name}' belongs in 'execution'"
        for name in self._execution:
            if name not in (*KNOWN, *OUTER_MEMBERS) and (meant := _meant(name)):
                yield f"{self.place(name)} member '{printable(name)}' is not known: did you mean '{meant}'?"


def _complaint(read: Callable[[], Any]) -> Iterator[str]:
    try:
        read()
    except ContractError as exc:
        yield str(exc)


def _meant(name: str) -> str | None:
    """The member that an unknown one is almost, if any."""
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])|[- ]", "_", name).lower()
    close = difflib.get_close_matches(plain, KNOWN, n=1, cutoff=NEAR)
    return OTHER_WORDS.get(plain) or (close[0] if close else None)


# -- the tool ---------------------------------------------------------------------------


def tool_doubts(experiment: Experiment, parameters: Mapping[str, Any] | None) -> Iterator[str]:
    """Say what of an experiment doesn't fit its tool as it is registered.

    Args:
        experiment: what is published.
        parameters: the JSON Schema of the tool's parameters; None if the tool is not registered.
    """
    if parameters is None:
        yield f"tool '{experiment.tool}' is not registered, so no executor with it has started yet"
        return
    known = parameters.get("properties")
    if not isinstance(known, dict):
        return
    takes = ", ".join(known) or "no parameters"
    for name, value in experiment.params.items():
        if name not in known:
            if not parameters.get("additionalProperties", False):
                yield f"tool '{experiment.tool}' takes no parameter '{printable(name)}'; it takes: {takes}"
        elif (wanted := _other_type(known[name], value)) is not None:
            yield f"tool '{experiment.tool}' takes parameter '{name}' as {wanted}; it is {kind(value)}"
    for name in parameters.get("required", ()):
        if name not in experiment.params:
            yield f"tool '{experiment.tool}' needs the parameter '{name}'; each trigger has to give it"


def _other_type(schema: Any, value: Any) -> str | None:
    """The type that a parameter's schema asks for, if the value has another one."""
    wanted = schema.get("type") if isinstance(schema, dict) else None
    names = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(names, list) or not all(name in JSON_TYPES for name in names):
        return None
    fits = any(
        isinstance(value, JSON_TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
        for name in names
    )
    return None if fits else " or ".join(names)
