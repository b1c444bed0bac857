"""Faults of the embedded server are detected, and reported in one clear error."""

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest
import redis

from shared.embedded import EmbeddedServer, running_url
from shared.errors import StoreUnavailableError
from tests.ports import free_port
from tests.unit.shared.users import is_running, pid_of


def test_a_dead_server_is_started_again(tmp_path: Path) -> None:
    first = EmbeddedServer.acquire(tmp_path)
    os.kill(pid_of(first.url), signal.SIGKILL)
    second = EmbeddedServer.acquire(tmp_path)

    with redis.Redis.from_url(second.url) as client:
        assert client.ping()
    first.release()
    assert running_url(tmp_path) == second.url
    second.release()


def test_a_dead_server_can_be_released(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(held.url)
    os.kill(pid, signal.SIGKILL)

    held.release()

    assert running_url(tmp_path) is None
    assert not Path(f"/proc/{pid}").exists()  # nor is it a zombie


def test_no_second_server_is_started_beside_one_that_hangs(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path)
    pid = pid_of(held.url)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(StoreUnavailableError, match=f"server in {tmp_path} runs, but does not answer"):
        EmbeddedServer.acquire(tmp_path, start_timeout_seconds=0.3, answer_timeout_seconds=0.2)

    os.kill(pid, signal.SIGCONT)
    held.release()
    assert not is_running(pid)


def test_a_server_that_hangs_is_killed_by_the_last_release(tmp_path: Path) -> None:
    held = EmbeddedServer.acquire(tmp_path, answer_timeout_seconds=0.2)
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
def test_a_stale_server_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)

    assert running_url(tmp_path) is None
    held = EmbeddedServer.acquire(tmp_path)
    assert running_url(tmp_path) == held.url
    held.release()


def test_the_server_of_another_directory_is_not_used(tmp_path: Path) -> None:
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


def test_another_program_on_the_port_is_not_used(tmp_path: Path) -> None:
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


def test_another_port_is_chosen_if_the_first_is_taken(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free = free_port()
        ports = iter([taken.getsockname()[1], free])

        held = EmbeddedServer.acquire(tmp_path, choose_port=lambda: next(ports))

    assert held.url == f"redis://127.0.0.1:{free}/0"
    held.release()


def test_another_port_is_chosen_if_another_directorys_server_has_the_first(tmp_path: Path) -> None:
    other = EmbeddedServer.acquire(tmp_path / "other")
    free = free_port()
    ports = iter([int(other.url.rpartition(":")[2].partition("/")[0]), free])

    held = EmbeddedServer.acquire(tmp_path / "own", choose_port=lambda: next(ports))

    assert held.url == f"redis://127.0.0.1:{free}/0"
    held.release()
    other.release()


def test_the_error_of_a_failed_start_has_the_last_log_lines(tmp_path: Path) -> None:
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


def test_a_start_works_after_a_failed_one(tmp_path: Path) -> None:
    (tmp_path / "valkey.log").mkdir()
    with pytest.raises(StoreUnavailableError):
        EmbeddedServer.acquire(tmp_path)
    (tmp_path / "valkey.log").rmdir()

    held = EmbeddedServer.acquire(tmp_path)

    assert running_url(tmp_path) == held.url
    held.release()
