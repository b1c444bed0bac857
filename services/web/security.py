"""Who may see the page and who may act; what browsers are told.  An ASGI middleware around all pages.

The page can run code with the rights of the workers, so each request is checked: its host (against DNS
rebinding), its session, and for anything but reading its origin and a token that other sites can't know.
"""

import hashlib
import hmac
import secrets
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import IntEnum
from urllib.parse import quote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
}
SESSION_SECONDS = 12 * 3_600
LOGINS, LOGIN_SECONDS = 10, 60.0
"""So many wrong log-ins are answered in so many seconds, from all addresses together."""

READING = ("GET", "HEAD")
PUBLIC = ("/login", "/static/")
"""Pages that show nothing of the runs."""


class Right(IntEnum):
    """What a session may do."""

    NONE = 0
    VIEW = 1
    ACT = 2


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in.

    Attributes:
        hosts: names that the page is reached by, without ports.
        act_token: the secret of those who may act; "" if nobody needs one (`--no-auth`).
        view_token: the secret of those who may only look; "" if there is none.
        read_only: whether nobody may act.
        prefix: the path below which a proxy publishes the page, such as `/fullsend`.
        cookie: the name of the session's cookie; browsers don't keep cookies of two ports apart.
    """

    hosts: Collection[str]
    act_token: str
    view_token: str = ""
    read_only: bool = False
    prefix: str = ""
    cookie: str = "fullsend_session"

    def right_of(self, secret: str) -> Right:
        """What somebody may do who knows this secret."""
        if self.act_token and _same(secret, self.act_token):
            return self._at_most(Right.ACT)
        if self.view_token and _same(secret, self.view_token):
            return Right.VIEW
        return Right.NONE

    @property
    def right_of_all(self) -> Right:
        """What everybody may do."""
        return Right.NONE if self.act_token else self._at_most(Right.ACT)

    def _at_most(self, right: Right) -> Right:
        return min(right, Right.VIEW) if self.read_only else right


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode(errors="replace"))


@dataclass(slots=True)
class Sessions:
    """Signed sessions; the key is new with each start, so none outlives the process."""

    _key: bytes = field(default_factory=lambda: secrets.token_bytes(32))

    def new(self, right: Right) -> str:
        """A session that begins now."""
        text = f"{int(time.time()) + SESSION_SECONDS}.{int(right)}.{secrets.token_urlsafe(12)}"
        return f"{text}.{self._sign('session', text)}"

    def right(self, session: str) -> Right:
        """What a session may do; nothing if it is over or not ours."""
        text, _, mark = session.rpartition(".")
        if not _same(mark, self._sign("session", text)):
            return Right.NONE
        until, right, _ = text.split(".")
        return Right(int(right)) if int(until) > time.time() else Right.NONE

    def csrf(self, session: str) -> str:
        """What a form of this session has to contain."""
        return self._sign("csrf", session)

    def _sign(self, purpose: str, text: str) -> str:
        message = f"{purpose}:{text}".encode(errors="replace")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()


class Security:
    """Lets requests through to `app` that may pass, and adds headers to every response.

    For the pages, `scope` then has `csrf` (the token for forms) and `right`.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access
        self._sessions = Sessions()
        self._wrong: deque[float] = deque(maxlen=LOGINS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        scope["security"] = self

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("content-security-policy", POLICY)
                headers.setdefault("cache-control", "no-store")
                headers.update(HEADERS)
            await send(message)

        refused = self._refused(request)
        if refused is not None:
            await refused(scope, receive, told)
            return
        await self._app(scope, receive, told)

    def _refused(self, request: Request) -> Response | None:
        """The response to a request that may not pass; else `scope` has what the session may do."""
        path = request.scope["path"].removeprefix(self._access.prefix)
        if _host_name(request.headers.get("host", "")) not in self._access.hosts:
            return PlainTextResponse("this host name is not served here (see --allow-host)\n", 421)
        if request.method not in READING and not _is_ours(request):
            return PlainTextResponse("refused: the request comes from another site\n", 403)
        session = request.cookies.get(self._access.cookie, "")
        right = self._sessions.right(session) if session else Right.NONE
        bearer = self._bearer(request)
        if bearer is not None:
            if self._is_throttled():
                return _too_many()
            right = self._checked(bearer)
        request.scope["right"] = max(right, self._access.right_of_all)
        request.scope["csrf"] = self._sessions.csrf(session)
        if path == "/login":
            return self._log_in(request) if request.query_params.get("token") else None
        if request.scope["right"] is Right.NONE and not path.startswith(PUBLIC):
            if "text/html" not in request.headers.get("accept", ""):
                return PlainTextResponse("log in first, or send Authorization: Bearer TOKEN\n", 401)
            ask = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(f"{self._access.prefix}/login?to={quote(path + ask, safe='')}", 303)
        if request.method not in READING and not path.startswith(PUBLIC):
            return self._may_not_act(request, bearer is not None)
        return None

    def _may_not_act(self, request: Request, has_bearer: bool) -> Response | None:
        if request.scope["right"] is not Right.ACT:
            return PlainTextResponse("this session may look, but not act\n", 403)
        request.scope["needs_csrf"] = not has_bearer
        return None

    def _bearer(self, request: Request) -> str | None:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        return given if kind.lower() == "bearer" else None

    # -- logging in -------------------------------------------------------------------

    def _log_in(self, request: Request) -> Response:
        return self.session_for(request.query_params["token"], request.query_params.get("to", "/"), request)

    def session_for(self, secret: str, to: str, request: Request) -> Response:
        """Begin a session for somebody who gave this secret, and send the browser to the path `to`."""
        if self._is_throttled():
            return _too_many()
        right = self._checked(secret)
        if right is Right.NONE:
            return RedirectResponse(f"{self._access.prefix}/login?wrong=1&to={quote(to, safe='')}", 303)
        place = to if to.startswith("/") and not to.startswith(("//", "/\\")) else "/"
        response = RedirectResponse(self._access.prefix + place, 303)
        response.set_cookie(
            self._access.cookie,
            self._sessions.new(right),
            max_age=SESSION_SECONDS,
            path=self._access.prefix + "/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    def _is_throttled(self) -> bool:
        return len(self._wrong) == LOGINS and time.monotonic() - self._wrong[0] < LOGIN_SECONDS

    def _checked(self, secret: str) -> Right:
        right = self._access.right_of(secret)
        if right is Right.NONE:
            self._wrong.append(time.monotonic())
        return right


def _too_many() -> Response:
    return PlainTextResponse("too many wrong log-ins; wait a minute\n", 429)


def _host_name(host: str) -> str:
    """The name in a header `Host`, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_ours(request: Request) -> bool:
    """Whether a request that changes something comes from our own page, or from no browser."""
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    if site not in (None, "same-origin"):
        return False
    if origin is not None:
        return urlsplit(origin).netloc == request.headers.get("host", "")
    return site is not None or request.headers.get("authorization", "").lower().startswith("bearer ")
