"""The whole tool contract.  Copy this file, rename it and its function, and put your work into the loop."""

import time
from typing import Any

from shared import toolkit


def example_tool(param1: str, param2: int = 10, pause_seconds: float = 0.0) -> dict[str, Any]:
    """Process `param2` items and report the progress.

    Args:
        param1: Name of the batch, shown in the progress messages.
        param2: Number of items.
        pause_seconds: Duration of each item, to try out progress and time limits.

    Returns:
        The items, their count, and `success`.
    """
    if param2 < 0:
        raise ValueError(f"param2 is {param2}: there can't be fewer than 0 items")

    results = []
    for number in range(param2):
        time.sleep(pause_seconds)  # the work
        results.append({"id": number, "status": "done"})
        toolkit.progress(number + 1, param2, f"{param1}: item {number + 1} of {param2}")

    return {"items": results, "count": len(results), "success": True}
