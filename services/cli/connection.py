"""Which Redis a command speaks to, and how it does."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from services.executor import config
from services.executor.service import retention
from services.executor.store import Entry, Store
from services.planner.runtime import Places
from shared.connection import connect, connect_patiently, is_embedded, running_server
from shared.errors import StoreUnavailableError

Reply = TypeVar("Reply")

STARTING_SECONDS = 3.0
"""How long a command that needs a worker waits for one that was started just before it."""

PAUSE_SECONDS = 0.05
READ_WAIT_MS = 5_000
RECONNECT_SECONDS = 1.0


def settings() -> config.Settings:
    """The settings; where no REDIS_URL is set, commands speak to the embedded server of this directory."""
    found = config.load()
    return found if "redis_url" in found.model_fields_set else config.load(redis_url="embedded")


def places(chosen: config.Settings) -> Places:
    """Where the settings say that things are, for what is executed in this process."""
    return Places(**{name: getattr(chosen, name) for name in Places.__dataclass_fields__})


def address(chosen: config.Settings, patience_seconds: float = 0.0) -> str:
    """Where the server is.  Never starts one.

    Args:
        chosen: the settings.
        patience_seconds: how long to wait for the embedded server to come up.

    Raises:
        StoreUnavailableError: the embedded server of this directory isn't running.
    """
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            return running_server(chosen.redis_url)
        except StoreUnavailableError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(PAUSE_SECONDS)


def with_store(
    act: Callable[[Store], Awaitable[Reply]],
    chosen: config.Settings | None = None,
    patience_seconds: float = 0.0,
) -> Reply:
    """What `act` comes to on the store; connections are closed after it."""
    chosen = chosen or settings()
    url = address(chosen, patience_seconds)
    return asyncio.run(on(url, chosen, act))


async def on(url: str, chosen: config.Settings, act: Callable[[Store], Awaitable[Reply]]) -> Reply:
    """What `act` comes to on the store at `url`."""
    client, patient = connect(url), connect_patiently(url)
    try:
        return await act(Store.on(client, patient, retention(chosen)))
    finally:
        await client.aclose()
        await patient.aclose()


async def follow(store: Store, cursor: str, redis_url: str) -> AsyncIterator[Entry]:
    """The journal after `cursor`, for ever; a server that is away for a while is waited for.

    Raises:
        StoreUnavailableError: the embedded server has stopped; it comes back elsewhere, if at all.
    """
    while True:
        try:
            entries = await store.journal.read(cursor, READ_WAIT_MS)
        except StoreUnavailableError:
            if is_embedded(redis_url):
                raise
            await asyncio.sleep(RECONNECT_SECONDS)
            continue
        for entry in entries:
            cursor = entry.cursor
            yield entry
