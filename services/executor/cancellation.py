"""Ends runs that somebody does not want any more: by a message, or by whoever calls `cancel`."""

import asyncio
import re
import time

import structlog

from services.executor import report
from services.executor.outcome import Outcome, Status
from services.executor.store import Cancelled, Order, Store
from shared import keys
from shared.backoff import Outage, until_available
from shared.documents import json_object, member
from shared.errors import ContractError, FullsendError, StoreError

log = structlog.get_logger()

LONGEST_PAUSE_SECONDS = 1.0
_RUN_ID = re.compile(r".+:\d+-\d+", re.DOTALL)


class RunCancelledError(FullsendError):
    """Somebody asked for the run's end."""


async def cancel(store: Store, run_id: str) -> Cancelled:
    """Ask for a run's end.

    A run that waits ends at once; one under way is ended by the worker that has
    it, at its next heartbeat.  May be asked for by any number of workers at once.

    Args:
        store: where the run is.
        run_id: `{experiment_id}:{timestamp}`.
    """
    experiment_id, _, timestamp = run_id.rpartition(":")
    order = Order(experiment_id, trigger="", timestamp=timestamp)
    now = time.time()
    outcome = Outcome.of_error(RunCancelledError("the run was cancelled while it waited"), Status.CANCELLED)
    fields = {"run_id": run_id, "experiment_id": experiment_id}
    fields |= report.end_fields(order, outcome, now, now)
    [event] = report.end_events(order, outcome, now, now)
    return await store.runs.cancel(order, fields, event, report.result(order, outcome, now, now))


class Cancellations:
    """Listens for run ids on `fullsend:executor:cancel`: `{"run_id": ...}`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def run(self) -> None:
        """Listen until cancelled; a broken connection is made again."""
        outage = Outage("cancellations", LONGEST_PAUSE_SECONDS)
        while True:
            try:
                async with self._store.subscriptions.to((keys.CANCEL,)) as messages:
                    outage.ended()
                    async for message in messages:
                        await self._take(message.data)
            except StoreError as exc:
                await asyncio.sleep(outage.failed(exc))

    async def _take(self, data: str) -> None:
        try:
            run_id = member(
                "cancellation", "run_id", json_object("cancellation", data).get("run_id"), _run_id
            )
        except ContractError as exc:
            log.warning("cancellation.refused", error=str(exc))
            return
        answer = await until_available("cancellation", lambda: cancel(self._store, run_id))
        log.info("run.cancellation", run_id=run_id, answer=answer.value)


def _run_id(value: object) -> str:
    if not isinstance(value, str) or not _RUN_ID.fullmatch(value):
        raise ValueError("must be {experiment_id}:{timestamp}")
    return value
