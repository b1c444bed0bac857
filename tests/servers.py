"""The Redis server that the tests of one process share.

To start a server for each test took a tenth of the time of all tests.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from shared.embedded import EmbeddedServer

ANSWER_SECONDS = 5.0


class SharedServer:
    """A server that each test finds as if it had just been started.

    Args:
        new_directory: makes an empty directory for a server.
    """

    def __init__(self, new_directory: Callable[[], Path]) -> None:
        self._new_directory = new_directory
        self._held: EmbeddedServer | None = None
        self._config: dict[str, str] = {}

    def fresh(self) -> str:
        """The address of the server, which has no data, no other clients and its first configuration."""
        if self._held is not None:
            try:
                self._reset(self._held.url)
                return self._held.url
            except redis.RedisError:  # a test has ended it, or has taken all rights from its users
                self.stop()
        self._held = EmbeddedServer.acquire(self._new_directory())
        with _client(self._held.url) as client:
            self._config = client.config_get()
        return self._held.url

    def stop(self) -> None:
        """Stop the server if it runs."""
        if self._held is not None:
            self._held.release()
            self._held = None

    def _reset(self, url: str) -> None:
        with _client(url) as client:
            for kind in ("normal", "pubsub"):
                client.client_kill_filter(_type=kind, skipme=True)
            for user in set(client.acl_users()) - {"default"}:
                client.acl_deluser(user)
            client.execute_command("ACL", "SETUSER", "default", "reset", "on", "nopass", "~*", "&*", "+@all")
            for name, value in client.config_get().items():
                if value != self._config[name]:
                    client.config_set(name, value=self._config[name])
            client.flushall()
            client.script_flush()
            client.config_resetstat()


def _client(url: str) -> Any:
    return redis.Redis.from_url(url, socket_timeout=ANSWER_SECONDS, decode_responses=True, retry=None)
