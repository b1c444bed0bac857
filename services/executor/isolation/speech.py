"""What a process says while a tool runs, and of the tool, as values.

It is not trusted: what makes no sense raises TypeError, ValueError, KeyError or OverflowError.
"""

from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Capture, Description, Event, Metric, Partial, Progress

MAX_NUMBER = 1e300


def events(method: str, params: dict[str, Any]) -> list[Event]:
    """The events in one message of the toolkit; none if it is not one."""
    match method:
        case "progress":
            total = params["total"]
            done = _number(params["done"])
            return [Progress(done, None if total is None else _number(total), str(params["message"]))]
        case "metrics":
            return [
                Metric(str(metric["name"]), _number(metric["value"]), dict(metric["tags"]))
                for metric in params["metrics"]
            ]
        case "partial":
            return [Partial(params["item"])]
        case _:
            return []


def capture(params: dict[str, Any], place: str) -> Capture:
    """An artifact's announcement; its file can only be where its number says."""
    path = Path(place, str(int(params["number"])))
    media_type = params.get("media_type")
    return Capture(
        name=str(params["name"]),
        path=path,
        size_bytes=int(params["size"]),
        sha256=str(params["sha256"]),
        media_type=None if media_type is None else str(media_type),
    )


def description(said: Any) -> Description:
    """What a tool says of itself; ValueError if it is no such thing."""
    match said:
        case {
            "name": str(name),
            "entry": str(entry),
            "line": int(line),
            "kind": str(kind),
            "summary": str(summary),
            "parameters": dict(parameters),
            "returns": str(returns),
            "neighbours": list(neighbours),
        } if all(isinstance(path, str) for path in neighbours):
            return Description(name, entry, line, kind, summary, parameters, returns, tuple(neighbours))
        case _:
            raise ValueError("a description that is none")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.80} is not a number")
    if abs(value) > MAX_NUMBER:
        raise ValueError("a number that is out of all proportion")
    return value
