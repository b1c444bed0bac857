"""Behind Sentinel: when the master dies, hangs or steps down, the service goes on with its successor.

A failover loses what the former master had acknowledged and not yet passed on;
that is Redis' own bargain.  So these tests wait until the replica has it all.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from shared.connection import check_url, connect, without_password
from tests.conftest import Serve, eventually
from tests.service.conftest import Work
from tests.service.trouble import Books, Server

SETTINGS = """
port {port}
bind 127.0.0.1
dir "{directory}"
sentinel monitor main 127.0.0.1 {master} 1
sentinel down-after-milliseconds main 300
sentinel failover-timeout main 2000
"""


class Cluster:
    """A master, its replica, and the sentinel that watches them."""

    def __init__(self, folder: Path) -> None:
        self.master = Server(folder / "master", **{"repl-diskless-sync-delay": 0})
        self.replica = Server(folder / "replica", replicaof=f"127.0.0.1 {self.master.port}")
        self.sentinel = Server(folder / "sentinel")
        self._folder = folder
        nobody = Server(folder / "nobody")
        self.url = f"redis+sentinel://127.0.0.1:{nobody.port},127.0.0.1:{self.sentinel.port}/main"

    async def start(self) -> None:
        """Return when the sentinel knows both."""
        await self.master.start()
        await self.replica.start()
        async with connect(self.master.url) as client:
            await eventually(lambda: _has_replica(client), "the replica")
        await self.watch(self.sentinel, self._folder / "sentinel")
        await eventually(self._is_complete, "the sentinel's view")

    async def watch(self, sentinel: Server, directory: Path, *more_settings: str) -> None:
        """Have a sentinel watch the master."""
        settings = directory / "sentinel.conf"
        text = SETTINGS.format(port=sentinel.port, directory=directory, master=self.master.port)
        settings.write_text("\n".join([text, *more_settings]))
        sentinel.spawn([str(settings), "--sentinel"])
        await sentinel.answers()

    async def in_step(self) -> None:
        """Wait until the replica has all that the master has."""
        async with connect(self.master.url) as client, client.pipeline(transaction=False) as pipe:
            pipe.set("the last", "word")
            pipe.wait(1, 10_000)
            assert await pipe.execute() == [True, 1]

    async def ask(self, *words: str) -> Any:
        """The sentinel's answer."""
        client: Any
        async with connect(self.sentinel.url) as client:
            return await client.execute_command("SENTINEL", *words)

    async def successor(self) -> None:
        """Wait until the replica has become the master."""

        async def is_master() -> bool:
            address = await self.ask("get-master-addr-by-name", "main")
            return bool(int(address[1]) == self.replica.port)

        await eventually(is_master, "the failover")

    def end(self) -> None:
        """End all of it."""
        for one in (self.sentinel, self.replica, self.master):
            one.kill()

    async def _is_complete(self) -> bool:
        return len(await self.ask("replicas", "main")) == 1


async def _has_replica(client: Any) -> bool:
    return bool((await client.info("replication")).get("slave0", {}).get("state") == "online")


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    one = Cluster(tmp_path / "redis")
    try:
        await one.start()
        yield one
    finally:
        one.end()


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Server]:
    """Another one, not started yet."""
    one = Server(tmp_path)
    yield one
    one.kill()


@pytest.fixture
def redis_url(cluster: Cluster) -> str:
    """Where all that the tests share goes."""
    return cluster.url


@pytest.fixture(autouse=True)
def is_hasty(hasty: None) -> None:
    """A worker waits for no answer for long."""


# -- failover ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "hand over"])
async def test_runs_go_on_with_the_next_master(
    how: str, cluster: Cluster, serve: Serve, books: Books
) -> None:
    async with serve():
        await books.run(3, words=20)
        await cluster.in_step()
        if how == "kill":
            cluster.master.kill()
        else:
            await cluster.ask("failover", "main")
        books.go()
        await cluster.successor()
        await books.trigger()
        await books.balance()

    assert books.starts() == dict.fromkeys(range(4), 1)


async def test_a_master_that_hangs_is_left_and_changes_nothing_when_it_comes_back(
    cluster: Cluster, serve: Serve, books: Books
) -> None:
    async with serve():
        await books.run(2, words=20)
        await cluster.in_step()
        cluster.master.freeze()
        books.go()
        await cluster.successor()
        await books.results()
        cluster.master.thaw()
        async with connect(cluster.master.url) as client:
            assert await client.ping()
        await books.trigger()
        await books.balance()

    assert books.starts() == dict.fromkeys(range(3), 1)


