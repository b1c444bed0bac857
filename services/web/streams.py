"""Server-sent events: what happens, a few times a second for each page that is looked at."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from services.web.live import Hub
from services.web.store_access import StoreAccess
from shared.errors import StoreError

TICK_SECONDS = 0.25
QUIET_SECONDS = 15.0
"""A comment is sent after so much silence, so that proxies don't close the connection."""

STREAMS_MAX = 100
LINES = 300
"""Log lines in one message; of more, the last ones."""

_CURSOR = re.compile(r"\d{1,20}-\d{1,20}")


async def live(request: Request) -> Response:
    """A stream of what happens to one run, or to all.

    Its ids are two cursors, of the journal and of the run's log; a browser that connects again sends the
    last one.
    """
    hub: Hub = request.app.state.hub
    if hub.pages >= STREAMS_MAX:
        raise HTTPException(503, f"{STREAMS_MAX} pages are open already")
    asked = request.query_params
    last = request.headers.get("last-event-id") or f"{asked.get('since', '')}/{asked.get('log', '')}"
    since, _, log = last.partition("/")
    stream = _Stream(
        hub,
        request.app.state.access,
        asked.get("run") or None,
        _cursor(since) or hub.cursor,
        _cursor(log) or "0-0",
    )
    return StreamingResponse(
        stream.messages(), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
    )


def _cursor(text: str) -> str:
    return text if _CURSOR.fullmatch(text) else ""


class _Stream:
    def __init__(self, hub: Hub, access: StoreAccess, run_id: str | None, since: str, log: str) -> None:
        self._hub = hub
        self._access = access
        self._run_id = run_id
        self._since = since
        self._log = log

    async def messages(self) -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        await self._hub.caught_up.wait()
        with self._hub.page(self._run_id, self._since) as gathered:
            until, quiet = gathered.cursor, 0.0
            if missed := await self._hub.missed(self._run_id, self._since, until):
                yield self._message(missed, until)
            while not self._hub.is_closing.is_set():
                said = {**gathered.drain(), **await self._lines()}
                if said:
                    quiet = 0.0
                    yield self._message(said, gathered.cursor)
                elif (quiet := quiet + TICK_SECONDS) >= QUIET_SECONDS:
                    quiet = 0.0
                    yield ": nothing happened\n\n"
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await self._hub.is_closing.wait()
            yield "event: bye\ndata: {}\n\n"

    async def _lines(self) -> dict[str, Any]:
        """What the run printed since the last look."""
        run_id, cursor = self._run_id, self._log
        if run_id is None:
            return {}
        try:
            lines = await self._access.ask(lambda store: store.history.lines(run_id, cursor))
        except StoreError:
            return {}  # the hub says so, and it is tried again
        if not lines:
            return {}
        self._log = lines[-1].cursor
        return {
            "log": [[line.stream, line.text] for line in lines[-LINES:]],
            "skipped": max(0, len(lines) - LINES),
        }

    def _message(self, said: Mapping[str, Any], cursor: str) -> str:
        text = json.dumps({**said, "connected": self._hub.is_connected}, separators=(",", ":"))
        return f"id: {cursor}/{self._log}\ndata: {text}\n\n"
