"""What is written and said about a run: fields of its record, metric events, the result message.

Pure; the shapes are the contract's, see docs/redis.md.
"""

from collections.abc import Mapping
from typing import Any

from services.executor import metrics
from services.executor.outcome import Outcome, Status
from services.executor.result_cache import Identity
from services.executor.store import Claim, Finished, Order
from shared.documents import cut_middle, iso, json_text
from shared.messages import experiment_failed

Members = dict[str, Any]

EARLIER_ERROR_CHARACTERS = 1_000
"""Of an attempt that another one followed: a run may have a thousand of them."""


class Observer:
    """Is told what happens to runs; this one does nothing with it."""

    def begun(self, claim: Claim, tool: str | None, started: float) -> None:
        """An attempt began here, at `started` (unix seconds)."""

    def reporting(self, claim: Claim) -> None:
        """The outcome of an attempt is about to be stored."""

    def finished(self, claim: Claim, status: str, seconds: float, answer: Finished) -> None:
        """The store took or refused the end of a run whose last attempt took `seconds`."""

    def retried(self, claim: Claim, *, stored: bool) -> None:
        """Another attempt follows, unless this one had been taken away."""

    def given_back(self, claim: Claim) -> None:
        """An attempt ends, and its run goes back to the queue."""

    def abandoned(self, claim: Claim) -> None:
        """An attempt ends, for it can't go on."""

    def ended_unbegun(self, status: str) -> None:
        """A run ended that no attempt was under way for."""

    def taken_over(self) -> None:
        """A run of a dead worker went back to the queue."""

    def buried(self, status: str, tool: str | None) -> None:
        """A run of a dead worker ended; it is not tried again."""

    def fired(self, late_seconds: float) -> None:
        """A due time became runs."""

    def unavailable(self) -> None:
        """Redis was not there for a claim, a transition or a heartbeat."""


def identity_fields(order: Order) -> Members:
    """Where a run comes from."""
    return {
        "run_id": order.run_id,
        "experiment_id": order.experiment_id,
        "trigger": order.trigger,
        "triggered_by": order.triggered_by,
        "request_id": order.request_id,
        "scheduled_for": order.scheduled_for,
        "queued_at": iso(order.queued_at),
    }


def details(order: Order, identity: Identity | str | None, params: Mapping[str, Any] | None) -> Members:
    """What a record says besides what its claim wrote: where the run comes from, and all that it depends on.

    Of a run that can't be performed, only the digest of the tool's code may be known.
    """
    known = _identity_members(identity) if isinstance(identity, Identity) else {"tool_digest": identity}
    return {**identity_fields(order), **known, "params": params}


def _identity_members(identity: Identity) -> Members:
    return {
        "run_digest": identity.digest,
        "tool_digest": identity.tool_digest,
        "entry_point": identity.entry_point,
        "seed": identity.seed,
        "environment_digest": identity.environment_digest or None,
    }


def ending(
    order: Order, outcome: Outcome, started: float, ended: float, details: Members | None = None
) -> tuple[Members, list[Members], Members]:
    """What is written and said when a run ends: fields of its record, metric events, the result message."""
    fields = (identity_fields(order) if details is None else details) | end_fields(
        order, outcome, started, ended
    )
    return (
        fields,
        end_events(order, outcome, started, ended),
        result(order, outcome, started, ended),
    )


def end_fields(order: Order, outcome: Outcome, started: float, ended: float) -> Members:
    """What the end adds to the record."""
    completed, partial = outcome.status is Status.COMPLETED, outcome.partial_results
    finished_at = iso(ended)
    return {
        "attempt": str(order.attempt),
        "status": outcome.status.value,
        "finished_at": finished_at,
        "timestamp": finished_at,
        "duration_seconds": f"{ended - started:.6f}",
        "result_summary": outcome.summary if completed else None,
        "result": _text(outcome, "result", outcome.result) if completed else None,
        "artifacts": outcome.artifacts or None,
        "cached": "true" if outcome.cached_from else None,
        "cached_from": outcome.cached_from,
        "error": outcome.error,
        "error_type": outcome.error_type,
        "retryable": None if completed else str(outcome.retryable).lower(),
        "retry_after_seconds": outcome.retry_after_seconds,
        "traceback": outcome.shown.get("traceback", outcome.traceback),
        "partial_results": _text(outcome, "partial_results", partial) if partial is not None else None,
        "exit": outcome.exit,
        **_used(outcome),
        "attempts": list(order.history) or None,
    }


