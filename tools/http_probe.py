# /// script
# requires-python = ">=3.11"
# ///
"""Measure the status, latency and errors of URLs.

The tool is a generator: yielded findings are kept if a later URL exceeds the time limit.  A URL that fails
is a finding and does not fail the run.
"""

import http.client
import math
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from shared import toolkit

USER_AGENT = "fullsend-http-probe/1.0"
BODY_LIMIT_BYTES = 1_000_000
"""At most this much of a response is read: the length of a download says little about a server's latency."""


class Answer(NamedTuple):
    """The result of one request: a status or an error.  `seconds` includes reading the body."""

    seconds: float
    status: int | None = None
    error: str | None = None


class EveryStatus(urllib.request.HTTPErrorProcessor):
    """Returns every response unchanged: a 404 is a finding, and redirects are not followed."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


def http_probe(
    urls: list[str], requests_per_url: int = 5, timeout_seconds: float = 5.0
) -> Iterator[dict[str, Any]]:
    """Request each URL several times, one request after the other, and yield one finding per URL.

    Every request opens its own connection directly to the host, without a proxy, so its latency includes
    the name lookup, the connection and TLS.

    Args:
        urls: Absolute http or https URLs; an invalid one fails the run before the first request.
        requests_per_url: Number of requests per URL.
        timeout_seconds: Time limit of one request.

    Yields:
        `url`, `ok` (every response had a status below 400), `status` (the latest), `statuses` (the number
        of each), `requests`, `failures` (requests without a response), `latency_ms` (p50, p90, p99 of the
        responses) and `error` (the latest).
    """
    check(urls, requests_per_url, timeout_seconds)
    # Without a proxy, whose response would be measured in place of the URL's.
    opener = urllib.request.build_opener(EveryStatus, urllib.request.ProxyHandler({}))
    total = len(urls) * requests_per_url
    for position, url in enumerate(urls):
        answers = []
        for number in range(requests_per_url):
            answers.append(ask(opener, url, timeout_seconds))
            toolkit.progress(position * requests_per_url + number + 1, total, url)
        finding = summarise(url, answers)
        if finding["latency_ms"] is not None:
            toolkit.metric("latency_p50_ms", finding["latency_ms"]["p50"], url=url)
        yield finding


def check(urls: list[str], requests_per_url: int, timeout_seconds: float) -> None:
    """Raise ValueError with every mistake in the parameters, or return."""
    problems = [f"{url!r}: {problem}" for url in urls if (problem := what_is_wrong_with(url))]
    if not urls or not isinstance(urls, list):
        problems = ["urls must be a list with at least one URL"]
    if requests_per_url < 1:
        problems.append(f"requests_per_url is {requests_per_url}, it must be at least 1")
    if timeout_seconds <= 0:
        problems.append(f"timeout_seconds is {timeout_seconds}, it must be more than 0")
    if problems:
        raise ValueError("; ".join(problems))


def what_is_wrong_with(url: object) -> str | None:
    """The reason why `url` can't be probed, or None."""
    if not isinstance(url, str):
        return "not a string"
    if not url.isascii() or not url.isprintable() or " " in url:
        return "spaces, control and non-ASCII characters must be percent-encoded"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        return str(exc)
    if parts.scheme not in {"http", "https"}:
        return "only http:// and https:// URLs are probed"
    if not host:
        return "there is no host in it"
    if "@" in parts.netloc:
        return "leave the credentials out: they would end up in the results"
    return None


def ask(opener: urllib.request.OpenerDirector, url: str, timeout_seconds: float) -> Answer:
    """Make one request and measure its time; errors are part of the answer."""
    request = urllib.request.Request(url, headers={"User-Agent": USER_AGENT})  # noqa: S310 - http(s) only, see check
    started = time.monotonic()
    deadline = started + timeout_seconds
    try:
        with opener.open(request, timeout=timeout_seconds) as response:
            status: int = response.status
            read_body(response, deadline)
    except (OSError, http.client.HTTPException) as exc:
        return Answer(time.monotonic() - started, error=describe(exc))
    return Answer(time.monotonic() - started, status=status)


def read_body(response: http.client.HTTPResponse, deadline: float) -> None:
    """Read the body up to the size limit; raises an error if it is late or incomplete."""
    remaining_bytes = BODY_LIMIT_BYTES
    while remaining_bytes > 0 and (chunk := response.read1(min(remaining_bytes, 65_536))):
        remaining_bytes -= len(chunk)
        if time.monotonic() > deadline:
            raise TimeoutError("the answer took too long to arrive")
    if remaining_bytes > 0 and response.length:
        raise ConnectionError(f"the answer broke off, {response.length} bytes before its end")


def describe(exc: Exception) -> str:
    """The error as text; urllib wraps the original error in `reason`."""
    reason = getattr(exc, "reason", exc)
    return f"{type(reason).__name__}: {reason}" if isinstance(reason, Exception) else str(reason)


def summarise(url: str, answers: list[Answer]) -> dict[str, Any]:
    """The finding for one URL from all its answers."""
    statuses = [answer.status for answer in answers if answer.status is not None]
    errors = [answer.error for answer in answers if answer.error is not None]
    latencies_ms = [answer.seconds * 1000 for answer in answers if answer.status is not None]
    return {
        "url": url,
        "ok": not errors and all(status < 400 for status in statuses),
        "status": statuses[-1] if statuses else None,
        "statuses": {str(status): count for status, count in sorted(Counter(statuses).items())},
        "requests": len(answers),
        "failures": len(errors),
        "latency_ms": {f"p{rank}": percentile(latencies_ms, rank) for rank in (50, 90, 99)}
        if latencies_ms
        else None,
        "error": errors[-1] if errors else None,
    }


def percentile(values: list[float], rank: int) -> float:
    """The percentile of the values, by the nearest-rank method."""
    ordered = sorted(values)
    return round(ordered[math.ceil(rank / 100 * len(ordered)) - 1], 3)
