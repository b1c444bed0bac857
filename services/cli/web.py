"""`fullsend web`."""

import importlib.util
import ipaddress
import os
import secrets
from collections.abc import Sequence
from typing import Annotated

import typer

from services.cli import connection, output
from services.cli.output import CommandError
from shared import log

PACKAGES = ("starlette", "uvicorn")
INSTALL = "pip install 'fullsend-executor[web]'"
SHORTEST_TOKEN = 16
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def web(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 takes a free one.")
    ] = 8700,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A host name that the page is reached by, such as a proxy's. May be repeated.",
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(metavar="PATH", help="Path below which a proxy publishes the page, such as /fullsend."),
    ] = "",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Nobody can run or cancel anything.")
    ] = False,
    no_auth: Annotated[
        bool, typer.Option("--no-auth", help="Let every user of this machine in; only on loopback.")
    ] = False,
) -> None:
    """Serve a web page that shows and controls runs.

    The token of those who may act is WEB_TOKEN, that of those who may only look WEB_VIEW_TOKEN. Without
    WEB_TOKEN, a new one is made at each start and printed as part of the link, on loopback only.
    """
    check_packages()
    from services.web.app import build
    from services.web.security import Access
    from services.web.server import listen, serve
    from services.web.store_access import StoreAccess

    is_local = _is_loopback(host)
    act_token = _token(is_local=is_local, no_auth=no_auth)
    settings = connection.settings()
    log.configure(level=settings.log_level, for_good=True)
    stored = StoreAccess(
        lambda: connection.address(settings, connection.STARTING_SECONDS),
        lambda url: connection.store_at(url, settings),
    )
    try:
        listening = listen(host, port)
    except OSError as exc:
        raise CommandError(f"can't listen on {host} port {port}: {exc.strerror or exc}") from None
    port = listening.getsockname()[1]
    access = Access(
        hosts={*(LOOPBACK if is_local else (host,)), *(name.lower() for name in allow_host or ())},
        act_token=act_token,
        view_token=os.environ.get("WEB_VIEW_TOKEN", ""),
        read_only=read_only,
        prefix=_prefix(prefix),
        cookie=f"fullsend_session_{port}",
    )
    web_page = build(stored, access, place=settings.artifacts, channel=settings.trigger_channels[0])
    given = "WEB_TOKEN" in os.environ or no_auth
    shown = f"[{host}]" if ":" in host else host
    output.say(f"http://{shown}:{port}{access.prefix}/" + ("" if given else f"login?token={act_token}"))
    serve(web_page, listening)


def check_packages(names: Sequence[str] = PACKAGES) -> None:
    """Raise `CommandError` if a package is missing, by default of those in the extra `web`."""
    if any(importlib.util.find_spec(name) is None for name in names):
        raise CommandError(f"the page needs further packages; install them with: {INSTALL}")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _token(*, is_local: bool, no_auth: bool) -> str:
    """The token of those who may act; "" if nobody needs one.

    Raises:
        CommandError: these options would let strangers in.
    """
    given = os.environ.get("WEB_TOKEN", "")
    if no_auth and not is_local:
        raise CommandError(
            "--no-auth is allowed on loopback only: the page can run code; set WEB_TOKEN instead"
        )
    if no_auth:
        return ""
    if not given and not is_local:
        raise CommandError("beyond loopback the page needs a secret, for it can run code: set WEB_TOKEN")
    for name in ("WEB_TOKEN", "WEB_VIEW_TOKEN"):
        if 0 < len(os.environ.get(name, "")) < SHORTEST_TOKEN:
            raise CommandError(f"{name} is too short; it needs at least {SHORTEST_TOKEN} characters")
    return given or secrets.token_urlsafe(24)


def _prefix(text: str) -> str:
    path = text.strip("/")
    return f"/{path}" if path else ""
