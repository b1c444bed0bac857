"""Serves the page with uvicorn until SIGINT or SIGTERM."""

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from services.web.app import WebPage

CONNECTIONS_MAX = 500
CLOSING_SECONDS = 3


class _Server(uvicorn.Server):
    """Ends the streams of open pages first, for which uvicorn would wait."""

    def __init__(self, config: uvicorn.Config, close_streams: Callable[[], None]) -> None:
        super().__init__(config)
        self._close_streams = close_streams

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal to stop."""
        self._close_streams()
        super().handle_exit(sig, frame)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that the page is served on.

    Raises:
        OSError: the address is taken, or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=100)


def serve(web_page: WebPage, listening: socket.socket) -> None:
    """Serve the page until SIGINT or SIGTERM."""
    server_of(web_page).run(sockets=[listening])


def server_of(web_page: WebPage) -> uvicorn.Server:
    """Return the server of a page, which doesn't run yet."""
    config = uvicorn.Config(
        web_page.app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        limit_concurrency=CONNECTIONS_MAX,
        timeout_graceful_shutdown=CLOSING_SECONDS,
        proxy_headers=True,
        forwarded_allow_ips="127.0.0.1",
    )
    return _Server(config, web_page.hub.is_closing.set)
