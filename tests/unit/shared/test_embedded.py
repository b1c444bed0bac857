"""The embedded server: who comes first starts it, who leaves last stops it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from shared import embedded
from shared.embedded import EmbeddedServer, running_url
from shared.errors import StoreUnavailableError

USER = """
import sys
from pathlib import Path
from shared.embedded import EmbeddedServer
held = EmbeddedServer.acquire(Path(sys.argv[1]))
print(held.url, flush=True)
sys.stdin.readline()
held.release()
print("left", flush=True)
"""


class User:
    """Another process that uses the directory's server until it is told to leave."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )
        self.url = self._line()

    def leave(self) -> None:
        """Let it release the server, and wait for that."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self._line() == "left"
        self.close()

    def kill(self) -> None:
        self.process.kill()
        self.close()

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


NewUser = Callable[[Path], User]


@pytest.fixture
def new_user() -> Iterator[NewUser]:
    users: list[User] = []

    def new(directory: Path) -> User:
        users.append(User(directory))
        return users[-1]

    yield new
    for user in users:
        if user.process.poll() is None:
            user.kill()


def pid_of(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.info("server")["process_id"])


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


# -- one process ----------------------------------------------------------------------


def test_the_first_to_come_starts_it_and_the_last_to_leave_stops_it(tmp_path: Path) -> None:
    first = EmbeddedServer.acquire(tmp_path)
    second = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(first.url)

    assert first.url == second.url == running_url(tmp_path)
    first.release()
    assert running_url(tmp_path) == second.url
    second.release()
    assert running_url(tmp_path) is None
    assert not is_running(pid)


def test_to_leave_twice_is_to_leave_once(tmp_path: Path) -> None:
    first, second = EmbeddedServer.acquire(tmp_path), EmbeddedServer.acquire(tmp_path)

    first.release()
    first.release()

    assert running_url(tmp_path) == second.url
    second.release()


def test_what_was_written_is_there_the_next_time(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)
    with redis.Redis.from_url(held.url) as client:
        client.set("key", "value")
    held.release()

    held = EmbeddedServer.acquire(tmp_path)

    with redis.Redis.from_url(held.url) as client:
        assert client.get("key") == b"value"
    held.release()


def test_directories_have_servers_of_their_own(tmp_path: Path) -> None:
    one, other = EmbeddedServer.acquire(tmp_path / "one"), EmbeddedServer.acquire(tmp_path / "other")

    assert one.url != other.url
    one.release()
    assert running_url(tmp_path / "other") == other.url
    other.release()


@pytest.mark.parametrize("name", ["with space", "ünïcödé", "quo'te\"s", "deep/er/still", "-x --port 1"])
def test_a_directory_may_have_any_name(tmp_path: Path, name: str) -> None:
    held = EmbeddedServer.acquire(tmp_path / name)

    with redis.Redis.from_url(held.url, decode_responses=True) as client:
        assert client.config_get("dir")["dir"] == str(tmp_path / name)
    held.release()


def test_a_relative_directory_and_a_link_lead_to_the_same_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    real = EmbeddedServer.acquire(Path("real"))
    link = EmbeddedServer.acquire(tmp_path / "link")

    assert real.url == link.url == running_url(Path("link"))
    real.release()
    link.release()


def test_it_listens_on_this_machine_only(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)

    with redis.Redis.from_url(held.url, decode_responses=True) as client:
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        assert client.config_get("appendonly")["appendonly"] == "yes"
    held.release()


# -- several processes ----------------------------------------------------------------


def test_processes_share_it(tmp_path: Path, new_user: NewUser) -> None:
    user = new_user(tmp_path)
    held = EmbeddedServer.acquire(tmp_path)

    assert held.url == user.url
    user.leave()
    assert running_url(tmp_path) == held.url
    held.release()
    assert running_url(tmp_path) is None


def test_a_user_that_was_killed_is_no_user(tmp_path: Path, new_user: NewUser) -> None:
    user = new_user(tmp_path)
    held = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(held.url)

    user.kill()
    held.release()

    assert running_url(tmp_path) is None
    assert not is_running(pid)


def test_a_server_whose_users_were_all_killed_is_used_again(tmp_path: Path, new_user: NewUser) -> None:
    user = new_user(tmp_path)
    user.kill()

    held = EmbeddedServer.acquire(tmp_path)

    assert held.url == user.url
    held.release()
    assert running_url(tmp_path) is None


def test_a_signal_to_the_terminal_does_not_reach_it(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)

    assert os.getpgid(pid_of(held.url)) != os.getpgid(0)
    held.release()


def test_all_who_come_at_once_get_the_same(tmp_path: Path) -> None:
    held: list[EmbeddedServer] = []
    threads = [
        threading.Thread(target=lambda: held.append(EmbeddedServer.acquire(tmp_path))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({one.url for one in held}) == 1
    assert len(held) == 8
    for one in held:
        one.release()
    assert running_url(tmp_path) is None


# -- what goes wrong ------------------------------------------------------------------


def test_a_server_that_died_is_started_again(tmp_path: Path) -> None:
    first = EmbeddedServer.acquire(tmp_path)
    os.kill(pid_of(first.url), signal.SIGKILL)
    second = EmbeddedServer.acquire(tmp_path)

    with redis.Redis.from_url(second.url) as client:
        assert client.ping()
    first.release()
    assert running_url(tmp_path) == second.url
    second.release()


def test_a_server_that_died_can_be_left(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)
    os.kill(pid_of(held.url), signal.SIGKILL)

    held.release()

    assert running_url(tmp_path) is None
    assert tmp_path.resolve() not in embedded._started


def test_a_server_that_hangs_gets_no_second_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_TIMEOUT_SECONDS", 0.2)
    monkeypatch.setattr(embedded, "START_TIMEOUT_SECONDS", 0.3)
    held = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(held.url)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(StoreUnavailableError, match=f"server in {tmp_path} runs, but does not answer"):
        EmbeddedServer.acquire(tmp_path)

    os.kill(pid, signal.SIGCONT)
    held.release()
    assert not is_running(pid)


def test_a_server_that_hangs_when_the_last_one_leaves_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ANSWER_TIMEOUT_SECONDS", 0.2)
    held = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(held.url)
    os.kill(pid, signal.SIGSTOP)

    held.release()

    assert not is_running(pid)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        "[]",
        '"text"',
        "null",
        "{}",
        '{"url": null}',
        '{"url": "garbage"}',
        '{"url": "redis://127.0.0.1:1/0"}',
        '{"url": "redis://127.0.0.1:99999999/0"}',
    ],
)
def test_a_stale_note_of_a_server_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)

    assert running_url(tmp_path) is None
    held = EmbeddedServer.acquire(tmp_path)
    assert running_url(tmp_path) == held.url
    held.release()


def test_the_server_of_another_directory_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    other = EmbeddedServer.acquire(tmp_path / "other")
    own = tmp_path / "own"
    own.mkdir()
    (own / "server.json").write_text(json.dumps({"url": other.url}))

    assert running_url(own) is None
    held = EmbeddedServer.acquire(own)
    assert held.url != other.url
    held.release()
    assert running_url(tmp_path / "other") == other.url
    other.release()


def test_something_else_on_the_port_is_not_taken_for_the_server(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(1_000)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        (tmp_path / "server.json").write_text(
            json.dumps({"url": f"redis://127.0.0.1:{listener.getsockname()[1]}/0"})
        )

        assert running_url(tmp_path) is None
        thread.join()


def test_a_port_that_was_taken_meanwhile_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = embedded._free_port()
        ports = iter([taken.getsockname()[1], free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))

        held = EmbeddedServer.acquire(tmp_path)

    assert held.url == f"redis://127.0.0.1:{free}/0"
    held.release()


def test_the_port_of_another_directorys_server_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = EmbeddedServer.acquire(tmp_path / "other")
    free = embedded._free_port()
    ports = iter([int(other.url.rpartition(":")[2].partition("/")[0]), free])
    monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))

    held = EmbeddedServer.acquire(tmp_path / "own")

    assert held.url == f"redis://127.0.0.1:{free}/0"
    held.release()
    other.release()


def test_a_server_that_does_not_start_has_the_last_word(tmp_path: Path) -> None:
    manifest = tmp_path / "appendonlydir" / "appendonly.aof.manifest"
    manifest.parent.mkdir()
    manifest.write_text("nonsense\n")

    with pytest.raises(
        StoreUnavailableError,
        match=r"does not start; .*valkey\.log ends with:\n(.*\n)*.*Invalid AOF manifest",
    ):
        EmbeddedServer.acquire(tmp_path)


def test_a_file_where_the_directory_should_be_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for directory in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(StoreUnavailableError, match=f"the embedded server can't use {directory}: "):
            EmbeddedServer.acquire(directory)


def test_a_directory_that_can_not_be_written_is_one_clear_error(tmp_path: Path) -> None:
    directory = Path("/proc/fullsend") if os.getuid() == 0 else tmp_path / "locked" / "here"
    (tmp_path / "locked").mkdir(mode=0o555)

    with pytest.raises(StoreUnavailableError, match=f"the embedded server can't use {directory}: "):
        EmbeddedServer.acquire(directory)


def test_a_server_that_can_not_write_its_log_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "valkey.log").mkdir()

    with pytest.raises(StoreUnavailableError, match=f"the embedded server in {tmp_path} does not start"):
        EmbeddedServer.acquire(tmp_path)


def test_after_a_failed_start_another_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "valkey.log").mkdir()
    with pytest.raises(StoreUnavailableError):
        EmbeddedServer.acquire(tmp_path)
    (tmp_path / "valkey.log").rmdir()

    held = EmbeddedServer.acquire(tmp_path)

    assert running_url(tmp_path) == held.url
    held.release()
