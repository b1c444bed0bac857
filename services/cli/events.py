"""What was said about a run, in words.  Pure."""

from collections.abc import Mapping
from typing import Any

from services.cli.output import duration, members, one_line
from services.executor.store import Entry

_OF_EVERY_EVENT = frozenset({"experiment_id", "run_id", "event", "timestamp"})


def words(entry: Entry) -> tuple[str, str]:
    """An entry of the journal as a word for what happened and the details."""
    if entry.kind == "result":
        return _result(entry.data)
    return _metric(entry.data)


def failure(data: Mapping[str, Any]) -> str:
    """An error with its type, on one line."""
    text = data.get("error", data.get("message", ""))
    return one_line(f"{data.get('error_type', 'Error')}: {text}")


def _result(data: Mapping[str, Any]) -> tuple[str, str]:
    took = duration(data.get("duration"))
    if data.get("type") == "experiment_completed":
        return "result", one_line(f"success in {took} {members(data.get('result_summary', {}))}")
    after = f" after {took}" if took else ""
    return "result", f"{data.get('status', 'failed')}{after}, {failure(data)}"


def _metric(data: Mapping[str, Any]) -> tuple[str, str]:
    name = str(data.get("event"))
    match name:
        case "run_started":
            return "started", f"{data.get('tool') or 'no tool'}, attempt {data.get('attempt')}"
        case "progress":
            return "progress", one_line(f"{progress(data)} {data.get('message', '')}")
        case "metric":
            tags = {
                key: value
                for key, value in data.items()
                if key not in {*_OF_EVERY_EVENT, "name", "value", data.get("name")}
            }
            return "metric", one_line(f"{data.get('name')}={data.get('value')} {members(tags)}")
        case "items_processed":
            return "items", str(data.get("count"))
        case "partial_completion":
            return "partial", f"{data.get('items_processed')} items are kept"
        case "run_retrying":
            return (
                "retrying",
                f"attempt {data.get('attempt')} failed, next in "
                f"{duration(data.get('delay_seconds'))}: {failure(data)}",
            )
        case "error":
            return "error", failure(data)
        case "run_completed":
            return "completed", f"in {duration(data.get('duration'))}"
        case _:
            rest = {key: value for key, value in data.items() if key not in _OF_EVERY_EVENT}
            return name, one_line(members(rest))


def progress(data: Mapping[str, Any]) -> str:
    """How far a run is: `9/16`, or `9` when nobody knows of how many."""
    done, total = data.get("done"), data.get("total")
    return _number(done) if total is None else f"{_number(done)}/{_number(total)}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)
