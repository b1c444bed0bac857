"""The probe measures a server of ours that answers as told."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

import pytest

from tests.tools.conftest import Load, RecordingToolkit
from tests.tools.local_api import LocalApi, Reply


@pytest.fixture
def probe(load: Load) -> Callable[..., list[dict[str, Any]]]:
    module = load("http_probe")
    return lambda **params: list(module.http_probe(**params))


Probe = Callable[..., list[dict[str, Any]]]


def test_each_url_is_asked_as_often_as_wanted_and_gets_one_finding(probe: Probe, api: LocalApi) -> None:
    api.answer = lambda request: Reply(b"hello")

    findings = probe(urls=[f"{api.url}/a", f"{api.url}/b"], requests_per_url=3)

    assert [finding["url"] for finding in findings] == [f"{api.url}/a", f"{api.url}/b"]
    assert api.paths == ["/a"] * 3 + ["/b"] * 3
    assert findings[0]["ok"] is True
    assert findings[0]["status"] == 200
    assert findings[0]["statuses"] == {"200": 3}
    assert findings[0]["error"] is None


def test_latencies_are_positive_and_in_order(probe: Probe, api: LocalApi) -> None:
    api.answer = lambda request: Reply(b"hello")

    latency_ms = probe(urls=[api.url], requests_per_url=5)[0]["latency_ms"]

    assert 0 < latency_ms["p50"] <= latency_ms["p90"] <= latency_ms["p99"]


@pytest.mark.parametrize(("rank", "expected"), [(50, 50.0), (90, 90.0), (99, 99.0)])
def test_percentiles_of_one_to_a_hundred_are_the_ranks(load: Load, rank: int, expected: float) -> None:
    values = [float(value) for value in range(100, 0, -1)]

    assert load("http_probe").percentile(values, rank) == expected


def test_the_percentile_of_one_value_is_that_value(load: Load) -> None:
    assert load("http_probe").percentile([7.0], 99) == 7.0


def test_statuses_are_counted_and_an_error_status_is_not_ok(probe: Probe, api: LocalApi) -> None:
    numbers = count()
    api.answer = lambda request: Reply(b"", 503 if next(numbers) else 200)

    [finding] = probe(urls=[api.url], requests_per_url=3)

    assert finding["statuses"] == {"200": 1, "503": 2}
    assert finding["status"] == 503
    assert finding["ok"] is False
    assert finding["failures"] == 0


def test_a_redirect_is_reported_and_not_followed(probe: Probe, api: LocalApi) -> None:
    api.answer = lambda request: Reply(b"", 302, {"location": "/elsewhere"})

    [finding] = probe(urls=[api.url], requests_per_url=1)

    assert finding["status"] == 302
    assert len(api.requests) == 1


def test_a_refused_connection_is_a_finding(probe: Probe, nobody: str) -> None:
    [finding] = probe(urls=[nobody], requests_per_url=2)

    assert finding["ok"] is False
    assert finding["status"] is None
    assert finding["failures"] == 2
    assert finding["latency_ms"] is None
    assert finding["error"].startswith("ConnectionRefusedError")


def test_a_server_that_never_answers_is_a_finding(probe: Probe) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        [finding] = probe(urls=[url], requests_per_url=1, timeout_seconds=0.1)

    assert finding["error"].startswith("TimeoutError")


def test_an_answer_that_breaks_off_is_a_finding(probe: Probe, api: LocalApi) -> None:
    api.answer = lambda request: Reply(b"half", headers={"content-length": "1000"})

    [finding] = probe(urls=[api.url], requests_per_url=1)

    assert finding["error"] == "ConnectionError: the answer broke off, 996 bytes before its end"


def test_an_answer_that_trickles_is_ended_at_the_time_limit(probe: Probe) -> None:
    def trickle() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while not ended.wait(0.02):
                connection.sendall(b".")

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = threading.Thread(target=trickle)
        server.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        [finding] = probe(urls=[url], requests_per_url=1, timeout_seconds=0.2)
        ended.set()
        server.join()

    assert finding["error"] == "TimeoutError: the answer took too long to arrive"


def test_no_more_of_a_long_answer_is_read_than_a_megabyte(probe: Probe, api: LocalApi) -> None:
    api.answer = lambda request: Reply(b"x" * 1_200_000)

    [finding] = probe(urls=[api.url], requests_per_url=1)

    assert finding["ok"] is True


def test_progress_and_the_median_are_reported(probe: Probe, api: LocalApi, toolkit: RecordingToolkit) -> None:
    api.answer = lambda request: Reply(b"")

    [finding] = probe(urls=[api.url], requests_per_url=2)

    assert toolkit.steps == [(1, 2), (2, 2)]
    assert toolkit.metrics == [("latency_p50_ms", finding["latency_ms"]["p50"])]


def test_the_host_is_asked_past_any_proxy(
    probe: Probe, api: LocalApi, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", nobody)
    api.answer = lambda request: Reply(b"")

    assert probe(urls=[api.url], requests_per_url=1)[0]["ok"] is True


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://127.0.0.1/x", "only http:// and https://"),
        ("file:///etc/passwd", "only http:// and https://"),
        ("example.com", "only http:// and https://"),
        ("http://", "no host"),
        ("http://127.0.0.1:99999/", "[Pp]ort"),
        ("http://[::1", "IPv6"),
        ("http://127.0.0.1/a b", "percent-encoded"),
        ("http://127.0.0.1/\r\nX: y", "percent-encoded"),
        ("http://me:secret@127.0.0.1/", "leave the credentials out"),
        (5, "not a string"),
    ],
)
def test_a_bad_url_is_refused_before_any_request(
    probe: Probe, api: LocalApi, url: object, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        probe(urls=[api.url, url])

    assert api.requests == []


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"urls": []}, "at least one URL"),
        ({"urls": "http://127.0.0.1/"}, "must be a list"),
        ({"requests_per_url": 0}, "requests_per_url is 0"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
    ],
)
def test_bad_parameters_are_refused(probe: Probe, api: LocalApi, params: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        probe(**{"urls": [api.url], **params})

    assert api.requests == []
