"""What a case's tool returned, as plain values: for criteria, budgets and reports."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.planner.tasks import TaskResult
from shared.errors import ArtifactError

STORED: Final = "cas://"
"""How a result begins that is too large for its place, and was stored beside the artifacts."""


def is_stored(result: TaskResult) -> bool:
    """Whether what the tool returned has to be loaded first."""
    return result.execution is not None and (result.execution.result or "").startswith(STORED)


def at_hand(result: TaskResult) -> Any:
    """What the tool returned, None where that is nothing, or would have to be loaded first."""
    return None if is_stored(result) else returned(result)


def returned(result: TaskResult) -> Any:
    """What the tool returned, None if nothing; may wait for a disk or a network.

    Raises:
        ArtifactError: it is stored and can't be read.
    """
    if result.test_result is not None:
        return result.test_result.outputs
    if result.execution is None or result.execution.result is None:
        return None
    text = result.execution.result
    if is_stored(result):
        text = result.execution.loader.load_text(text)
    try:
        return json.loads(text)
    except ValueError as exc:
        raise ArtifactError(f"the result of case {result.index} is not JSON: {exc}") from None


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The members of nested objects by their full names, with dots in between; a dot in a name is `\\.`.

    A value that is no object has the name that was given; lists are not taken apart.
    """
    if not isinstance(value, Mapping) or not value:
        yield name, value
        return
    for key, one in value.items():
        part = str(key).replace(".", "\\.")
        yield from flat(one, f"{name}.{part}" if name else part)


def numbers(value: Any) -> Iterator[tuple[str, float]]:
    """The finite numbers among the members; truth is 1 and falsehood 0."""
    for name, one in flat(value):
        number = as_number(one)
        if number is not None:
            yield name, number


def as_number(value: Any) -> float | None:
    """`value` as a finite float, None if it is none."""
    if not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
