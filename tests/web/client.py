"""A plain HTTP client: nothing is added to a request, and no redirect is followed."""

import asyncio
import http.client
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from tests.conftest import PATIENCE_SECONDS

TOKEN = "the token of those who may act"
VIEW_TOKEN = "the token of those who look"


@dataclass(frozen=True)
class Answer:
    """What the page answered."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def csrf(self) -> str:
        """The token in the forms of the page."""
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', self.text)
        assert found is not None, self.text
        return found[1]


@dataclass
class Client:
    """Somebody who asks for pages; `headers` are sent with each request."""

    port: int
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """What a browser would say where a form is from."""
        return f"http://127.0.0.1:{self.port}"

    async def get(self, path: str, query: Mapping[str, str] | None = None, **headers: str) -> Answer:
        """Get a page."""
        asked = f"{path}?{urlencode(query)}" if query else path
        return await asyncio.to_thread(self._ask, "GET", asked, "", headers)

    async def post(self, path: str, form: Mapping[str, str], **headers: str) -> Answer:
        """Send a form."""
        chosen = {"content-type": "application/x-www-form-urlencoded", "origin": self.origin} | headers
        return await asyncio.to_thread(self._ask, "POST", path, urlencode(form), chosen)

    async def log_in(self, token: str = TOKEN) -> None:
        """Open the link that the command prints."""
        answer = await self.get("/login", {"token": token})
        assert answer.status == 303, answer
        self.headers["cookie"] = answer.headers["set-cookie"].partition(";")[0]

    @contextmanager
    def stream(self, query: Mapping[str, str], **headers: str) -> Iterator["Stream"]:
        """Listen to a stream, from a thread."""
        with closing(self._connect()) as connection:
            chosen = self._headers(headers)
            connection.request("GET", f"/live?{urlencode(query)}", headers=chosen)
            yield Stream(connection.getresponse())

    def _ask(self, method: str, path: str, body: str, headers: Mapping[str, str]) -> Answer:
        with closing(self._connect()) as connection:
            connection.request(method, path, body or None, self._headers(headers))
            answer = connection.getresponse()
            text = answer.read().decode()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)

    def _headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        return {"accept": "text/html", **self.headers, **{k.replace("_", "-"): v for k, v in headers.items()}}

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)


class Stream:
    """Server-sent events."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.last_id = ""

    def messages(self) -> Iterator[dict[str, Any]]:
        """Each message, decoded."""
        while line := self._response.readline().decode():
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "id":
                self.last_id = value
            elif name == "data":
                yield json.loads(value)

    def line(self) -> bytes:
        """The next line."""
        return self._response.readline()

    def rest(self) -> list[bytes]:
        """All lines until the end."""
        return self._response.readlines()
