"""Moments as text: ISO 8601 in UTC."""

import time
from functools import lru_cache


@lru_cache(maxsize=64)
def second(seconds: int) -> str:
    """The second that begins so many seconds after 1970; most moments are in one that was just asked for."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def iso(seconds: float) -> str:
    """Unix seconds, to the millisecond."""
    whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{second(whole)}.{microseconds // 1_000:03d}+00:00"
