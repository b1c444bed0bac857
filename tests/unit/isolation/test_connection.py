"""The executor's end of a socket whose other end reads slowly, or not at all."""

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from services.executor.isolation.connection import Connection, Disconnected, socket_pair

LARGE = b'"%s"' % (b"x" * 2_000_000)


class Peer:
    """The other end: reads frames, and the descriptors that come with them, on request."""

    def __init__(self) -> None:
        ours, theirs = socket_pair()
        self.connection = Connection(ours, 1_000, lambda message: None, lambda reason: None)
        self.sock = socket.socket(fileno=theirs.detach())
        self.sock.setblocking(False)
        self.descriptors: list[int] = []
        self._data = b""

    def read(self) -> None:
        """Read what has arrived."""
        with contextlib.suppress(BlockingIOError):
            while True:
                data, descriptors, *_ = socket.recv_fds(self.sock, 65_536, 8)
                if not data:
                    return
                self._data += data
                self.descriptors += descriptors

    def messages(self) -> list[Any]:
        """The frames that have arrived completely."""
        found, rest = [], self._data
        while len(rest) >= 4 and len(rest) >= 4 + (size := int.from_bytes(rest[:4], "big")):
            found.append(json.loads(rest[4 : 4 + size]))
            rest = rest[4 + size :]
        return found


@pytest_asyncio.fixture
async def peer() -> AsyncIterator[Peer]:
    """Whether it has read nothing."""
    one = Peer()
    yield one
    one.connection.close()
    one.sock.close()
    for descriptor in one.descriptors:
        os.close(descriptor)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


async def test_what_is_sent_behind_something_large_comes_after_it_with_its_descriptors(peer: Peer) -> None:
    passed = [os.dup(0), os.dup(0)]

    peer.connection.request("first", LARGE)
    peer.connection.notify("second", {}, [passed[0]])
    peer.connection.notify("third", {})
    peer.connection.notify("fourth", {}, [passed[1]])
    async with asyncio.timeout(20):
        while len(peer.messages()) < 4:
            peer.read()
            await asyncio.sleep(0)

    assert [one["method"] for one in peer.messages()] == ["first", "second", "third", "fourth"]
    assert len(peer.descriptors) == 2
    assert not any(is_open(one) for one in passed if one not in peer.descriptors)


@pytest.mark.parametrize("ends", ["here", "there"])
async def test_what_could_not_be_sent_by_the_end_is_closed(peer: Peer, ends: str) -> None:
    passed = os.dup(0)
    answer = peer.connection.request("first", LARGE)
    peer.connection.notify("second", {}, [passed])

    if ends == "here":
        peer.connection.close()
    else:
        peer.sock.close()
    with pytest.raises(Disconnected):
        await answer

    assert not is_open(passed)
