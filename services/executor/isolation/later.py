"""One timer for what is to be done with each of many a moment later, and mostly isn't necessary by then."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Later(Generic[T]):
    """Has `act` called with what was added, between once and twice `seconds` later, unless it is removed."""

    def __init__(self, seconds: float, act: Callable[[T], None]) -> None:
        self._seconds = seconds
        self._act = act
        self._new: set[T] = set()
        self._old: set[T] = set()
        self._is_armed = False

    def add(self, item: T) -> None:
        """Remember it."""
        self._new.add(item)
        if not self._is_armed:
            self._arm()

    def remove(self, item: T) -> None:
        """Forget it, if it is known."""
        self._new.discard(item)
        self._old.discard(item)

    def _arm(self) -> None:
        self._is_armed = True
        asyncio.get_running_loop().call_later(self._seconds, self._ring)

    def _ring(self) -> None:
        due, self._old, self._new = self._old, self._new, set()
        self._is_armed = False
        if self._old:
            self._arm()
        for item in due:
            self._act(item)
