"""Connects commands to Redis."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from services.executor import config
from services.executor.isolation.common.kernel import set_dumpable
from services.executor.service import retention, store_options
from services.executor.store import JournalEntry, Store
from services.planner.runtime import RuntimeConfig
from shared.connection import connect, connect_blocking, is_embedded, naming_database, running_server
from shared.errors import StoreUnavailableError

Reply = TypeVar("Reply")

STARTING_SECONDS = 3.0
"""How long a command waits for a worker that was started just before it."""

PAUSE_SECONDS = 0.05
READ_WAIT_MS = 5_000
RECONNECT_SECONDS = 1.0


def settings() -> config.Settings:
    """Read the settings; without REDIS_URL, they name the embedded server of this directory.

    From now on, tools can't look into this process, which knows how to reach Redis.

    Raises:
        SettingsError: one line for each mistake.
    """
    set_dumpable(False)
    found = config.load()
    return found if "redis_url" in found.model_fields_set else config.load(redis_url="embedded")


def places(chosen: config.Settings) -> RuntimeConfig:
    """Return the paths and limits in the settings that tools need to run in this process."""
    return RuntimeConfig(**{name: getattr(chosen, name) for name in RuntimeConfig.__dataclass_fields__})


def address(chosen: config.Settings, wait_seconds: float = 0.0) -> str:
    """Return the URL of the running server.  Never starts a server.

    Args:
        chosen: the settings.
        wait_seconds: how long to wait until the embedded server runs.

    Raises:
        StoreUnavailableError: the embedded server of this directory isn't running.
    """
    deadline = time.monotonic() + wait_seconds
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
    wait_seconds: float = 0.0,
) -> Reply:
    """Call `act` with the store, in a new event loop, and return its result.

    Args:
        act: what to do; the connections are closed when it returns.
        chosen: the settings; by default they are read.
        wait_seconds: how long to wait until the embedded server runs.

    Raises:
        StoreUnavailableError: the server can't be reached.
    """
    chosen = chosen or settings()
    url = address(chosen, wait_seconds)

    async def call() -> Reply:
        async with store_at(url, chosen) as store:
            return await act(store)

    return asyncio.run(call())


@contextlib.asynccontextmanager
async def store_at(url: str, chosen: config.Settings) -> AsyncIterator[Store]:
    """Connect to the store at `url`; the connections are closed at the end of the block."""
    client, patient = connect(url), connect_blocking(url)
    try:
        with naming_database(client):
            yield Store.on(client, patient, retention(chosen), options=store_options(chosen))
    finally:
        await client.aclose()
        await patient.aclose()


async def follow(store: Store, cursor: str, redis_url: str) -> AsyncIterator[JournalEntry]:
    """Yield the journal's entries after `cursor`, without end; wait while the server is away.

    Raises:
        StoreUnavailableError: the embedded server has stopped; it would return at another address.
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
