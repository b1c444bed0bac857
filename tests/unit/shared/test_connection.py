"""Addresses of servers, how they are shown, and connections to them."""

from pathlib import Path
from typing import Any

import pytest
import redis

from shared import log as logs
from shared.connection import (
    check_url,
    connect,
    connect_blocking,
    embedded_directory,
    running_server,
    server,
    without_password,
)
from shared.embedded import EmbeddedServer
from shared.errors import StoreUnavailableError

TAKEN = [
    "redis://localhost",
    "redis://localhost:6379/0",
    "redis://user:hunter2@host:6379/15",
    "redis://[::1]:6379/0",
    "rediss://host:6380/1?ssl_cert_reqs=none",
    "unix:///run/redis.sock",
    "unix:///run/with space.sock?db=2",
    "embedded",
    "embedded:",
    "embedded:/tmp/a b",
    "redis://host/0?db=3&client_name=x",
]
REFUSED = [
    "",
    "localhost:6379",
    "http://localhost:6379",
    "redis:",
    "redis://",
    "redis://:6379",
    "redis://host:port",
    "redis://host:0",
    "redis://host:70000",
    "redis://[::1",
    "unix://",
    "embeddedx",
    "redis-sentinel://host",
    "redis://host/0?db=x",
    "redis://host/staging",
    "redis://host/0/1",
    "redis://host/1/",
    "redis://host/-1",
    "redis://host/1.5",
    "redis://host/%20",
    "rediss://host/\N{SUPERSCRIPT TWO}",
    "redis://host/0?db=-1",
    "unix:///run/redis.sock?db=one",
    "redis+sentinel://host/service/-1",
    "redis+sentinel://host/service/0/1",
    "redis://host/0?no_such_option=1",
    "redis://host/0?socket_timeout=soon",
    "rediss://host/0?ssl_cert_reqs=sometimes",
]


# -- addresses ----------------------------------------------------------------------


@pytest.mark.parametrize("url", TAKEN)
def test_an_address_of_a_server_is_accepted(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize("url", REFUSED)
def test_a_wrong_address_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(ValueError, match=r"^'.*' is not an address") as refused:
        check_url(url)

    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://:hunter2@host", "redis://:hunter2@host:port", "redis://host/x?db=y&password=hunter2"]
)
def test_a_refusal_shows_no_password(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_url(url)

    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://host:6379/0", "redis://host:6379/0"),
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("redis://user:hun@ter2@host/0", "redis://***@host/0"),
        ("redis://user:hun/ter2@host/0", "redis://***@host/0"),
        ("redis://host/0?password=hun@ter2&db=1", "redis://host/0?password=***&db=1"),
        ("redis://user:hun://ter2@host/0", "redis://***@host/0"),
        ("hunter2@host", "***@host"),
        ("embedded:a b", "embedded:a b"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_the_password_is_kept_out_of_the_log() -> None:
    connect("redis://user:hunter%202@host")

    assert logs.masked("WRONGPASS for hunter 2") == "WRONGPASS for ***"


# -- clients --------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["protocol=3", "protocol=2", "max_connections=3", "socket_timeout=0.001"])
async def test_options_in_the_address_do_not_change_the_shape_of_answers(
    redis_url: str, options: str
) -> None:
    for client in (connect(f"{redis_url}?{options}"), connect_blocking(f"{redis_url}?{options}")):
        await client.xadd("stream", {"a": "1"}, id="1-1")

        answer = await client.xread({"stream": "0"})
        await client.delete("stream")
        await client.aclose()

        assert answer == [["stream", [("1-1", {"a": "1"})]]]


async def test_bytes_that_are_not_utf_8_are_written_back_unchanged(redis: Any) -> None:
    await redis.execute_command("SET", b"caf\xe9", b"\xff\x00\xfe")
    [key] = await redis.keys("*")
    value = await redis.get(key)

    await redis.set(f"{key}-2", value)

    assert await redis.execute_command("STRLEN", b"caf\xe9-2") == 3
    assert await redis.get("caf\udce9-2") == "\udcff\x00\udcfe"


# -- the embedded server --------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("embedded", ".fullsend"),
        ("embedded:", ".fullsend"),
        ("embedded:/a b", "/a b"),
        ("embedded:x:y", "x:y"),
    ],
)
def test_an_embedded_server_has_a_directory(url: str, directory: str) -> None:
    assert embedded_directory(url) == Path(directory)


def test_other_servers_are_left_alone() -> None:
    with server("redis://nowhere:1") as url:
        assert url == running_server("redis://nowhere:1") == "redis://nowhere:1"


def test_an_embedded_server_runs_while_the_block_does(tmp_path: Path) -> None:
    with server(f"embedded:{tmp_path}") as url:
        assert running_server(f"embedded:{tmp_path}") == url

    with pytest.raises(
        StoreUnavailableError, match=r"no embedded server runs in .*; start `fullsend worker`"
    ):
        running_server(f"embedded:{tmp_path}")


def test_a_failed_block_leaves_no_server(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), server(f"embedded:{tmp_path}"):
        raise ZeroDivisionError

    held = EmbeddedServer.acquire(tmp_path)
    held.release()
    assert not (tmp_path / "server.json").exists()


@pytest.mark.parametrize("url", ["redis://host", "redis+sentinel://host/master"])
def test_a_connection_does_not_look_up_its_version_on_disk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis.utils, "get_lib_version", lambda: pytest.fail("it was looked up"))

    connection: Any = connect(url).connection_pool.make_connection()  # type: ignore[no-untyped-call]

    assert connection.driver_info.lib_version == redis.__version__
