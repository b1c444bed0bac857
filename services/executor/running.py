"""A run that a worker has claimed, from its slot to its report."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from services.executor.store import Claim


@dataclass(slots=True, eq=False)
class Running:
    """A run that has a slot here, or had it until its tool was done, and is being reported.

    Attributes:
        claim: the order, held by this worker.
        cancel: when set, the attempt is ended.
        is_sure: tells whether nobody can have taken the claim over by now, since this worker has
            shown lately that it lives.
    """

    claim: Claim
    is_sure: Callable[[], bool]
    on_free: Callable[[], None]
    has_slot: bool = True
    cancel: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def free_slot(self) -> None:
        """The tool is done, and nothing is left to do but to report."""
        if self.has_slot:
            self.has_slot = False
            self.on_free()