def _used(outcome: Outcome) -> Members:
    if outcome.used is None:
        return {}
    seconds = outcome.used.cpu_seconds
    return {
        "cpu_seconds": None if seconds is None else f"{seconds:.6f}",
        "peak_rss_bytes": str(outcome.used.peak_bytes),
    }


def retrying_event(order: Order, outcome: Outcome, delay_seconds: float) -> Members:
    """An attempt failed, another one follows."""
    return metrics.event(
        order.experiment_id,
        order.run_id,
        "run_retrying",
        attempt=order.attempt,
        delay_seconds=round(delay_seconds, 3),
        error=outcome.error,
        error_type=outcome.error_type,
    )


def end_events(order: Order, outcome: Outcome, started: float, ended: float) -> list[Members]:
    """The run's last metric events, in order."""

    def event(name: str, **members: Any) -> Members:
        return metrics.event(order.experiment_id, order.run_id, name, **members)

    events = []
    if outcome.items is not None:
        events.append(event("items_processed", count=outcome.items))
    if outcome.partial_count is not None:
        events.append(event("partial_completion", items_processed=outcome.partial_count))
    if outcome.status is Status.COMPLETED:
        events.append(event("run_completed", duration=round(ended - started, 6)))
    elif outcome.status is Status.CANCELLED:  # somebody's wish, which is no cause for an alert
        events.append(event("run_cancelled", message=outcome.error))
    else:
        details = {"message": outcome.error, "error_type": outcome.error_type}
        events.append(event("error", **details, **_failure_details(order, outcome)))
    return events


def result(order: Order, outcome: Outcome, started: float, ended: float) -> Members:
    """The message on the result channel."""
    message: Members = {
        "experiment_id": order.experiment_id,
        "run_id": order.run_id,
        "trigger": order.trigger,
        "duration": round(ended - started, 6),
    }
    if order.request_id is not None:
        message["request_id"] = order.request_id
    if outcome.status is Status.COMPLETED:
        done: Members = {
            "type": "experiment_completed",
            "status": "success",
            "result_summary": outcome.summary,
        }
        if outcome.cached_from:
            done["cached"] = True
        return done | message
    failed = experiment_failed(
        order.experiment_id, order.run_id, outcome.error, outcome.error_type, outcome.status.value
    ) | _failure_details(order, outcome)
    if outcome.partial_results is not None:
        shown = outcome.shown.get("partial_results", "")
        failed["partial_results"] = shown if shown.startswith("cas://") else outcome.partial_results
    return failed | message


def refusal(exc: Exception, experiment_id: str | None, request_id: str | None = None) -> Members:
    """The answer to a message or a key that can't become a run."""
    message = experiment_failed(experiment_id, None, str(exc), type(exc).__name__)
    return message if request_id is None else {**message, "request_id": request_id}


def failure(order: Order, outcome: Outcome, ended: float) -> Members:
    """An attempt as the record's `attempts` list it."""
    return {
        "attempt": order.attempt,
        "error": outcome.error and cut_middle(outcome.error, EARLIER_ERROR_CHARACTERS),
        "error_type": outcome.error_type,
        "at": iso(ended),
    }


def attempts_text(order: Order) -> str:
    """The record's `attempts`: JSON list of those before the one that `order` is for."""
    return json_text(list(order.history))


def _failure_details(order: Order, outcome: Outcome) -> Members:
    details: Members = {}
    if outcome.timeout_seconds is not None:
        details["timeout_seconds"] = outcome.timeout_seconds
    if order.attempt > 1:
        details["retry_attempts"] = order.attempt
    return details


def _text(outcome: Outcome, name: str, value: Any) -> str:
    """The record's text of a member, a reference if it was too large."""
    return outcome.shown[name] if name in outcome.shown else json_text(value)
