"""The limits of one run that the kernel keeps per process; memory and processes are watched from outside."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Iterator

from .os_state import resource


@contextlib.contextmanager
def applied(limits: dict[str, Any]) -> Iterator[None]:
    """Set the soft limits for the run, and what they were afterwards.

    Soft ones only: a hard limit that was lowered could not be raised again for
    the next run.  Processes that the tool starts inherit them.
    """
    before = {}
    for kind, soft in _soft_limits(limits).items():
        before[kind] = resource.getrlimit(kind)
        hard = before[kind][1]
        resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
    try:
        yield
    finally:
        for kind, pair in before.items():
            # A run that lowered a hard limit has made that impossible, for which its process is given up.
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(kind, pair)


def _soft_limits(limits: dict[str, Any]) -> dict[int, int]:
    wanted = {}
    if limits.get("cpu_seconds") is not None:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        wanted[resource.RLIMIT_CPU] = math.ceil(usage.ru_utime + usage.ru_stime + limits["cpu_seconds"])
    if limits.get("file_size_bytes") is not None:
        wanted[resource.RLIMIT_FSIZE] = limits["file_size_bytes"]
    if limits.get("open_files") is not None:
        wanted[resource.RLIMIT_NOFILE] = limits["open_files"]
    return wanted
