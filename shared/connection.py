"""Connect to Redis: the address from the settings, time-outs that fit what is waited for."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from shared.embedded import DEFAULT_DIRECTORY, EmbeddedServer, running_url
from shared.errors import SettingsError, StoreUnavailableError
from shared.log import keep_secret

SCHEMES = ("redis", "rediss", "unix")
CONNECT_TIMEOUT_SECONDS = 5.0


def check_url(url: str) -> str:
    """`url`, if it names a server; raises `SettingsError` that says what is accepted."""
    if is_embedded(url):
        return url
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port is None or parts.port > 0
    except ValueError as exc:
        raise SettingsError(f"{without_password(url)!r} is not an address: {exc}") from None
    named = parts.path if parts.scheme == "unix" else parts.hostname
    if parts.scheme not in SCHEMES or not named or not port_is_fine:
        raise SettingsError(
            f"{without_password(url)!r} is not an address of a Redis server; expected redis://HOST:PORT/DB, "
            "rediss://..., unix:///PATH, embedded or embedded:PATH"
        )
    try:
        connect(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (TypeError, ValueError, RedisError) as exc:
        raise SettingsError(f"{without_password(url)!r} is not an address: {exc}") from None
    return url


def is_embedded(url: str) -> bool:
    """Whether `url` asks for the embedded server."""
    return url == "embedded" or url.startswith("embedded:")


def embedded_directory(url: str) -> Path:
    """Where the embedded server that `url` asks for keeps its data."""
    return Path(url.removeprefix("embedded").removeprefix(":") or DEFAULT_DIRECTORY)


@contextlib.contextmanager
def server(url: str) -> Iterator[str]:
    """The address to connect to while the block runs; holds the embedded server if that is asked for."""
    if not is_embedded(url):
        yield url
        return
    held = EmbeddedServer.acquire(embedded_directory(url))
    try:
        yield held.url
    finally:
        held.release()


def running_server(url: str) -> str:
    """The address to connect to, without starting anything.

    Raises:
        StoreUnavailableError: the embedded server of that directory isn't running.
    """
    if not is_embedded(url):
        return url
    found = running_url(embedded_directory(url))
    if found is None:
        raise StoreUnavailableError(
            f"no embedded server runs in {embedded_directory(url)}; "
            "start `fullsend worker` or `fullsend demo` here, or set REDIS_URL"
        )
    return found


def connect(url: str, *, connections: int = 16) -> Redis:
    """A client for commands.  Opens nothing until it is used; who asks, keeps the time.

    A dead connection is tried again once or twice within a fraction of a
    second; what is still down then is the caller's to wait for.
    """
    return _client(url, connections, retries=2)


def connect_patiently(url: str) -> Redis:
    """A client for what may rightly take for ever: a blocking read, a subscription.

    redis-py's default socket time-out would end an idle subscription after
    five seconds; TCP keep-alive finds the dead peers instead.  Nothing is tried
    again unseen: who was cut off has to look for what it missed.
    """
    return _client(url, 4, retries=0)


def _client(url: str, connections: int, retries: int) -> Redis:
    options: dict[str, Any] = dict(parse_url(url))
    keep_secret(options.get("password") or "")
    if options.get("connection_class") is not UnixDomainSocketConnection:
        options["socket_keepalive"] = True
        options["socket_connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    options.update(
        socket_timeout=None,
        protocol=2,  # in the other one, answers have other shapes
        decode_responses=True,
        encoding_errors="surrogateescape",  # neighbours' bytes come back as they were
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), retries=retries),
        max_connections=connections,
        timeout=None,
    )
    return Redis.from_pool(BlockingConnectionPool(**options))


def without_password(url: str) -> str:
    """`url` as it may be shown and logged."""
    url = re.sub(r"(?<=[?&]password=)[^&]*", "***", url)
    head, at, tail = url.rpartition("@")
    scheme, slashes, _ = head.partition("://")
    return f"{scheme + slashes if slashes else ''}***@{tail}" if at else url
