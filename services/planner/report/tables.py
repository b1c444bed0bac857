"""The cases of a plan as a table: a row for each, a column for every parameter and every scalar result."""

import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

from services.planner.cost import Usage
from services.planner.metrics.plan_metrics import NO_METRICS, PlanMetrics
from services.planner.results import flattened
from services.planner.tasks import TaskResult

NOTHING: Final[Mapping[int, Usage]] = MappingProxyType({})
MAX_RESULT_COLUMNS: Final = 500
MAX_TEXT: Final = 1_000
INT64: Final = range(-(2**63), 2**63)
_SPECIAL: Final = re.compile('[",\r\n]')
_USED: Final = ("core_seconds", "gpu_seconds", "peak_rss_bytes", "money")
_TOOK: Final = ("started_at", "finished_at", "seconds")
TIMES: Final = (*_TOOK, *_USED)
"""The last columns, the only ones that differ between two executions of the same plan."""


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of equal length by name, in their order; None in rows without a value."""

    columns: Mapping[str, Sequence[Any]]
    rows: int

    def names(self, beginning: str) -> list[str]:
        """Return the names of the columns with this prefix."""
        return [name for name in self.columns if name.startswith(beginning)]


def table_of(
    results: Sequence[TaskResult],
    returns: Sequence[Any],
    metrics: PlanMetrics = NO_METRICS,
    used: Mapping[int, Usage] = NOTHING,
) -> tuple[Table, int]:
    """Return the table, and how many members of results it leaves out: it has 500 columns for them.

    Args:
        results: in the order of the rows.
        returns: what the tool returned for each.
        metrics: of the cases.
        used: what all attempts of a case have used of machines, by its index.
    """
    rows = [
        _row(result, value) | _used(used.get(result.index))
        for result, value in zip(results, returns, strict=True)
    ]
    known = list(dict.fromkeys(name for row in rows for name in row))
    parameters = [name for name in known if name.startswith("param.")]
    members = [name for name in known if name.partition(".")[0] == "result"]
    shown = members[:MAX_RESULT_COLUMNS]
    names = [*_ABOUT, *parameters, *_END, *shown]
    columns = {name: [row.get(name) for row in rows] for name in names}
    columns |= _metric_columns(results, metrics)
    columns |= {name: [row.get(name) for row in rows] for name in TIMES}
    return Table(columns, len(rows)), len(members) - len(shown)


def metrics_table(results: Sequence[TaskResult], metrics: PlanMetrics) -> Table:
    """Return the table of the metrics alone, which has no times: computed again, it is the same.

    Args:
        results: in the order of the rows.
        metrics: of the cases.
    """
    rows = [_row(result, None) for result in results]
    parameters = [name for row in rows for name in row if name.startswith("param.")]
    columns = {name: [row.get(name) for row in rows] for name in (*_ABOUT, *parameters, "status")}
    return Table(columns | _metric_columns(results, metrics), len(rows))


def _metric_columns(results: Sequence[TaskResult], metrics: PlanMetrics) -> dict[str, list[Any]]:
    """Return a column for each metric, and if some are missing, one that says why."""
    columns: dict[str, list[Any]] = {
        f"metric.{name}": [metrics.values.get(one.index, {}).get(name) for one in results]
        for name in metrics.names
    }
    if metrics.missing:
        columns["metrics_error"] = [_short(metrics.missing.get(one.index)) for one in results]
    return columns


_ABOUT: Final = ("index", "dataset", "scenario", "replicate", "seed")
_END: Final = ("status", "attempts", "error_type", "error")


def _row(result: TaskResult, value: Any) -> dict[str, Any]:
    case = result.case
    about = (result.index, case.dataset, case.scenario, case.replicate, result.seed)
    end = (str(result.task_status), result.attempt_count, result.error_type, result.error_message)
    times = (result.started_at, result.finished_at, result.execution_time)
    row = {
        **dict(zip(_ABOUT, about, strict=True)),
        **(dict(flattened(case.parameters, "param")) if case.parameters else {}),
        **dict(zip(_END, end, strict=True)),
        **{name: one for name, one in flattened(value, "result") if _is_scalar(one)},
        **dict(zip(_TOOK, times, strict=True)),
    }
    return {name: _short(one) for name, one in row.items()}


def _used(usage: Usage | None) -> dict[str, Any]:
    if usage is None:
        return {}
    values = (usage.core_seconds, usage.gpu_seconds, usage.peak_bytes, usage.money)
    return dict(zip(_USED, values, strict=True))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _short(value: Any) -> Any:
    """Return a cell: lists and objects as JSON, texts shortened and without what UTF-8 can't hold."""
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, str):
        return value
    text = value.encode(errors="backslashreplace").decode()
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


# -- CSV ------------------------------------------------------------------------------


def csv_text(table: Table) -> str:
    """Return the table as CSV, with `true` and `false`, times by ISO 8601, and empty cells for None."""
    columns = [map(_cell, column) for column in table.columns.values()]
    lines = [map(_short, table.columns), *zip(*columns, strict=True)]
    return "".join(",".join(map(_quoted, line)) + "\n" for line in lines)


def _quoted(text: str) -> str:
    """Quote a cell.  Not by `csv`, which quotes a lone carriage return only if it is the line terminator."""
    return f'"{text.replace(chr(34), chr(34) * 2)}"' if _SPECIAL.search(text) else text


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case datetime():
            return value.isoformat()
        case _:
            return str(value)


# -- Parquet --------------------------------------------------------------------------


def parquet_bytes(table: Table) -> bytes:
    """Return the table as Parquet, each column in the narrowest type for all its values."""
    # Imported here, as that is slow.
    import pyarrow as pa
    from pyarrow import parquet

    types = {
        bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(),
        datetime: pa.timestamp("us", tz="UTC"),
    }  # fmt: skip
    arrays = {}
    for name, column in table.columns.items():
        kind = _FIXED.get(name) or _kind(column)
        values = [_as(kind, one) for one in column]
        arrays[_short(name)] = pa.array(values, types[kind])
    file = io.BytesIO()
    parquet.write_table(pa.table(arrays), file)
    return file.getvalue()


_FIXED: Final[Mapping[str, type]] = {
    "index": int, "dataset": str, "scenario": str, "replicate": int, "seed": int,
    "status": str, "attempts": int, "error_type": str, "error": str,
    "started_at": datetime, "finished_at": datetime, "seconds": float,
    "core_seconds": float, "gpu_seconds": float, "peak_rss_bytes": int, "money": float,
}  # fmt: skip


def _kind(column: Iterable[Any]) -> type:
    """Return the type of a column: text, unless all values are booleans, or all are numbers."""
    values = [one for one in column if one is not None]
    kinds = {type(one) for one in values}
    if kinds == {bool}:
        return bool
    if kinds == {int} and all(one in INT64 for one in values):
        return int
    if kinds == {float} or (kinds == {int, float} and all(abs(one) <= 2**53 for one in values)):
        return float
    return str


def _as(kind: type, value: Any) -> Any:
    if value is None or kind is datetime:
        return value
    return _cell(value) if kind is str else kind(value)
