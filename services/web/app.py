"""Puts the pages together."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from services.web import actions, experiment_pages, lists, reference_pages, run_page
from services.web.bodies import read_form
from services.web.live import Hub
from services.web.rendering import STATIC, page
from services.web.security import Access, Security
from services.web.store_access import StoreAccess
from services.web.streams import live
from shared.errors import ContractError, FullsendError, NotTriggeredError, RunNotFoundError, StoreError

ROUTES = [
    Route("/", lists.overview),
    Route("/throughput", lists.throughput),
    Route("/runs", lists.runs),
    Route("/run", run_page.run),
    Route("/run/history", run_page.history),
    Route("/run/log", run_page.log),
    Route("/run/artifact", run_page.artifact),
    Route("/run/cancel", actions.cancel_run, methods=["POST"]),
    Route("/run/again", actions.run_again, methods=["POST"]),
    Route("/experiments", experiment_pages.experiments),
    Route("/experiment", experiment_pages.experiment),
    Route("/experiment/trigger", experiment_pages.trigger_experiment, methods=["POST"]),
    Route("/experiment/state", experiment_pages.change_state, methods=["POST"]),
    Route("/schedules", reference_pages.schedules),
    Route("/tools", reference_pages.tools),
    Route("/live", live),
    Mount("/static", StaticFiles(directory=STATIC)),
]


@dataclass(frozen=True, slots=True)
class WebPage:
    """The page as an ASGI application.

    Attributes:
        app: to be served.
        hub: what streams read from; when `is_closing` is set, they end.
    """

    app: ASGIApp
    hub: Hub


def build(stored: StoreAccess, access: Access, *, place: str, channel: str) -> WebPage:
    """Put the page together.

    Args:
        stored: gives the store.
        access: who is let in.
        place: of the artifact store.
        channel: on which workers listen for triggers.
    """
    hub = Hub(stored.ask)

    @asynccontextmanager
    async def life(app: Starlette) -> AsyncIterator[None]:
        reading = asyncio.create_task(hub.run(), name="journal")
        try:
            yield
        finally:
            reading.cancel()
            with suppress(asyncio.CancelledError):
                await reading
            await stored.close()

    pages = Starlette(
        lifespan=life,
        routes=[*ROUTES, Route("/login", _log_in, methods=["GET", "POST"])],
        exception_handlers={FullsendError: _failed, HTTPException: _failed},
    )
    pages.state.access, pages.state.hub = stored, hub
    pages.state.place, pages.state.channel = place, channel
    return WebPage(_below(access.prefix, Security(pages, access)), hub)


async def _log_in(request: Request) -> Response:
    if request.method == "POST":
        form = await read_form(request)
        security: Security = request.scope["security"]
        return security.session_for(form.get("token", ""), form.get("to", "/"), request)
    return page(
        request,
        "login.html",
        to=request.query_params.get("to", "/"),
        is_wrong="wrong" in request.query_params,
    )


async def _failed(request: Request, exc: Exception) -> Response:
    match exc:
        case HTTPException():
            status, text = exc.status_code, exc.detail
        case RunNotFoundError():
            status, text = 404, str(exc)
        case StoreError():
            status, text = 503, str(exc)
        case NotTriggeredError() | ContractError():
            status, text = 409, str(exc)
        case _:
            status, text = 422, str(exc)
    return page(request, "problem.html", status, code=status, problem=text)


def _below(prefix: str, app: ASGIApp) -> ASGIApp:
    """Serve `app` below a path, whether the proxy in front removes it from requests or not."""
    if not prefix:
        return app

    async def prefixed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            has_prefix = path == prefix or path.startswith(f"{prefix}/")
            scope = {**scope, "root_path": prefix, "path": path if has_prefix else prefix + path}
        await app(scope, receive, send)

    return prefixed
