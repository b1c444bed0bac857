"""Values in words, as the command and the page show them."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any


def duration(seconds: float | str | None) -> str:
    """Format seconds: `0.031 s`, `4.2 s`, `3 min 05 s`, `2 h 10 min`; empty for None and empty text."""
    if seconds is None or seconds == "":
        return ""
    seconds = float(seconds)
    if seconds < 1:
        return f"{seconds:.3f} s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size(count_bytes: float) -> str:
    """Format a number of bytes: `7 bytes`, `12.3 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count_bytes < 1_000 or unit == "GB":
            break
        count_bytes /= 1_000
    return f"{count_bytes:.0f} {unit}" if unit == "bytes" else f"{count_bytes:.1f} {unit}"


def ago(iso: str | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> str:
    """Format a time in the past: `30 s ago`, `2 days ago`.

    Args:
        iso: the time in ISO 8601; any other text is returned unchanged.
        now: the clock, in UTC.
    """
    if not iso:
        return ""
    try:
        seconds = (now() - datetime.fromisoformat(iso)).total_seconds()
    except (ValueError, TypeError):
        return iso
    if seconds < 2:
        return "just now"
    for limit, unit_seconds, unit in ((100, 1, "s"), (5_400, 60, "min"), (172_800, 3_600, "h")):
        if seconds < limit:
            return f"{seconds / unit_seconds:.0f} {unit} ago"
    return f"{seconds / 86_400:.0f} days ago"


def key_values(values: Mapping[str, Any]) -> str:
    """Format an object as one line: `count=25 success=true`."""
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in values.items()
    )


def parse_json(text: str | None) -> Any:
    """Decode JSON; text that is not JSON is returned unchanged."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
