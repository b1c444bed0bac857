"""The executor's end of a socket to a subprocess: JSON-RPC 2.0, without a thread or a task."""

import _socket
import array
import asyncio
import contextvars
import gc
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from services.executor.isolation.common import protocol
from services.executor.isolation.common.protocol import HEADER_BYTES

READ_BYTES = 262_144
DRAIN_READS = 16
ENVELOPE_BYTES: Final = 8_388_608
"""What a frame may hold besides the value that the limit is about: names, a message, a traceback.

The longest traceback (`common/serialize.py`) fits even if each of its characters has to be escaped.
"""

LARGE_BYTES: Final = 262_144

# One for all connections, since nothing is awaited between filling and reading it.  Allocating a buffer of
# this size for each read costs more than the read.
_scratch = memoryview(bytearray(READ_BYTES))


def encode(message: dict[str, Any]) -> bytes:
    """The frame that carries `message`."""
    return protocol.encode_frame(protocol.encode_value(message))


def decode_message(payload: bytes) -> dict[str, Any]:
    """The message in the payload of one frame.  ProtocolBroken if there is none."""
    try:
        message = (protocol.decode if len(payload) < LARGE_BYTES else _decode_large)(payload.decode())
    except (ValueError, RecursionError) as error:
        raise protocol.ProtocolBroken(f"a frame is not JSON: {error}") from None
    if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
        raise protocol.ProtocolBroken("a frame is not a JSON-RPC 2.0 message")
    return message


def _decode_large(text: str) -> Any:
    """Decode without the garbage collection that so many new objects set off, which takes as long again.

    This is done on the event loop, because in a thread it would hold up the loop just as long: the decoder
    doesn't release the interpreter's lock before it is done.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return protocol.decode(text)
    finally:
        if was_enabled:
            gc.enable()


class Decoder:
    """Turns a byte stream, however it is split, back into messages.

    The other side is not trusted: whatever bytes are no frame raise ProtocolBroken and nothing else.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes + ENVELOPE_BYTES
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that `data` completes."""
        if not self._buffer and len(data) >= HEADER_BYTES and self._length(data) == len(data) - HEADER_BYTES:
            return [decode_message(data[HEADER_BYTES:])]
        buffer = self._buffer
        buffer += data
        messages = []
        start = 0
        while len(buffer) - start >= HEADER_BYTES:
            end = start + HEADER_BYTES + self._length(buffer[start : start + HEADER_BYTES])
            if len(buffer) < end:
                break
            messages.append(decode_message(bytes(buffer[start + HEADER_BYTES : end])))
            start = end
        del buffer[:start]
        return messages

    def _length(self, data: bytes | bytearray) -> int:
        length = int.from_bytes(data[:HEADER_BYTES], "big")
        if length > self.limit_bytes:
            raise protocol.ProtocolBroken(
                f"a frame of {length} bytes was announced, and {self.limit_bytes} are allowed"
            )
        return length


class Refused(Exception):
    """The other side answered a request with an error; `error` is its JSON-RPC error object."""

    def __init__(self, error: dict[str, Any]) -> None:
        message = error.get("message")
        super().__init__(message if isinstance(message, str) else "it didn't say why")
        self.error = error


class Disconnected(Exception):
    """The connection ended before the answer came."""


class Connection:
    """One peer: sends requests and receives answers, notifications and requests.

    Args:
        sock: the executor's end.
        limit_bytes: the most that a value in a message may have as JSON.
        on_message: receives what is not an answer.
        on_closed: called once, with a sentence if the peer broke the protocol, and an empty one otherwise.
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
        self._decoder = Decoder(limit_bytes)
        self._on_message = on_message
        self._on_closed = on_closed
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._last_id = 0
        self._outbox: deque[tuple[memoryview, Sequence[int]]] = deque()
        self.is_open = True
        self.left_unread = False
        """Whether the peer ended before it had read everything; the kernel reports that as an error."""
        # In an empty context: log lines about what the peer says must not name the run it was started for.
        contextvars.Context().run(self._loop.add_reader, sock.fileno(), self._read)

    # -- out ----------------------------------------------------------------------------

    def request(self, method: str, params: bytes) -> asyncio.Future[Any]:
        """Send a request; `params` is JSON already.  Returns the future answer."""
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
        """Send a notification.  Descriptors are passed on, and closed here."""
        self._send(encode({"jsonrpc": "2.0", "method": method, "params": params}), descriptors)

    def respond(self, request_id: Any, result: Any) -> None:
        """Answer a request of the peer."""
        self._send(encode({"jsonrpc": "2.0", "id": request_id, "result": result}))

    def refuse(self, request_id: Any, message: str, code: int = protocol.FAILED) -> None:
        """Answer a request of the peer with an error."""
        error = {"code": code, "message": message}
        self._send(encode({"jsonrpc": "2.0", "id": request_id, "error": error}))

    def _send(self, frame: bytes, descriptors: Sequence[int] = ()) -> None:
        if not self.is_open:
            close_all(descriptors)
            return
        is_first = not self._outbox
        self._outbox.append((memoryview(frame), descriptors))
        if is_first and not self._sent_all():
            self._loop.add_writer(self._sock.fileno(), self._flush)

    def _sent_all(self) -> bool:
        """Send as much as the socket takes and keep the rest; return whether that was everything."""
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
                # `_read` sees the end as well, after everything that the peer has still said.
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
        """Read what a peer that is gone has still said: its end may be known before its last words."""
        for _ in range(DRAIN_READS):
            if not self.is_open or not self._read():
                return

    def _read(self) -> bool:
        """Read once per turn of the loop, so that no peer holds up the others."""
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
            raise protocol.ProtocolBroken("an error that is not an object")
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
                answer.exception()  # nobody may be waiting any more
        on_closed, self._on_closed, self._on_message = self._on_closed, _ignore, _ignore
        on_closed(reason)


def _ignore(said: object) -> None:
    """Takes the place of the callbacks, so that their owners are freed without a garbage collection."""


def socket_pair() -> tuple[_socket.socket, _socket.socket]:
    """Two connected sockets, without the wrappers of `socket`, which take as long again to make."""
    return _socket.socketpair()


def _passing(descriptors: Sequence[int]) -> "tuple[int, int, array.array[int]]":
    """The ancillary data that passes descriptors on."""
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors)


def close_all(descriptors: Sequence[int]) -> None:
    """Close descriptors, even if some are closed already."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue
