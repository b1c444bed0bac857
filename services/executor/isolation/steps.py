"""Answers a tool that asks whether an earlier attempt of its run has done a step already."""

import asyncio
from typing import Any

from services.executor.isolation.calls import Effects
from services.executor.isolation.connection import Connection


class Steps:
    """The questions of one process that are being answered."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(
        self, method: str, params: dict[str, Any], request_id: Any, effects: Effects | None, asker: Connection
    ) -> None:
        """Answer when the run's memory has; the process goes on being heard meanwhile."""
        work = _answer(method, str(params["key"]), params.get("value"), request_id, effects, asker)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        for task in self._tasks:
            task.cancel()


async def _answer(
    method: str, key: str, value: Any, request_id: Any, effects: Effects | None, asker: Connection
) -> None:
    """Ask the run's memory; when it fails, the tool gets a ConnectionError, which is retried."""
    try:
        known = None
        if effects is not None and method == "recall":
            known = await effects.recall(key)
        elif effects is not None:
            await effects.record(key, value)
    except Exception as error:
        asker.refuse(request_id, f"the steps of this run can't be recorded: {error}")
    else:
        asker.respond(request_id, known)
