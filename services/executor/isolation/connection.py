"""The executor's end of one socket: JSON-RPC 2.0 on the event loop, without a thread and without a task."""

import _socket
import array
import asyncio
import contextvars
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from services.executor.isolation.common import protocol

READ_BYTES = 262_144
DRAIN_READS = 16

# One for all connections, since nothing is awaited between filling and emptying it: a buffer
# of this size that is allocated for each read costs more than the read.
_scratch = memoryview(bytearray(READ_BYTES))


class Refused(Exception):
    """The other side answered a request with an error; `error` is its JSON-RPC error object."""

    def __init__(self, error: dict[str, Any]) -> None:
        message = error.get("message")
        super().__init__(message if isinstance(message, str) else "it didn't say why")
        self.error = error


class Disconnected(Exception):
    """The connection ended before the answer came."""


class Connection:
    """One peer: requests go out and are answered, notifications and requests come in.

    `on_message` receives what is no answer; `on_closed` is called once, with a
    sentence if the peer broke the protocol and with an empty one if it closed.
    """

    def __init__(
        self,
        sock: _socket.socket,
        limit_bytes: int,
        on_message: Callable[[dict[str, Any]], None],
        on_closed: Callable[[str], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = protocol.Decoder(limit_bytes)
        self._on_message = on_message
        self._on_closed = on_closed
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self.is_open = True
        self.left_unread = False
        """Whether the peer ended before it had read all that was sent to it: the kernel tells by an error."""
        # A context of its own: what the peer says belongs to the run that it serves then, and the
        # log lines about it must not name the run that it was started for.
        contextvars.Context().run(self._loop.add_reader, sock.fileno(), self._read)

    # -- out ----------------------------------------------------------------------------

    def request(self, method: str, params: bytes) -> asyncio.Future[Any]:
        """Ask for something; `params` is JSON already."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if not self.is_open:
            answer.set_exception(Disconnected())
            return answer
        self._last_id += 1
        self._answers[self._last_id] = answer
        message = b'{"jsonrpc":"2.0","id":%d,"method":"%b","params":%b}'
        self._send(protocol.encode_frame(message % (self._last_id, method.encode(), params)))
        return answer

    def notify(self, method: str, params: Any, descriptors: Sequence[int] = ()) -> None:
        """Say something that has no answer.  Descriptors are passed on and closed here."""
        self._send(protocol.encode({"jsonrpc": "2.0", "method": method, "params": params}), descriptors)

    def respond(self, request_id: Any, result: Any) -> None:
        """Answer a request of the peer."""
        self._send(protocol.encode({"jsonrpc": "2.0", "id": request_id, "result": result}))

    def refuse(self, request_id: Any, message: str, code: int = protocol.FAILED) -> None:
        """Answer a request of the peer with an error."""
        error = {"code": code, "message": message}
        self._send(protocol.encode({"jsonrpc": "2.0", "id": request_id, "error": error}))

    def _send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        if not self.is_open:
            close_all(descriptors)
            return
        is_first = not self._outbox
        self._outbox.append((memoryview(frame), descriptors))
        if is_first and not self._sent_all():
            self._loop.add_writer(self._sock.fileno(), self._flush)

    def _sent_all(self) -> bool:
        """Send as much as the socket takes and keep the rest; whether that was everything."""
        while self._outbox:
            data, descriptors = self._outbox[0]
            try:
                if descriptors:
                    sent = self._sock.sendmsg([data], [_passing(descriptors)])
                else:
                    sent = self._sock.send(data)
            except BlockingIOError:
                return False
            except OSError:
                # The reader sees the end as well, after everything that the peer still had to say.
                self.left_unread = True
                self._forget_unsent()
                return True
            close_all(descriptors)
            if sent < len(data):
                self._outbox[0] = data[sent:], ()
            else:
                self._outbox.popleft()
        return True

    def _forget_unsent(self) -> None:
        for _, descriptors in self._outbox:
            close_all(descriptors)
        self._outbox.clear()

    def _flush(self) -> None:
        if self._sent_all():
            self._loop.remove_writer(self._sock.fileno())

    # -- in -----------------------------------------------------------------------------

    def drain(self) -> None:
        """Take in what a peer that is gone had still said: its end may be known before its last words."""
        for _ in range(DRAIN_READS):
            if not self.is_open or not self._read():
                return

    def _read(self) -> bool:
        """One bounded read per turn of the loop, so that no peer keeps the others waiting."""
        try:
            size = self._sock.recv_into(_scratch)
        except BlockingIOError:
            return False
        except OSError as error:
            self.left_unread = self.left_unread or isinstance(error, ConnectionResetError)
            size = 0
        if not size:
            self.close("")
            return False
        try:
            messages = self._decoder.feed(_scratch[:size].tobytes())
            for message in messages:
                self._receive(message)
        except protocol.ProtocolBroken as broken:
            self.close(f"it broke the protocol: {broken}")
        except RecursionError:
            self.close("it broke the protocol: a message is nested too deeply")
        return True

    def _receive(self, message: dict[str, Any]) -> None:
        if "method" in message:
            self._on_message(message)
            return
        request_id = message.get("id")
        if type(request_id) is not int or request_id not in self._answers:
            raise protocol.ProtocolBroken(f"an answer to no request: id {request_id!r:.80}")
        error = message.get("error")
        if "error" in message and not isinstance(error, dict):
            raise protocol.ProtocolBroken("an error that is no object")
        answer = self._answers.pop(request_id)
        if answer.done():
            return
        if isinstance(error, dict):
            answer.set_exception(Refused(error))
        else:
            answer.set_result(message.get("result"))

    def close(self, reason: str = "") -> None:
        """End the connection; every request still unanswered fails with Disconnected."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._sock.fileno())
        if self._outbox:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._forget_unsent()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(Disconnected())
                answer.exception()  # whoever asked may be gone already
        on_closed, self._on_closed, self._on_message = self._on_closed, _ignore, _ignore
        on_closed(reason)


def _ignore(said: object) -> None:
    """What nobody waits for any more: whoever did is free to go, before the next search for garbage."""


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """Two ends that speak to each other; what the module `socket` wraps them in takes as long again."""
    return _socket.socketpair()


def _passing(descriptors: Sequence[int]) -> "tuple[int, int, array.array[int]]":
    """What passes descriptors on, beside the data."""
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors, whatever has become of them."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
