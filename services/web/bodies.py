"""Reads what forms send, and checks that it was our own page that sent it."""

import hmac
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

BODY_MAX_BYTES = 1_000_000
FIELDS_MAX = 1_000

Form = Mapping[str, str]
Action = Callable[[Request, Form], Awaitable[Response]]
Page = Callable[[Request], Awaitable[Response]]


def action(act: Action) -> Page:
    """Make a page of a function that is called with the form, if its token is that of the session."""

    async def checked(request: Request) -> Response:
        form = await read_form(request)
        given = form.get("csrf", "").encode(errors="replace")
        if request.scope["needs_csrf"] and not hmac.compare_digest(given, request.scope["csrf"].encode()):
            raise HTTPException(403, "this form is from another session; load the page again")
        return await act(request, form)

    return checked


async def read_form(request: Request) -> Form:
    """Read a form; of a field that occurs more than once, the last value.

    Raises:
        HTTPException: it is too large, or no form.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            raise HTTPException(413, f"a form may have {BODY_MAX_BYTES:,} bytes at most")
    try:
        return dict(parse_qsl(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError as exc:
        raise HTTPException(400, f"the form can't be read: {exc}") from None


def need(values: Mapping[str, str], name: str) -> str:
    """A member of a query string or a form.  Raises `HTTPException` if it isn't there."""
    value = values.get(name, "")
    if not value:
        raise HTTPException(400, f"the request has no {name!r}")
    return value
