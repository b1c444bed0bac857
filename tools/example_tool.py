"""The whole tool contract: copy this file, rename it and its function, and put your work in the loop."""

import time
from typing import Any

from shared import toolkit


def example_tool(param1: str, param2: int = 10, pause_seconds: float = 0.0) -> dict[str, Any]:
    """Go through `param2` items in the name of `param1`.

    Args:
        param1: Whose items they are; shown in the progress messages.
        param2: How many items.
        pause_seconds: How long each item takes, so that progress and time limits can be watched.

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
