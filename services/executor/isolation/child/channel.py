"""The child's end of the socket to the executor: JSON-RPC 2.0 in frames, blocking."""

from __future__ import annotations

import _thread
import os
import socket
from typing import Any

from ..common import protocol
from ..common.protocol import HEADER_BYTES

CHUNK_BYTES = 8_192
LARGE_CHUNK_BYTES = 1_048_576
MAX_DESCRIPTORS = 64
DESCRIPTOR_BYTES = 4
ANCILLARY_BYTES = socket.CMSG_SPACE(MAX_DESCRIPTORS * DESCRIPTOR_BYTES)


class Channel:
    """A socket that carries whole messages.  Several threads may send at the same time.

    While `expects_descriptors` is true, descriptors that come with a message are kept.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.descriptor = sock.fileno()
        self.expects_descriptors = True
        self._buffer = bytearray()
        self._chunk = memoryview(bytearray(CHUNK_BYTES))
        self._missing = 0
        self._descriptors: list[int] = []
        self._sending = _thread.allocate_lock()
        self._asking = _thread.allocate_lock()
        self._last_id = 0

    def start_over(self) -> None:
        """In a fork: drop what was sent to the parent."""
        self._buffer.clear()
        while self._descriptors:
            os.close(self._descriptors.pop())

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def send(self, payload: bytes) -> None:
        """Send one message that is already JSON."""
        with self._sending:
            self.sock.sendall(len(payload).to_bytes(HEADER_BYTES, "big") + payload)

    def notify(self, method: str, params: Any) -> None:
        """Send a notification, which has no answer."""
        self.send(protocol.encode_value({"jsonrpc": "2.0", "method": method, "params": params}))

    def respond(self, request_id: Any, result: Any) -> None:
        """Answer a request."""
        self.send(protocol.encode_value({"jsonrpc": "2.0", "id": request_id, "result": result}))

    def refuse(self, request_id: Any, code: int, message: str) -> None:
        """Answer a request with an error of the protocol."""
        error = {"code": code, "message": message}
        self.send(protocol.encode_value({"jsonrpc": "2.0", "id": request_id, "error": error}))

    def ask(self, method: str, params: Any) -> Any:
        """Send a request and wait for its answer.

        ValueError says why the executor refuses, ConnectionError why it failed.  While a call is under way
        the executor sends nothing but such answers, so whoever holds the lock may read the next message.
        """
        with self._asking:
            self._last_id += 1
            request = {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}
            self.send(protocol.encode_value(request))
            answer = self.read()
        if "error" in answer:
            refused = answer["error"]["code"] == protocol.REFUSED
            raise (ValueError if refused else ConnectionError)(answer["error"]["message"])
        return answer["result"]

    def read(self) -> dict[str, Any]:
        """Wait for the next message.  EOFError if the executor is gone."""
        message = self.take()
        while message is None:
            self.fill()
            message = self.take()
        return message

    def take(self) -> dict[str, Any] | None:
        """The next message if it has arrived completely."""
        buffer = self._buffer
        if len(buffer) < HEADER_BYTES:
            return None
        end = HEADER_BYTES + int.from_bytes(buffer[:HEADER_BYTES], "big")
        self._missing = end - len(buffer)
        if self._missing > 0:
            return None
        message: dict[str, Any] = protocol.decode(buffer[HEADER_BYTES:end].decode())
        if self._missing:
            del buffer[:end]
        else:
            buffer.clear()
        return message

    def fill(self) -> None:
        """Wait for more bytes.  EOFError if the executor is gone."""
        if self._missing > CHUNK_BYTES:
            self._fill_much()
            return
        size = self._receive() if self.expects_descriptors else self.sock.recv_into(self._chunk)
        if not size:
            raise EOFError("the executor closed the connection")
        self._buffer += self._chunk[:size]

    def _receive(self) -> int:
        """Read into the chunk, keep the descriptors that came along, and return the number of bytes."""
        size, ancillary, _, _ = self.sock.recvmsg_into(
            [self._chunk], ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) - len(data) % DESCRIPTOR_BYTES
                self._descriptors.extend(memoryview(data)[:whole].cast("i"))
        return size

    def _fill_much(self) -> None:
        """Read the rest of a large message, which no descriptor comes with."""
        data = self.sock.recv(min(self._missing, LARGE_CHUNK_BYTES))
        if not data:
            raise EOFError("the executor closed the connection")
        self._buffer += data

    def take_descriptors(self, count: int) -> list[int]:
        """The first `count` descriptors that came and were not taken yet."""
        taken, self._descriptors = self._descriptors[:count], self._descriptors[count:]
        return taken
