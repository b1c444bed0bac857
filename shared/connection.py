"""Connections to Redis: addresses, clients for commands and for blocking reads, and Sentinel."""

import asyncio
import contextlib
import re
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel, SentinelConnectionPool
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import RedisError

from shared.embedded import DEFAULT_DIRECTORY, EmbeddedServer, running_url
from shared.errors import StoreUnavailableError, UnknownDatabaseError
from shared.log import keep_secret

SCHEMES = ("redis", "rediss", "unix")
SENTINEL_SCHEMES = ("redis+sentinel", "rediss+sentinel")
SENTINEL_PORT = 26379
CONNECT_TIMEOUT_SECONDS = 5.0
SENTINEL_TIMEOUT_SECONDS = 1.0

_DRIVER = DriverInfo(lib_version=redis.__version__)
"""Sent to the server.  Without it, redis-py looks up its version in its metadata for each connection."""

_NUMBER = re.compile(r"[0-9]{1,9}")
_SENTINEL = re.compile(r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<name>[^\s:\[\]]+))(?::(?P<port>\d+))?")


def check_url(url: str) -> str:
    """Return `url` if it is the address of a server; raises ValueError that says what is accepted."""
    if is_embedded(url):
        return url
    problem = (
        "expected redis://HOST:PORT/DB, rediss://..., unix:///PATH, "
        "redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB, embedded or embedded:PATH"
    )
    try:
        if _is_behind_sentinels(url) or _names_a_server(url):
            connect(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]
            return url
    except (TypeError, ValueError, RedisError) as exc:
        problem = str(exc)
    raise ValueError(f"{without_password(url)!r} is not an address of a Redis server: {problem}")


def _names_a_server(url: str) -> bool:
    parts = urlsplit(url)
    if parts.scheme in ("redis", "rediss"):
        _check_database(parts.path.removeprefix("/"))
    _check_database(*parse_qs(parts.query).get("db", ()))
    port_is_fine = parts.port is None or parts.port > 0
    named = parts.path if parts.scheme == "unix" else parts.hostname
    return parts.scheme in SCHEMES and bool(named) and port_is_fine


def _check_database(*given: str) -> None:
    """redis-py would use database 0 for what is no number."""
    for text in given:
        if text and not _NUMBER.fullmatch(text):
            raise ValueError(f"the database must be a number, not {text!r}")


def _is_behind_sentinels(url: str) -> bool:
    return url.partition("://")[0] in SENTINEL_SCHEMES


def is_embedded(url: str) -> bool:
    """Return whether `url` stands for the embedded server."""
    return url == "embedded" or url.startswith("embedded:")


def embedded_directory(url: str) -> Path:
    """Return the directory in which the embedded server of `url` keeps its data."""
    return Path(url.removeprefix("embedded").removeprefix(":") or DEFAULT_DIRECTORY)


@contextlib.contextmanager
def server(url: str) -> Iterator[str]:
    """Yield the address to connect to; an embedded server runs at least as long as the block."""
    if not is_embedded(url):
        yield url
        return
    held = EmbeddedServer.acquire(embedded_directory(url))
    try:
        yield held.url
    finally:
        held.release()


def running_server(url: str) -> str:
    """Return the address to connect to.  Starts no server.

    Raises:
        StoreUnavailableError: the embedded server of that directory does not run.
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
    """Return a client for commands.  It connects when it is used, and its commands have no time-out.

    A command on a broken connection is tried again twice within a fraction of a second.  The caller
    handles longer outages and time-outs.

    Args:
        url: the address of the server.
        connections: the largest number of connections.
    """
    return _client(url, connections, retries=2)


@contextlib.contextmanager
def naming_database(client: Redis) -> Iterator[None]:
    """Name the database of `client` in the error that the server doesn't have it; it is raised alone."""
    try:
        yield
    except (UnknownDatabaseError, ExceptionGroup) as exc:
        if isinstance(exc, ExceptionGroup) and exc.split(UnknownDatabaseError)[1] is not None:
            raise
        number = client.connection_pool.connection_kwargs.get("db")
        raise UnknownDatabaseError(
            f"REDIS_URL names database {number}, which the server doesn't have; choose a smaller number, "
            "or raise 'databases' in the server's configuration"
        ) from None


def connect_blocking(url: str) -> Redis:
    """Return a client for blocking reads and subscriptions, which may wait for any time.

    redis-py's default socket time-out would end an idle subscription after five seconds; TCP
    keep-alive detects dead peers instead.  Nothing is tried again automatically, because after a
    broken connection the caller has to find out what it has missed.
    """
    return _client(url, 8, retries=0)


def _client(url: str, connections: int, retries: int) -> Redis:
    if _is_behind_sentinels(url):
        return Redis.from_pool(_master_pool(url, connections, retries))
    options = _with_ours(dict(parse_url(url)), connections, retries)
    return Redis.from_pool(BlockingConnectionPool(**options))


def _with_ours(options: dict[str, Any], connections: int, retries: int) -> dict[str, Any]:
    """The options in an address, overridden by those that the callers rely on."""
    keep_secret(options.get("password") or "")
    if options.get("connection_class") is not UnixDomainSocketConnection:
        options["socket_keepalive"] = True
        options["socket_connect_timeout"] = CONNECT_TIMEOUT_SECONDS
    return options | {
        "socket_timeout": None,
        "protocol": 2,  # answers have other shapes in protocol 3
        "driver_info": _DRIVER,
        "decode_responses": True,
        "encoding_errors": "surrogateescape",  # neighbours' bytes are written back unchanged
        "retry": Retry(ExponentialBackoff(cap=0.2, base=0.05), retries=retries),
        "max_connections": connections,
        "timeout": None,
    }


# -- Sentinel -------------------------------------------------------------------------


class _Sentinels(Sentinel):
    """Finds the server that is the master now."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the address of the master, from the first sentinel that answers and knows it.

        redis-py's method waits for the socket time-out of a frozen sentinel, and sometimes loses a
        cancellation.

        Raises:
            MasterNotFoundError: no sentinel knows it; has the reason of each one.
        """
        reasons = []
        for sentinel in list(self.sentinels):
            try:
                async with asyncio.timeout(SENTINEL_TIMEOUT_SECONDS):
                    masters: Any = await sentinel.sentinel_masters()
            except (RedisError, OSError) as exc:  # a TimeoutError is an OSError
                reasons.append(f"{_place(sentinel)}: {str(exc) or 'no answer in time'}")
                continue
            state = masters.get(service_name)
            if state and self.check_master_state(state, service_name):
                self.sentinels.remove(sentinel)
                self.sentinels.insert(0, sentinel)
                return state["ip"], state["port"]
            what = f"{service_name!r} is down" if state else f"it does not know {service_name!r}"
            reasons.append(f"{_place(sentinel)}: {what}")
        raise MasterNotFoundError(f"no sentinel names the master of {service_name!r}: {'; '.join(reasons)}")


def _place(sentinel: Any) -> str:
    options = sentinel.connection_pool.connection_kwargs
    return f"{options['host']}:{options['port']}"


class _MasterPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the current master; waits for a free connection when all are in use."""

    def __init__(self, service_name: str, sentinels: _Sentinels, **options: Any) -> None:
        super().__init__(service_name, sentinels, **options)  # type: ignore[no-untyped-call]
        self._about = service_name, frozenset(map(_place, sentinels.sentinels))
        self._loop: asyncio.AbstractEventLoop | None = None
        _pools.add(self)

    async def get_master_address(self) -> tuple[str, int]:
        """Return the address of the master, and close connections that lead to another server.

        A subscription to a former master that hangs would wait for ever.  Therefore all pools of
        this event loop close their old connections as soon as one of them learns of a new master.
        """
        self._loop = asyncio.get_running_loop()
        address: tuple[str, int] = await super().get_master_address()  # type: ignore[no-untyped-call]
        for pool in [one for one in _pools if one._about == self._about and one._loop is self._loop]:
            await pool._leave_all_but(address)
        return address

    async def _leave_all_but(self, address: tuple[str, int]) -> None:
        connections: list[Any] = list(self._in_use_connections)
        for connection in connections:
            if connection.is_connected and (connection.host, connection.port) != address:
                await connection.disconnect()

    async def aclose(self) -> None:
        """Close the connections to the master and to the sentinels."""
        await super().aclose()
        await self.sentinel_manager.aclose()


_pools: weakref.WeakSet[_MasterPool] = weakref.WeakSet()


def _master_pool(url: str, connections: int, retries: int) -> _MasterPool:
    """The pool for `redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../SERVICE[/DB][?OPTIONS]`.

    User, password and options are those of the server.  The options `sentinel_username` and
    `sentinel_password` are for the sentinels.
    """
    parts = urlsplit(url)
    who, at, places = parts.netloc.rpartition("@")
    service, _, db = parts.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("the path must name the service that the sentinels watch: .../SERVICE/DB")
    _check_database(db, *parse_qs(parts.query).get("db", ()))
    options: dict[str, Any] = dict(parse_url(f"redis://{who}{at}sentinels/{db}?{parts.query}"))
    del options["host"]
    if parts.scheme.startswith("rediss"):
        options["ssl"] = True
    known = [_sentinel(place) for place in places.split(",")]
    sentinel_options = _sentinel_options(options)
    sentinels = _Sentinels(known, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
    return _MasterPool(unquote(service), sentinels, **_with_ours(options, connections, retries))


def _sentinel_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of connections to sentinels; takes those that are only for them out of `options`."""
    password = options.pop("sentinel_password", None)
    keep_secret(password or "")
    return {
        "socket_connect_timeout": SENTINEL_TIMEOUT_SECONDS,
        "socket_timeout": None,
        "protocol": 2,
        "driver_info": _DRIVER,
        "retry": Retry(NoBackoff(), retries=0),  # the next sentinel is asked instead
        "username": options.pop("sentinel_username", None),
        "password": password,
    } | {name: one for name, one in options.items() if name.startswith("ssl")}


def _sentinel(place: str) -> tuple[str, int]:
    found = _SENTINEL.fullmatch(place)
    port = int(found["port"] or SENTINEL_PORT) if found else 0
    if found is None or not 0 < port < 65_536:
        raise ValueError(f"a sentinel must be HOST or HOST:PORT, not {place!r}")
    return unquote(found["ipv6"] or found["name"]), port


def without_password(url: str) -> str:
    """Return `url` with passwords masked, for messages and logs."""
    url = re.sub(r"([?&](?:sentinel_)?password=)[^&]*", r"\1***", url)
    head, at, tail = url.rpartition("@")
    scheme, slashes, _ = head.partition("://")
    return f"{scheme + slashes if slashes else ''}***@{tail}" if at else url
