"""What a process says while a tool runs, as events.

It is not trusted: what makes no sense raises TypeError, ValueError or KeyError.
"""

import os
import stat
from pathlib import Path
from typing import Any

from services.executor.isolation.calls import Artifact, Event, Metric, Partial, Progress

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


def artifact(params: dict[str, Any], path: str) -> Artifact:
    """An artifact's announcement; the file can only be where its number says, and no link to another."""
    if params["path"] != path or os.path.realpath(path) != path or not stat.S_ISREG(os.lstat(path).st_mode):
        raise ValueError("an artifact that is not a file in the place for artifacts")
    size_bytes, digest = int(params["size"]), str(params["sha256"])
    return Artifact(str(params["name"]), Path(path), size_bytes, digest, str(params["media_type"]))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{value!r:.80} is not a number")
    if abs(value) > MAX_NUMBER:
        raise ValueError("a number that is out of all proportion")
    return value
