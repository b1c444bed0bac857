"""The metrics of all cases of a plan, computed from stored artifacts: no rerun, and no clock.

What computes them is a class with a name in `METRICS`, or `module:Class` of an installed module:

    computer = Class(loader)               # an `ArtifactLoader`, for artifacts wherever they are stored
    found = computer.compute(artifacts)    # the references of one case's artifacts, by name
    found.values                           # numbers by name; None for an undefined one
    found.tables                           # rows by the name of a table, each row a mapping

The class may have an attribute `main`, the names of the values that a report draws.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol, TextIO

from services.executor.artifacts import ArtifactLoader, loader_for
from services.planner.metrics.computer import plain
from services.planner.models import METRICS, metrics_name
from services.planner.results import finite_number
from services.planner.tasks import TaskResult, TaskStatus
from shared.errors import ArtifactError, PlanError

Number = int | float | None


class CaseMetrics(Protocol):
    """The metrics of one case."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Numbers by name; None for an undefined one."""

    @property
    def tables(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Rows by the name of a table."""


class CaseComputer(Protocol):
    """Computes the metrics of cases whose artifacts are in one store."""

    def __init__(self, loader: ArtifactLoader) -> None:
        """Use `loader` for all artifacts."""

    def compute(self, artifacts: Mapping[str, str]) -> CaseMetrics:
        """Compute the metrics of a case from the references of its artifacts.  May raise any exception."""


@dataclass(frozen=True, slots=True)
class PlanMetrics:
    """The metrics of a plan.

    Attributes:
        values: numbers by name, by the index of the case.
        missing: by the index of a case that succeeded, why it has no metrics.
        main: the names of the values that a report draws; empty if the class has no preference.
        files: the tables that were written, by file name.
    """

    values: Mapping[int, Mapping[str, Number]] = field(default_factory=dict)
    missing: Mapping[int, str] = field(default_factory=dict)
    main: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The names of all values, the main ones first."""
        found = dict.fromkeys(name for values in self.values.values() for name in values)
        return [
            *(name for name in self.main if name in found),
            *(one for one in found if one not in self.main),
        ]

    @property
    def warning(self) -> str | None:
        """Why some cases have no metrics; None if all have."""
        if not self.missing:
            return None
        first = min(self.missing)
        total = len(self.values) + len(self.missing)
        return (
            f"{len(self.missing):,} of {total:,} cases that succeeded have no metrics; "
            f"case {first}: {self.missing[first]}"
        )


NO_METRICS: Final = PlanMetrics()


def metrics_class(name: str) -> type[CaseComputer]:
    """Import the class that computes these metrics.

    Args:
        name: a name in `METRICS`, or `module:Class`.

    Raises:
        PlanError: there is no such class.
    """
    try:
        module, _, attribute = METRICS.get(metrics_name(name), name).partition(":")
    except ValueError as exc:
        raise PlanError(str(exc)) from None
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as exc:
        raise PlanError(f"the metrics {name!r} can't be imported: {exc}") from None
    if not callable(getattr(found, "compute", None)):
        raise PlanError(f"{name!r} has no method `compute(artifacts)`, which metrics need")
    return found  # type: ignore[no-any-return]


def compute_metrics(
    name: str, results: Sequence[TaskResult], directory: Path, store: str | None = None
) -> PlanMetrics:
    """Compute the metrics of the cases that succeeded, and write their tables; blocks on stores and disks.

    A case whose metrics can't be computed is told in `missing`, and the others go on.

    Args:
        name: of the metrics.
        results: of the plan's cases, in any order.
        directory: where each table is written as `metrics_NAME.csv`, with the index of the case in its
            first column; created if it is missing.
        store: where the artifacts are now; None for where the runs have stored them.

    Raises:
        PlanError: there are no such metrics.
        ArtifactError: `store` is not a place for artifacts.
    """
    kind = metrics_class(name)
    moved = None if store is None else loader_for(store)
    values: dict[int, Mapping[str, Number]] = {}
    missing: dict[int, str] = {}
    directory.mkdir(parents=True, exist_ok=True)
    with _Tables(directory) as tables:
        for one in sorted(results, key=lambda one: one.index):
            if one.task_status is not TaskStatus.SUCCEEDED or one.execution is None:
                continue
            try:
                found = kind(moved or one.execution.loader).compute(one.execution.artifacts)
                numbers = {key: _number(value) for key, value in found.values.items()}
                tables.add(one.index, found.tables)
            except (ArtifactError, OSError) as exc:
                missing[one.index] = str(exc)
            except Exception as exc:  # a mistake in somebody's class must not cost the plan its report
                missing[one.index] = f"{type(exc).__name__}: {exc}"
            else:
                values[one.index] = numbers
    return PlanMetrics(values, missing, tuple(getattr(kind, "main", ())), tables.files)


def _number(value: Any) -> Number:
    number = plain(value)
    return number if finite_number(number) is not None else None


class _Tables:
    """Writes tables of all cases, row by row; inside the block, under temporary names."""

    def __init__(self, directory: Path) -> None:
        self.files: dict[str, Path] = {}
        self._directory = directory
        self._writers: dict[str, csv.DictWriter[str]] = {}
        self._closing = ExitStack()

    def __enter__(self) -> "_Tables":
        return self

    def add(self, index: int, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Add the rows of a case."""
        for table, rows in tables.items():
            if rows and table not in self._writers:
                self._writers[table] = csv.DictWriter(
                    self._open(f"metrics_{table}.csv"), ["index", *rows[0]], lineterminator="\n"
                )
                self._writers[table].writeheader()
            for row in rows:
                cells = {key: plain(value) for key, value in row.items()}
                self._writers[table].writerow({"index": index, **cells})

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        self._closing.close()
        for path in self.files.values():
            draft = _draft(path)
            if kind is None:
                draft.replace(path)
            else:
                draft.unlink(missing_ok=True)

    def _open(self, name: str) -> TextIO:
        self.files[name] = self._directory / name
        return self._closing.enter_context(_draft(self.files[name]).open("w", encoding="utf-8", newline=""))


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}")
