"""Gives pages the store, also after its server has moved to another address."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import TypeVar

from services.executor.store import Store
from shared.errors import StoreUnavailableError

Reply = TypeVar("Reply")


class StoreAccess:
    """Opens the store when it is first needed, and again when its server has another address.

    The embedded server has a new port after each start.

    Args:
        find: the address of the server now; raises `StoreUnavailableError` if it doesn't run.
        open_at: opens the store at an address.
    """

    def __init__(
        self, find: Callable[[], str], open_at: Callable[[str], AbstractAsyncContextManager[Store]]
    ) -> None:
        self._find = find
        self._open_at = open_at
        self._opened = AsyncExitStack()
        self._address = ""
        self._store: Store | None = None
        self._opening = asyncio.Lock()

    async def ask(self, act: Callable[[Store], Awaitable[Reply]]) -> Reply:
        """Call `act` with the store.

        Raises:
            StoreUnavailableError: the server can't be reached.
        """
        store = self._store or await self._at_new_address()
        try:
            return await act(store)
        except StoreUnavailableError:
            if await self._at_new_address() is store:
                raise
        return await act(await self._at_new_address())

    async def close(self) -> None:
        """Close the connections."""
        await self._opened.aclose()

    async def _at_new_address(self) -> Store:
        async with self._opening:
            address = await asyncio.to_thread(self._find)
            if self._store is None or address != self._address:
                await self._opened.aclose()
                self._store = await self._opened.enter_async_context(self._open_at(address))
                self._address = address
            return self._store
