"""What a worker says of itself over HTTP, as `fullsend doctor` reads it."""

import http.client
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from services.cli import output
from services.cli.findings import Finding, ok, problem, warning
from shared.connection import without_password

ANSWER_SECONDS = 5.0

Series = dict[str, float]
"""Values by name; those that differ in labels only are added up."""

COUNTED = {
    "fullsend_runs_buried_total": "runs were buried, because workers had died over them",
    "fullsend_outcomes_refused_total": "outcomes came too late: the worker had been taken for dead",
    "fullsend_redis_unavailable_total": "times Redis was not there when it was asked",
}
"""What should be 0 in a life without trouble, and what it says when it is not."""


def said_by(url: str) -> Iterator[Finding]:
    """`/healthz`, `/readyz` and `/metrics` of the worker at `url`, as findings.

    Args:
        url: `http://HOST:PORT`, also without the scheme, or a port of this machine.
    """
    address = _address(url)
    shown = without_password(address)
    try:
        yield from _told(address, "healthz", "alive", "its event loop turns")
        yield from _told(address, "readyz", "ready", "it takes runs")
        yield from _measured(_series(_get(address, "metrics")))
    except (OSError, ValueError, TypeError, LookupError, AttributeError, http.client.HTTPException) as exc:
        yield problem(shown, f"does not answer as a worker does: {output.one_line(str(exc))}")


def _address(url: str) -> str:
    if url.isdecimal():
        url = f"127.0.0.1:{url}"
    return (url if "://" in url else f"http://{url}").rstrip("/")


def _told(address: str, path: str, fact: str, meaning: str) -> Iterator[Finding]:
    said = json.loads(_get(address, path))
    subject = f"{said['worker']} /{path}"
    if said[fact] is True:
        yield ok(subject, f"{fact}: {meaning}")
    for name, reason in said["missing"].items():
        yield problem(subject, f"not {fact}: {name}: {reason}")


def _measured(series: Series) -> Iterator[Finding]:
    busy, slots = series["fullsend_slots_busy"], series["fullsend_slots_total"]
    yield ok("/metrics", f"{busy:.0f} of {slots:.0f} slots are busy")
    for name, meaning in COUNTED.items():
        if series.get(name):
            yield warning("/metrics", f"{series[name]:.0f} {meaning}")


def _series(text: str) -> Series:
    series: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series[sample.name] = series.get(sample.name, 0.0) + float(sample.value)
    if "fullsend_slots_busy" not in series:
        raise ValueError("/metrics has no fullsend_slots_busy")
    return series


def _get(address: str, path: str) -> str:
    parts = urlsplit(address)
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    if parts.scheme not in kinds or not parts.hostname:
        raise ValueError("expected http://HOST:PORT")
    connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", f"{parts.path}/{path}")
        body: bytes = connection.getresponse().read()
    finally:
        connection.close()
    return body.decode()
