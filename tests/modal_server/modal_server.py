"""The server: its ports, its token, and a thread to run it in."""

import asyncio
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

import aiohttp.web
import grpclib.server
from grpclib import GRPCError, Status
from grpclib.events import RecvRequest, listen
from modal._utils.grpc_utils import custom_detail_codec
from modal_proto import api_pb2 as pb

from tests.modal_server.containers import url_of
from tests.modal_server.volumes import Volumes

T = TypeVar("T")
TOKEN = ("ak-test", "as-test")
"""The token that the server takes: its id and its secret."""


class ModalServer(Volumes):
    """Serves clients on one port of loopback, and each container on another one.

    Attributes:
        url: for `MODAL_SERVER_URL`.
    """

    url = ""

    async def start(self) -> None:
        """Listen."""
        self._server = grpclib.server.Server([self], status_details_codec=custom_detail_codec)
        listen(self._server, RecvRequest, _authenticate)
        await self._server.start("127.0.0.1", 0)
        self.url = url_of(self._server)
        app = aiohttp.web.Application(client_max_size=2**30)
        app.add_routes(self.routes())
        self._http = aiohttp.web.AppRunner(app)
        await self._http.setup()
        await aiohttp.web.TCPSite(self._http, "127.0.0.1", 0).start()
        host, port = self._http.addresses[0][:2]
        self.http_url = f"http://{host}:{port}"

    async def stop(self) -> None:
        """End all containers, and listen no more."""
        await self.stop_containers()
        self._server.close()
        await self._server.wait_closed()
        await self._http.cleanup()


async def _authenticate(event: RecvRequest) -> None:
    found = event.metadata
    if found.get("x-modal-client-type") == str(pb.CLIENT_TYPE_CONTAINER):
        return
    if (found.get("x-modal-token-id"), found.get("x-modal-token-secret")) != TOKEN:
        raise GRPCError(Status.UNAUTHENTICATED, "Token validation failed")


class RunningServer:
    """A server in a thread of its own, inside the block.

    Attributes:
        modal: the server; its state may be read, and changed through `call`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="modal server", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.modal = self.call(self._make())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.call(self.modal.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop, and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _make(self) -> ModalServer:
        server = ModalServer(self._folder)
        await server.start()
        return server
