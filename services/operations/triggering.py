"""Triggers an experiment for somebody who wants to know the run."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from services.executor.store import Store
from shared.errors import NotTriggeredError
from shared.messages import State

STARTING_SECONDS = 3.0
"""How long a worker is waited for that was started just before."""

QUEUED_SECONDS = 10.0
PAUSE_SECONDS = 0.05


async def send_trigger(store: Store, channel: str, message: Mapping[str, Any]) -> str:
    """Publish the trigger, wait until a worker queues the run, and return the run's id.

    Args:
        store: where the experiment is.
        channel: on which workers listen.
        message: has the members `experiment_id` and `request_id`.

    Raises:
        NotTriggeredError: the experiment is archived, or no worker reacts.
    """
    experiment_id = message["experiment_id"]
    stored = await store.experiments.read(experiment_id)
    if stored.readable().state is State.ARCHIVED:
        raise NotTriggeredError(f"experiments:{experiment_id} is archived, so it can't be run")
    await _await_listener(store)
    if not await store.triggers.send(channel, message):
        raise NotTriggeredError(
            f"no worker listens on {channel}, so the trigger is lost; start `fullsend worker`"
        )
    deadline = time.monotonic() + QUEUED_SECONDS
    while time.monotonic() < deadline:
        run_id = await store.queue.run_of(experiment_id, message["request_id"])
        if run_id is not None:
            return run_id
        await asyncio.sleep(PAUSE_SECONDS)
    raise NotTriggeredError(
        f"no worker queued the run within {QUEUED_SECONDS:g} s after the trigger on {channel}"
    )


async def _await_listener(store: Store) -> None:
    """Wait until a worker listens.  Raises `NotTriggeredError` if none does in time."""
    deadline = time.monotonic() + STARTING_SECONDS
    while not await store.workers.listening():
        if time.monotonic() >= deadline:
            raise NotTriggeredError(_no_listener(await store.workers.alive()))
        await asyncio.sleep(PAUSE_SECONDS)


def _no_listener(alive: Sequence[str]) -> str:
    if not alive:
        return "no worker is running, so nothing was sent; start one with `fullsend worker`"
    return (
        f"no worker listens for triggers, so nothing was sent; running: {', '.join(alive)}; "
        "start one with `trigger` in SCHEDULE_MODE"
    )
