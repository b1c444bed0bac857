"""An order: what the queue remembers of a run until its next attempt begins."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

PRIORITIES = ("high", "normal", "low")
NORMAL = "normal"


@dataclass(frozen=True, slots=True)
class Order:
    """One attempt of one run, waiting to be claimed.

    `timestamp` is None only until the queue has given the run its identity.
    `history` holds the attempts before this one: `attempt`, `error`, `error_type`, `at`.
    `losses` counts workers that died over this run.
    `serial` makes it wait while another run of its experiment is under way.
    `reserved` names the rate limits whose turn this order waited for.
    """

    experiment_id: str
    trigger: str
    timestamp: str | None = None
    attempt: int = 1
    losses: int = 0
    priority: str = NORMAL
    serial: bool = False
    reserved: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    scheduled_for: str | None = None
    request_id: str | None = None
    triggered_by: str | None = None
    traceparent: str | None = None
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def run_id(self) -> str:
        """`{experiment_id}:{timestamp}`."""
        assert self.timestamp is not None, "an order has its timestamp once it is claimed"
        return f"{self.experiment_id}:{self.timestamp}"

    @property
    def queued_at(self) -> float:
        """When the run was queued first, unix seconds."""
        assert self.timestamp is not None, "an order has its timestamp once it is claimed"
        return int(self.timestamp.partition("-")[0]) / 1000

    def after_failure(self, failure: Mapping[str, Any]) -> Self:
        """The order for the next attempt."""
        return replace(self, attempt=self.attempt + 1, reserved=(), history=(*self.history, failure))

    def after_loss(self, loss: Mapping[str, Any]) -> Self:
        """The order for the same attempt number again: its worker died, the tool did not fail."""
        return replace(self, losses=self.losses + 1, reserved=(), history=(*self.history, loss))

    def with_turn_under(self, limit: str) -> Self:
        """The same order, once it has waited for its turn under a rate limit."""
        return replace(self, reserved=(*self.reserved, limit))

    def to_json(self) -> str:
        """The text that the queue holds; members at their defaults are left out."""
        members = {
            name: value for name, value in asdict(self).items() if value not in (None, {}, (), 0, NORMAL)
        }
        return json.dumps(members, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, entry: str) -> Self:
        """The order in a queue entry; a run that was never claimed takes the entry's id as its timestamp."""
        members = json.loads(text)
        for name in ("history", "reserved"):
            members[name] = tuple(members.get(name, ()))
        members.setdefault("timestamp", entry)
        known = {name: members[name] for name in cls.__slots__ if name in members}
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Claim:
    """An order that this worker holds.  `entry` is its id in the stream `queue`."""

    queue: str
    entry: str
    worker: str
    order: Order

    @property
    def lease(self) -> str:
        """The fence: a different one for each delivery of an order."""
        return f"{self.worker}/{self.order.priority}/{self.entry}"
