"""The embedded server is started by its first user and stopped by its last one."""

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


def test_the_first_user_starts_the_server_and_the_last_one_stops_it(tmp_path: Path) -> None:
    first = EmbeddedServer.acquire(tmp_path)
    second = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(first.url)

    assert first.url == second.url == running_url(tmp_path)
    first.release()
    assert running_url(tmp_path) == second.url
    second.release()
    assert running_url(tmp_path) is None
    assert not is_running(pid)


def test_a_second_release_does_nothing(tmp_path: Path) -> None:
    first, second = EmbeddedServer.acquire(tmp_path), EmbeddedServer.acquire(tmp_path)

    first.release()
    first.release()

    assert running_url(tmp_path) == second.url
    second.release()


def test_data_survive_a_restart(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)
    with redis.Redis.from_url(held.url) as client:
        client.set("key", "value")
    held.release()

    held = EmbeddedServer.acquire(tmp_path)

    with redis.Redis.from_url(held.url) as client:
        assert client.get("key") == b"value"
    held.release()


def test_each_directory_has_its_own_server(tmp_path: Path) -> None:
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


def test_a_killed_process_counts_as_gone(tmp_path: Path, new_user: NewUser) -> None:
    user = new_user(tmp_path)
    held = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(held.url)

    user.kill()
    held.release()

    assert running_url(tmp_path) is None
    assert not is_running(pid)


def test_a_server_is_used_again_after_all_its_users_were_killed(tmp_path: Path, new_user: NewUser) -> None:
    user = new_user(tmp_path)
    user.kill()

    held = EmbeddedServer.acquire(tmp_path)

    assert held.url == user.url
    held.release()
    assert running_url(tmp_path) is None


def test_ctrl_c_in_the_terminal_does_not_reach_the_server(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)

    assert os.getpgid(pid_of(held.url)) != os.getpgid(0)
    held.release()


def test_processes_that_start_at_the_same_time_share_one_server(tmp_path: Path) -> None:
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
