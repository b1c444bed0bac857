"""A store that tells an `Observer` what each transition came to.

Every transition of a run passes through the store, so that is where it is
watched; without an observer it is the plain store, and nothing is measured.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.executor.observe import Observer
from services.executor.outcome import Status
from services.executor.store import (
    Begun,
    Cancelled,
    Claim,
    Decision,
    Deliveries,
    DueTimes,
    Finished,
    Fired,
    Order,
    Queue,
    Retention,
    Runs,
    Store,
    Stored,
    Workers,
)
from services.executor.store.scripts import Scripts


def store_on(client: Any, patient: Any, retention: Retention, observer: Observer | None) -> Store:
    """`Store.on` these, with `observer` told of what goes through it."""
    plain = Store.on(client, patient, retention)
    if observer is None:
        return plain
    scripts = Scripts(client)
    deliveries = Deliveries(scripts, retention.record_ms, retention.journal)
    return replace(
        plain,
        queue=_Queue(observer, scripts, patient, deliveries),
        runs=_Runs(observer, scripts, plain.experiments, retention),
        due_times=_DueTimes(observer, scripts, deliveries),
        workers=_Workers(observer, scripts),
    )


class _Watched:
    def __init__(self, observer: Observer, *parts: Any) -> None:
        super().__init__(*parts)
        self._observer = observer


class _Queue(_Watched, Queue):
    async def claim(self, worker: str, count: int, wait_ms: int, *args: Any, **kwargs: Any) -> list[Claim]:
        return await self._observer.asked(super().claim(worker, count, wait_ms, *args, **kwargs))

    async def requeue(self, claim: Claim, order: Order, *args: Any, **kwargs: Any) -> bool:
        self._observer.given_back(claim)
        stored = await self._observer.asked(super().requeue(claim, order, *args, **kwargs))
        if stored:
            self._observer.recovered(claim)
        return stored


class _Runs(_Watched, Runs):
    async def begin(
        self, claim: Claim, stored: Stored, fields: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[Begun, Stored]:
        answer = await self._observer.asked(super().begin(claim, stored, fields, *args, **kwargs))
        if answer[0] is Begun.BEGUN:
            self._observer.began(claim, fields)
        return answer

    async def finish(
        self, claim: Claim, stored: Stored, state: Any, fields: Mapping[str, Any], *args: Any, **kwargs: Any
    ) -> Finished:
        self._observer.reporting(claim)
        call = super().finish(claim, stored, state, fields, *args, **kwargs)
        answer = await self._observer.asked(call, claim)
        self._observer.finished(claim, stored, fields, answer)
        return answer

    async def reject(self, claim: Claim, fields: Mapping[str, Any], *args: Any, **kwargs: Any) -> Finished:
        answer = await self._observer.asked(super().reject(claim, fields, *args, **kwargs))
        if answer is Finished.FINISHED:
            self._observer.ended_waiting(str(fields["status"]))
        return answer

    async def retry(self, claim: Claim, *args: Any, **kwargs: Any) -> bool:
        self._observer.reporting(claim)
        stored = await self._observer.asked(super().retry(claim, *args, **kwargs), claim)
        self._observer.retried(claim, stored=stored)
        return stored

    async def cancel(self, order: Order, *args: Any, **kwargs: Any) -> Cancelled:
        answer = await self._observer.asked(super().cancel(order, *args, **kwargs))
        if answer is Cancelled.CANCELLED:
            self._observer.ended_waiting(Status.CANCELLED)
        return answer


class _DueTimes(_Watched, DueTimes):
    async def fire(self, decision: Decision, *args: Any, **kwargs: Any) -> Fired:
        answer = await self._observer.asked(super().fire(decision, *args, **kwargs))
        if answer.what == "fired":
            self._observer.fired(answer.late_ms / 1_000)
        return answer


class _Workers(_Watched, Workers):
    async def heartbeat(self, worker: str, ttl_seconds: float, *, listening: bool) -> list[str]:
        return await self._observer.asked(super().heartbeat(worker, ttl_seconds, listening=listening))
