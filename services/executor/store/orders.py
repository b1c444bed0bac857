"""An order: what the queue remembers of a run until its next attempt begins; and a claim on one.

The text of an order has three lines that scripts read, and then JSON:

    priority TAB experiment TAB timestamp TAB attempt TAB trigger TAB "serial" or nothing
    rate limits whose turn the order has waited for, separated by TAB
    nothing; or "own" TAB tool TAB limit, when the order brings its experiment along
    {"params": ..., ...}

An experiment's id holds no control characters, so nothing in these lines is escaped.
"""

import contextlib
import functools
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Protocol, Self

import msgspec
from msgspec import Meta, Struct, field
from msgspec.structs import replace

from shared.documents import (
    MAX_DEPTH,
    json_object,
    json_text,
    kind,
    may_be_deeper,
    printable,
    shown,
    validated,
)
from shared.errors import ContractError
from shared.messages import Experiment, Policy, State, valid_id
from shared.stored import NOTHING_STORED, Stored

PRIORITIES = ("high", "normal", "low")
NORMAL = "normal"

SHORTEST_INTERVAL_MS = 0.001  # what a double still tells apart in a time in ms
LONGEST_INTERVAL_MS = 365 * 86_400_000

_TAB = "\t"
_TIMESTAMP = re.compile(r"[0-9]+-[0-9]+")
_HEAD = re.compile(
    r"(?P<priority>[^\t\n]*)\t(?P<experiment_id>[^\t\n]+)\t(?P<timestamp>[^\t\n]*)\t(?P<attempt>[^\t\n]*)"
    r"\t(?P<trigger>[^\t\n]*)\t(?P<serial>[^\t\n]*)[^\n]*\n(?P<reserved>[^\n]*)\n[^\n]*\n"
)


class Limited(Protocol):
    """Whatever may limit how many runs there are: an experiment's policy, or what a tool asks for."""

    @property
    def max_concurrent(self) -> int | None: ...
    @property
    def max_per_minute(self) -> float | None: ...
    @property
    def burst(self) -> int | None: ...
    @property
    def limit_key(self) -> str | None: ...


class Limit(Struct, frozen=True):
    """What runs that share `key` may take up together.

    `max_concurrent` runs at once; `max_per_minute` begin, `burst` of them at
    once after a pause.  None and 0 mean no limit.
    """

    key: str
    max_concurrent: int | None = None
    max_per_minute: float | None = None
    burst: int = 1

    @property
    def interval_ms(self) -> float:
        """From one begin to the next at the steady rate; 0 without a rate limit."""
        if not self.max_per_minute:
            return 0
        return min(max(60_000 / self.max_per_minute, SHORTEST_INTERVAL_MS), LONGEST_INTERVAL_MS)

    def encode(self) -> str:
        """The text that scripts read: runs at once, ms between begins, burst, key."""
        return f"{self.max_concurrent or 0} {self.interval_ms!r} {self.burst} {self.key}"


def limit_of(asks: Limited, own_key: str) -> str:
    """The limit that an experiment or a tool has, as scripts read it; empty without one.

    Args:
        asks: may name a key that it shares with others.
        own_key: the key otherwise.
    """
    if not asks.max_concurrent and not asks.max_per_minute:
        return ""
    key = own_key if asks.limit_key is None else f"key:{asks.limit_key}"  # a name that no own key has
    return Limit(key, asks.max_concurrent, asks.max_per_minute, asks.burst or 1).encode()


class _Own(Struct, frozen=True):
    """The members of an order's own experiment that limit its runs."""

    max_concurrent: int | None = None
    max_per_minute: float | None = None
    burst: int | None = None
    limit_key: str | None = None


class Order(Struct, frozen=True, dict=True):
    """One attempt of one run, waiting to be claimed.

    `timestamp` is None only until the queue has given the run its identity.
    `history` holds the attempts before this one: `attempt`, `error`, `error_type`, `at`.
    `losses` counts workers that died during this run.
    `serial` makes it wait while another run of its experiment is under way.
    `reserved` names the rate limits whose turn this order has waited for.
    `experiment` stands in for an experiment that is not stored: its `tool` and its policy's members.
    `others` are members of a newer version, passed on to the worker of the next attempt.
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
    experiment: Mapping[str, Any] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
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

    def encode(self) -> str:
        """The text that the queue holds; members at their defaults are left out of its JSON."""
        serial, timestamp = "serial" if self.serial else "", self.timestamp or ""
        head = f"{self.priority}\t{self.experiment_id}\t{timestamp}\t{self.attempt}\t{self.trigger}\t{serial}"
        members = {name: value for name in _REST if (value := getattr(self, name)) != _DEFAULTS[name]}
        members.update(self.others)
        own = self._own() if self.experiment else ""
        return f"{head}\n{_TAB.join(self.reserved)}\n{own}\n{json_text(members)}"

    def _own(self) -> str:
        tool = self.experiment.get("tool")
        try:
            limit = limit_of(msgspec.convert(self.experiment, _Own), f"experiment:{self.experiment_id}")
        except msgspec.ValidationError:  # the worker that performs it says what is wrong
            limit = ""
        return f"own\t{printable(tool) if isinstance(tool, str) else ''}\t{limit}"

    @classmethod
    def decode(cls, text: str, entry: str) -> "Order":
        """The order in a queue entry; a run that was never claimed takes the entry's id as its timestamp.

        Raises:
            ContractError: it is no order that this version can read.
        """
        place = f"queue entry {entry}"
        head = _head_of(place, text)
        attempt = head["attempt"]
        if not attempt.isdecimal() or int(attempt) < 1:
            raise ContractError(f"{place} member 'attempt' is {shown(attempt)}; expected a number from 1 on")
        return cls(
            head["experiment_id"],
            head["trigger"],
            head["timestamp"] or entry,
            int(attempt),
            priority=head["priority"] if head["priority"] in PRIORITIES else NORMAL,
            serial=head["serial"] == "serial",
            reserved=tuple(head["reserved"].split("\t")) if head["reserved"] else (),
            **_rest_of(place, text.split("\n", 3)[3]),
        )

    @staticmethod
    def run_named_in(text: str, entry: str) -> "Order | None":
        """The run that an unreadable order names; None if its first line can't be read either."""
        try:
            head = _head_of("", text)
        except ContractError:
            return None
        return Order(head["experiment_id"], trigger="", timestamp=head["timestamp"] or entry)


class _Rest(Struct, frozen=True, forbid_unknown_fields=True):
    """What the JSON of an order holds."""

    losses: Annotated[int, Meta(ge=0)] = 0
    params: dict[str, Any] = field(default_factory=dict)
    scheduled_for: str | None = None
    request_id: str | None = None
    triggered_by: str | None = None
    traceparent: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    experiment: dict[str, Any] = field(default_factory=dict)


_REST = _Rest.__struct_fields__
_FIRST = Order("", "")
_DEFAULTS = {name: getattr(_FIRST, name) for name in _REST}
_decoder = msgspec.json.Decoder(_Rest)


def _head_of(place: str, text: str) -> dict[str, str]:
    found = _HEAD.match(text)
    if found is None:
        raise ContractError(f"{place} holds no order: it starts with {shown(text)}")
    head = found.groupdict()
    try:
        valid_id(head["experiment_id"])
    except ValueError as exc:
        raise ContractError(f"{place} member 'experiment_id' {exc}") from None
    if head["timestamp"] and not _TIMESTAMP.fullmatch(head["timestamp"]):
        raise ContractError(
            f"{place} member 'timestamp' is {shown(head['timestamp'])}; expected {{ms}}-{{n}}"
        )
    return head


def _rest_of(place: str, text: str) -> dict[str, Any]:
    """The members in the JSON of an order.  Raises `ContractError`."""
    if text == "{}":
        return {}
    # What can't be decoded at once is read again below, where it is said what is wrong.
    with contextlib.suppress(msgspec.MsgspecError, ValueError, RecursionError):
        if not may_be_deeper(text, MAX_DEPTH):
            return msgspec.structs.asdict(_decoder.decode(text))
    members = json_object(place, text)
    others = {name: members.pop(name) for name in sorted(members.keys() - set(_REST))}
    try:
        read = msgspec.convert(members, _Rest)
    except msgspec.ValidationError as exc:
        raise ContractError(f"{place} can't be read: {exc}") from None
    return {**msgspec.structs.asdict(read), "others": others}


class Begun(StrEnum):
    """What became of an order that was handed out."""

    BEGUN = "begun"
    """Its record says `running`, and that it is this worker's."""
    ARCHIVED = "archived"
    """Its experiment is archived; nothing has begun."""
    CANCELLED = "cancelled"
    """The run was cancelled while an attempt was under way that gave it back; no other one has begun."""
    BROKEN = "broken"
    """A key of the run has another Redis type than it must have; nothing has begun."""


class Claim(Struct, frozen=True, dict=True):
    """An order that a worker holds.

    `entry` is its id in the stream `queue`.  `begun` says what became of it, `stored` is its
    experiment as it was then, `error` what is wrong with a key when it is `broken`.  `dataset` identified
    Redis' data then; empty if that isn't known.
    """

    queue: str
    entry: str
    worker: str
    order: Order
    begun: Begun = Begun.BEGUN
    stored: Stored = NOTHING_STORED
    error: str = ""
    dataset: str = ""

    @property
    def tool(self) -> str | None:
        """The name of the tool, as far as the experiment can be read."""
        if self.order.experiment:
            tool = self.order.experiment.get("tool")
            return tool if isinstance(tool, str) else None
        return self.stored.experiment.tool if self.stored.experiment else None

    @functools.cached_property
    def lease(self) -> str:
        """The fence: a different one for each delivery of an order."""
        return f"{self.worker}/{self.queue.rpartition(':')[2]}/{self.entry}"


def experiment_of(order: Order, stored: Stored) -> Experiment:
    """What the order brings along, or else what is stored.  Raises `ContractError`."""
    if not order.experiment:
        return stored.readable()
    place, tool = f"the order of {order.run_id}", order.experiment.get("tool")
    if not isinstance(tool, str) or not tool:
        raise ContractError(f"{place} has {kind(tool)} as its experiment's 'tool'; expected a tool's name")
    return Experiment(
        id=order.experiment_id,
        state=State.READY,
        tool=tool,
        params={},
        schedule=None,
        timezone=None,
        policy=validated(Policy, place, order.experiment),
    )
