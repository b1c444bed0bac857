"""`fullsend cancel`."""

import asyncio
from typing import Annotated

import typer

from services.cli import connection, output
from services.cli.output import CommandError
from services.cli.runs import RunId
from services.executor.cancellation import cancel as ask_for_the_end
from services.executor.outcome import Status
from services.executor.store import Cancelled, Store

LOOK_SECONDS = 0.1


def cancel(
    run_id: RunId,
    wait: Annotated[bool, typer.Option(help="Wait until a run under way has ended.")] = True,
) -> None:
    """End a run: one that waits never starts, one under way is ended and keeps what it had yielded."""

    async def act(store: Store) -> str:
        answer = await ask_for_the_end(store, run_id)
        if answer is Cancelled.OVER:
            raise CommandError(await _why_over(store, run_id))
        if answer is Cancelled.CANCELLING and wait:
            return f"{run_id} is {await _end_of(store, run_id)}"
        return f"{run_id} is {'being ended' if answer is Cancelled.CANCELLING else 'cancelled'}"

    output.console().print(connection.with_store(act), highlight=False, markup=False)


async def _end_of(store: Store, run_id: str) -> str:
    """The status that a run under way ends with."""
    while True:
        status = await store.history.status(run_id)
        if status not in (None, Status.RUNNING):
            return str(status)
        await asyncio.sleep(LOOK_SECONDS)


async def _why_over(store: Store, run_id: str) -> str:
    status = await store.history.status(run_id)
    if status is None:
        return f"there is no run {run_id!r}; `fullsend runs` lists those that there are"
    return f"{run_id} is {status} already"
