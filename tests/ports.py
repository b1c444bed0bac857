"""Ports for servers that a test starts, stops and starts again."""

import secrets
import socket
from pathlib import Path

_GIVEN_OUT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST = 10_000


def free_port() -> int:
    """A port of 127.0.0.1 on which nobody listens.

    It stays free until it is used: it is none of those that the system hands
    to connections, and to whoever asks for any port, all the time.
    """
    limit = max(int(_GIVEN_OUT.read_text().split()[0]), 2 * _FIRST)
    while True:
        port = _FIRST + secrets.randbelow(limit - _FIRST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
