"""What the queue handed out: the claims in it.  An order that nobody can read is put away and answered."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import structlog
from msgspec.structs import replace

from services.executor.store.experiments import Experiments, Stored, read_stored
from services.executor.store.orders import Claim, Order
from services.executor.store.scripts import Script, Scripts, flat
from shared import keys
from shared.documents import iso, json_text
from shared.errors import ContractError
from shared.messages import State

log = structlog.get_logger()

GROUP = "executors"

_PUT_AWAY = Script(
    "put_away",
    keys=("queue", "journal", "run_keys[]"),
    args=(
        "group", "entry", "result", "journal_cap", "timestamp", "run", "kept_ms", "state", "expected",
        "replacement", "fields[]",
    ),
)  # fmt: skip

Fields = Mapping[str, str]
Delivery = tuple[str, str, Fields]
"""An entry that was handed out: its queue, its id, its fields."""

_NONE: Mapping[str, Stored] = {}
_NO_ORDERS: Mapping[str, Order] = {}


class Deliveries:
    """Reads what was handed out.

    Args:
        scripts: for transitions.
        record_ms: how long the record of a run is kept that ends here.
        journal_kept: how many messages the journal holds.
    """

    def __init__(self, scripts: Scripts, record_ms: int, journal_kept: int) -> None:
        self._scripts = scripts
        self._experiments = Experiments(scripts)
        self._record_ms = record_ms
        self._journal_kept = journal_kept

    async def claims(
        self,
        worker: str,
        deliveries: Iterable[Delivery],
        experiments: Mapping[str, Stored] = _NONE,
        known: Mapping[str, Order] = _NO_ORDERS,
    ) -> list[Claim]:
        """The claims of `worker` among what was handed out; nonsense would come again for ever.

        Args:
            worker: whose these are.
            deliveries: what was handed out.
            experiments: as far as they were read on the way, by id.
            known: orders without a timestamp, by their texts: these needn't be read.
        """
        claims = []
        for queue, entry, fields in deliveries:
            try:
                written = known.get(fields.get("order", ""))
                order = order_in(entry, fields) if written is None else replace(written, timestamp=entry)
            except ContractError as exc:
                log.warning("order.unreadable", entry=entry, error=str(exc))
                await self._put_away(queue, entry, Order.run_named_in(fields.get("order", ""), entry), exc)
            else:
                claims.append(Claim(queue, entry, worker, order, experiments.get(order.experiment_id)))
        return claims

    async def handed_out(
        self, worker: str, claims: Any, experiments: Any, known: Mapping[str, Order] = _NO_ORDERS
    ) -> list[Claim]:
        """What a script has handed out to `worker`, see `claims.lua`; probably what it had just queued."""
        deliveries = [(queue, entry, _fields(pairs)) for queue, entry, pairs in claims]
        stored = {one[0]: read_stored(*one) for one in experiments}
        return await self.claims(worker, deliveries, stored, known)

    async def _put_away(self, queue: str, entry: str, run: Order | None, exc: ContractError) -> None:
        """The run that the order names ends here; without one, there are only the message and the entry."""
        while True:
            stored = Stored.nothing() if run is None else await self._experiments.read(run.experiment_id)
            answer = await self._scripts.call(
                _PUT_AWAY,
                [queue, keys.journal(), *(() if run is None else _run_keys(run))],
                [
                    GROUP,
                    entry,
                    json_text(_refusal(run, exc)),
                    self._journal_kept,
                    run.timestamp or "" if run else "",
                    run.run_id if run else "",
                    self._record_ms,
                    *stored.move(State.FAILED, only_from=State.RUNNING),
                    flat(_ended(run, exc) if run else {}),
                ],
            )
            if answer != "conflict":
                return


def _fields(pairs: Sequence[str]) -> Fields:
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


def order_in(entry: str, fields: Fields) -> Order:
    """The order in an entry.  Raises `ContractError`."""
    if "order" not in fields:
        raise ContractError(f"queue entry {entry} has no field 'order'")
    return Order.from_json(fields["order"], entry)


def _run_keys(run: Order) -> list[str]:
    return [keys.run(run.run_id), keys.experiment(run.experiment_id), keys.open_runs(run.experiment_id)]


def _refusal(run: Order | None, exc: ContractError) -> dict[str, Any]:
    """The message on the result channel, like any other about what can't become a run."""
    return {
        "type": "experiment_failed",
        "experiment_id": run.experiment_id if run else None,
        "run_id": run.run_id if run else None,
        "status": "failed",
        "error": str(exc),
        "error_type": type(exc).__name__,
    }


def _ended(run: Order, exc: ContractError) -> dict[str, Any]:
    now = iso(time.time())
    return {
        "run_id": run.run_id,
        "experiment_id": run.experiment_id,
        "status": "failed",
        "finished_at": now,
        "timestamp": now,
        "error": str(exc),
        "error_type": type(exc).__name__,
    }
