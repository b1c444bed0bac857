"""Answers what a tool asks for while it runs: what an earlier attempt did, artifacts to keep and to fetch."""

import asyncio
from collections.abc import Awaitable
from typing import Any

from services.executor.isolation.calls import Refusal
from services.executor.isolation.common import protocol
from services.executor.isolation.connection import Connection


class Steps:
    """The questions of one process that are being answered."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, work: Awaitable[Any], request_id: Any, asker: Connection) -> None:
        """Answer when the work is done; the process goes on being heard meanwhile."""
        task = asyncio.get_running_loop().create_task(_answer(work, request_id, asker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Nobody waits for an answer any more."""
        for task in self._tasks:
            task.cancel()


async def _answer(work: Awaitable[Any], request_id: Any, asker: Connection) -> None:
    """The answer is the work's result; when it fails, the tool gets an error that says so."""
    try:
        known = await work
    except Refusal as refusal:
        asker.refuse(request_id, str(refusal), protocol.REFUSED)
    except Exception as error:
        asker.refuse(request_id, str(error))
    else:
        asker.respond(request_id, known)