async def test_workers_are_not_taken_for_dead_during_a_failover(
    cluster: Cluster, serve: Serve, books: Books
) -> None:
    async with serve(heartbeat_ttl=0.6, concurrency=2), serve(heartbeat_ttl=0.6, concurrency=2):
        await books.run(4)
        await cluster.in_step()
        cluster.master.kill()
        await cluster.successor()
        books.go()
        await books.balance()

    assert books.starts() == dict.fromkeys(range(4), 1)


# -- addresses ----------------------------------------------------------------------------


async def test_a_service_says_which_sentinels_it_asked_in_vain(work: Work, cluster: Cluster) -> None:
    url = cluster.url.replace("//", "//user:hunter22@").replace("/main", "/other")
    async with work(redis_url=url) as one:
        line = await one.said("redis.awaited", what_for="start")
        one.signal(signal.SIGTERM)
        code = await one.ended()

    assert "no sentinel names the master of 'other'" in line["error"]
    assert f"127.0.0.1:{cluster.sentinel.port}: it does not know 'other'" in line["error"]
    assert code == 0
    assert not any("hunter22" in str(line) for line in one.lines)


async def test_user_password_and_database_are_the_servers(cluster: Cluster) -> None:
    async with connect(cluster.master.url) as client:
        await client.acl_setuser(
            "lab", enabled=True, passwords=["+p@ss:word"], categories=["+@all"], keys=["*"]
        )

    async with connect(cluster.url.replace("//", "//lab:p%40ss%3Aword@") + "/3") as client:
        who = await client.acl_whoami()
        await client.set("here", 1)
    async with connect(cluster.master.url.removesuffix("0") + "3") as client:
        found = await client.exists("here")

    assert (who, found) == ("lab", 1)


async def test_the_sentinels_may_have_a_password_of_their_own(
    cluster: Cluster, sentinel: Server, tmp_path: Path
) -> None:
    await cluster.watch(sentinel, tmp_path, "requirepass hunter22")
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"

    with pytest.raises(ConnectionError, match=r"no sentinel names the master of 'main'.*Authentication"):
        async with connect(url) as client:
            await client.ping()
    async with connect(f"{url}?sentinel_password=hunter22") as client:
        assert await client.ping()


async def test_who_asks_for_more_connections_than_there_are_waits_for_one(cluster: Cluster) -> None:
    async with connect(cluster.url, connections=2) as client:
        answers = await asyncio.gather(*(client.blpop("nothing", timeout=0.05) for _ in range(6)))

    assert answers == [None] * 6


@pytest.mark.parametrize(
    "url",
    [
        "redis+sentinel://one/main",
        "redis+sentinel://user:p%40ss@one:26379,two:26380,[::1]:26381/main/3",
        "redis+sentinel://one,two/the%20main%20one?client_name=lab&sentinel_username=u&sentinel_password=p",
        "rediss+sentinel://one/main?ssl_cert_reqs=none",
    ],
)
def test_an_address_behind_sentinels_is_taken(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://one", "the path must name the service"),
        ("redis+sentinel:///main", "a sentinel must be HOST or HOST:PORT, not ''"),
        ("redis+sentinel://one,,two/main", "a sentinel must be HOST or HOST:PORT, not ''"),
        ("redis+sentinel://one:0/main", "not 'one:0'"),
        ("redis+sentinel://one:99999/main", "not 'one:99999'"),
        ("redis+sentinel://one:port/main", "not 'one:port'"),
        ("redis+sentinel://one/main/first", "the database must be a number, not 'first'"),
        ("redis+sentinel://one/main?no_such_option=1", "no_such_option"),
    ],
)
def test_a_wrong_address_behind_sentinels_says_why(url: str, why: str) -> None:
    with pytest.raises(ValueError) as refused:
        check_url(url)

    assert str(refused.value).startswith(f"'{url}' is not an address of a Redis server: ")
    assert why in str(refused.value)


def test_no_password_is_shown() -> None:
    url = "redis+sentinel://user:hunter22@one:x,two/main?sentinel_password=hunter33&password=hunter44"
    with pytest.raises(ValueError) as refused:
        check_url(url)

    assert without_password(url) == "redis+sentinel://***@one:x,two/main?sentinel_password=***&password=***"
    assert "hunter" not in str(refused.value)
