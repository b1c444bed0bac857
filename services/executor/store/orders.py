"""An order: what the queue remembers of a run until its next attempt begins."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

from msgspec import Meta, MsgspecError, Struct, convert, defstruct, field
from msgspec.json import Decoder
from msgspec.structs import astuple, fields, replace

from services.executor.store.experiments import Stored
from shared.documents import MAX_DEPTH, json_object, json_text, may_be_deeper, member
from shared.errors import ContractError
from shared.messages import valid_id

PRIORITIES = ("high", "normal", "low")
NORMAL = "normal"


class Order(Struct, frozen=True):
    """One attempt of one run, waiting to be claimed.

    `timestamp` is None only until the queue has given the run its identity.
    `history` holds the attempts before this one: `attempt`, `error`, `error_type`, `at`.
    `losses` counts workers that died over this run.
    `serial` makes it wait while another run of its experiment is under way.
    `reserved` names the rate limits whose turn this order waited for.
    `experiment` is what stands in for an experiment that is not stored: its `tool` and its policy's members.
    `others` are members of a newer version, passed on to the worker of the next attempt.
    """

    experiment_id: str
    trigger: str
    timestamp: Annotated[str, Meta(pattern=r"\A[0-9]+-[0-9]+\Z")] | None = None
    attempt: Annotated[int, Meta(ge=1)] = 1
    losses: Annotated[int, Meta(ge=0)] = 0
    priority: str = NORMAL
    serial: bool = False
    reserved: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    scheduled_for: str | None = None
    request_id: str | None = None
    triggered_by: str | None = None
    traceparent: str | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    experiment: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

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
        """The text that the queue holds; members at their defaults are left out.

        The priority comes first and the experiment next: the scripts read no more than these.
        """
        members: dict[str, Any] = {} if self.priority == NORMAL else {"priority": self.priority}
        for name, default in _DEFAULTS.items():
            value = getattr(self, name)
            if value != default:
                members[name] = value
        members.update(self.others)
        return json_text(members)

    @staticmethod
    def head_json(experiment_id: str) -> str:
        """How the text of each order of this experiment begins that has no priority."""
        return json_text({"experiment_id": experiment_id}).removesuffix("}") + ","

    @classmethod
    def from_json(cls, text: str, entry: str) -> "Order":
        """The order in a queue entry; a run that was never claimed takes the entry's id as its timestamp.

        Raises:
            ContractError: it is no order that this version can read.
        """
        with contextlib.suppress(
            MsgspecError, ValueError, RecursionError
        ):  # whatever it is, it is seen below
            return cls._plain(_decoder.decode(text), text, entry)
        place = f"queue entry {entry}"
        members = json_object(place, text)
        members["timestamp"] = members.get("timestamp") or entry
        if members.get("priority", NORMAL) not in PRIORITIES:
            del members["priority"]  # or it would go back to a queue that nobody reads
        if others := members.keys() - _KNOWN:
            members["others"] = {name: members.pop(name) for name in sorted(others)}
        member(place, "experiment_id", members.get("experiment_id"), valid_id)
        try:
            return convert(members, cls)
        except MsgspecError as exc:
            raise ContractError(f"{place} is not an order: {exc}") from None

    @classmethod
    def _plain(cls, read: Any, text: str, entry: str) -> "Order":
        """The order, if it is one that there is nothing to say about; ValueError otherwise."""
        if read.priority not in PRIORITIES or may_be_deeper(text, MAX_DEPTH):
            raise ValueError("to be read with care")
        valid_id(read.experiment_id)
        read.timestamp = read.timestamp or entry
        return cls(*astuple(read))

    @staticmethod
    def run_named_in(text: str, entry: str) -> "Order | None":
        """Of an order that can't be read, as much as names its run, if that can."""
        try:
            members = json.loads(text)
            named = {"experiment_id": members["experiment_id"], "timestamp": members.get("timestamp", entry)}
            valid_id(named["experiment_id"])
            return convert({"trigger": "", **named}, Order)
        except (MsgspecError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None


_WRITTEN = fields(Order)[:-1]  # all but `others`
_NAMES = [one.name for one in _WRITTEN]
_FIRST = Order("", "")
_decoder = Decoder(
    defstruct(
        "_Plain",
        [("experiment_id", str), ("trigger", str)]
        + [(one.name, one.type, getattr(_FIRST, one.name)) for one in _WRITTEN[2:]],
        forbid_unknown_fields=True,
    )
)
"""Most orders are as this version writes them, and msgspec reads such a text in a tenth of the time."""

_KNOWN = frozenset(_NAMES)
_DEFAULTS = {name: getattr(_FIRST, name) for name in _NAMES if name != "priority"}


@dataclasses.dataclass(frozen=True, slots=True)
class Claim:
    """An order that this worker holds.

    `entry` is its id in the stream `queue`; `stored` its experiment as it was then, or None if not read.
    """

    queue: str
    entry: str
    worker: str
    order: Order
    stored: Stored | None = dataclasses.field(default=None, compare=False)

    @property
    def lease(self) -> str:
        """The fence: a different one for each delivery of an order."""
        return f"{self.worker}/{self.order.priority}/{self.entry}"
