"""The embedded server: who comes first starts it, who leaves last stops it."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from shared.embedded import EmbeddedServer, running_url
from tests.unit.shared.users import User, is_running, pid_of

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
