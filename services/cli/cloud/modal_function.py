"""What Modal calls in a container: the function `call_tool` of the app that `fullsend modal deploy` makes.

The settings of an executor apply, from the environment of the image: time limit, isolation, sandbox,
variables of tools, and where their environments are kept.
"""

import asyncio
import os
from functools import cache
from pathlib import Path

from services.cli import connection
from services.planner.backends.modal_container import ToolContainer
from services.planner.backends.modal_options import SLOTS_VARIABLE
from services.planner.backends.remote import RemoteCall
from shared import log

FOLDER = Path(".fullsend/container")


async def call_tool(content: bytes, code: str, lease_seconds: float, permit: str) -> bytes:
    """Call a tool once, and return its result as JSON; arguments as in `ToolContainer.call`."""
    container = await asyncio.shield(_opening())
    return await container.call(RemoteCall.decode(content), code, lease_seconds, permit)


@cache
def _opening() -> asyncio.Task[ToolContainer]:
    """Open the pool of this container, once."""
    return asyncio.create_task(_opened(), name="container")


async def _opened() -> ToolContainer:
    log.configure(level="warning")
    slots = int(os.environ.get(SLOTS_VARIABLE, "1"))
    container = ToolContainer(connection.places(connection.settings()), slots, FOLDER)
    await container.open()
    return container
