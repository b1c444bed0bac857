"""Log lines are JSON objects, or readable on a terminal, and hold no secrets."""

import asyncio
import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from shared import log as logs


class Lines(io.StringIO):
    """Where log lines go; a terminal if need be."""

    is_terminal = False

    def isatty(self) -> bool:
        return self.is_terminal

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def last(self) -> dict[str, Any]:
        return self.all()[-1]


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Undo what a test sets up."""
    before = set(logs.known_secrets)
    yield
    logs.known_secrets.intersection_update(before)
    structlog.reset_defaults()


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture
def log(lines: Lines) -> Any:
    """A logger for machines."""
    logs.configure(file=lines)
    return structlog.get_logger()


@pytest.fixture
def readable(lines: Lines) -> Any:
    """A logger for people."""
    logs.configure(file=lines, readable=True)
    return structlog.get_logger()


# -- shape ----------------------------------------------------------------------------


def test_a_line_is_a_json_object(log: Any, lines: Lines) -> None:
    log.info("run.started", tool="ü", attempt=2)

    line = lines.last()
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "run.started", "level": "info", "tool": "ü", "attempt": 2}


def test_a_line_break_in_a_value_does_not_break_the_line(log: Any, lines: Lines) -> None:
    log.info("run.failed", error="first\nsecond")

    assert len(lines.all()) == 1


def test_a_terminal_gets_readable_lines(lines: Lines) -> None:
    lines.is_terminal = True
    logs.configure(file=lines)
    structlog.get_logger().info("run.started", tool="a")

    assert "run.started" in lines.getvalue()
    assert not lines.getvalue().startswith("{")


def test_events_below_the_level_are_not_written(lines: Lines) -> None:
    logs.configure(file=lines, level="warning")
    log = structlog.get_logger()
    log.info("run.started")
    log.warning("run.failed")

    assert [line["event"] for line in lines.all()] == ["run.failed"]


def test_lines_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    structlog.get_logger().info("run.started")

    captured = capsys.readouterr()
    assert json.loads(captured.err)["event"] == "run.started"
    assert captured.out == ""


async def test_fields_bound_in_a_task_are_only_on_its_own_lines(log: Any, lines: Lines) -> None:
    async def run(run_id: str) -> None:
        with structlog.contextvars.bound_contextvars(run_id=run_id):
            log.info("run.started")
            await asyncio.sleep(0)
            log.info("run.finished")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run("a:1"))
        tasks.create_task(run("b:2"))
    log.info("service.stopped")

    assert [line.get("run_id") for line in lines.all()] == ["a:1", "b:2", "a:1", "b:2", None]


def test_values_that_json_does_not_have_are_written_as_text(log: Any, lines: Lines) -> None:
    log.info("run.failed", path=Path("/tmp/x"), names={"a"}, raw=b"x", keyed={1: 2, (3, 4): 5})

    line = lines.last()
    assert (line["path"], line["names"], line["raw"]) == ("/tmp/x", "{'a'}", "b'x'")
    assert line["keyed"] == {"1": 2, "(3, 4)": 5}


# -- secrets --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *(
            "password",
            "redis_password",
            "PASSWD",
            "client_secret",
            "token",
            "access_token",
            "api_key",
            "apikey",
        ),
        *("X-Api-Key", "Authorization", "credentials", "private_key", "private-key"),
    ],
)
def test_a_secret_is_known_by_its_name(name: str, log: Any, lines: Lines) -> None:
    log.info("tool.called", **{name: "hunter2"})
    log.info("tool.called", params={"deep": [{name: "hunter2"}]})
    log.info("tool.called", params={"deep": ({name: ["hunter2"]},)})

    assert "hunter2" not in lines.getvalue()
    assert lines.getvalue().count("***") == 3


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://:hunter2@host:6379/0", "redis://***@host:6379/0"),
        ("rediss://user:hunter2@host/0", "rediss://***@host/0"),
        ("redis://user:hunter2@hunter2@host/0", "redis://***@host/0"),
        ("https://user:hunter2@example.org/a@b", "https://***@example.org/a@b"),
        ("redis://host/0?password=hunter2&db=1", "redis://host/0?password=***&db=1"),
        ("unix:///run/redis.sock?db=1&password=hunter2", "unix:///run/redis.sock?db=1&password=***"),
    ],
)
def test_a_password_in_an_address_is_masked(address: str, shown: str, log: Any, lines: Lines) -> None:
    log.info(f"redis.awaited {address}", url=address, error=f"at {address} and {address}")

    line = lines.last()
    assert "hunter2" not in lines.getvalue()
    assert (line["url"], line["event"]) == (shown, f"redis.awaited {shown}")
    assert line["error"] == f"at {shown} and {shown}"


def test_an_address_without_a_password_is_shown(log: Any, lines: Lines) -> None:
    text = "redis://localhost:6379/0 and ssh://git@example.org:22/a:b@c and mail user@example.org"
    log.info("redis.awaited", url=text)

    assert lines.last()["url"] == text


def test_a_known_secret_is_masked_everywhere(log: Any, lines: Lines) -> None:
    logs.keep_secret("hunter2-hunter2")
    log.info("got hunter2-hunter2", a="x hunter2-hunter2 y", b=[{"c": "hunter2-hunter2"}])

    line = lines.last()
    assert (line["event"], line["a"], line["b"]) == ("got ***", "x *** y", [{"c": "***"}])


def test_a_secret_that_begins_with_another_is_masked_completely(log: Any, lines: Lines) -> None:
    for secret in ("hunter", "hunter2-tail", "hunter2"):
        logs.keep_secret(secret)
    log.info("tool.called", error="it was hunter2-tail")

    assert lines.last()["error"] == "it was ***"


def test_a_short_text_does_not_count_as_a_secret(log: Any, lines: Lines) -> None:
    logs.keep_secret("a")
    logs.keep_secret("")
    log.info("tool.called", error="a banana")

    assert lines.last()["error"] == "a banana"


class Opaque:
    """An object whose text has a secret."""

    def __repr__(self) -> str:
        return "<at redis://:hunter2@host>"


@pytest.mark.parametrize(
    "value", [Opaque(), ConnectionError("at redis://:hunter2@host"), b"redis://:hunter2@h"]
)
def test_an_object_that_is_written_as_text_is_masked(value: object, log: Any, lines: Lines) -> None:
    log.info("redis.awaited", error=value, all=[value], named={"x": value})

    assert "hunter2" not in lines.getvalue()
    assert lines.getvalue().count("***@h") == 3


def fail() -> None:
    address = "redis://:hunter2@host"
    headers = {"Authorization": "Bearer letmein"}
    raise ConnectionError(f"can't reach {address} with {len(headers)} header")


def test_an_exception_has_neither_a_secret_nor_local_variables(log: Any, lines: Lines) -> None:
    try:
        fail()
    except ConnectionError:
        log.exception("run.broke")

    assert "can't reach redis://***@host with 1 header" in lines.getvalue()
    assert lines.last()["exception"][0]["frames"][-1]["name"] == "fail"
    assert "hunter2" not in lines.getvalue()
    assert "letmein" not in lines.getvalue()


def test_a_readable_exception_has_neither_a_secret_nor_local_variables(readable: Any, lines: Lines) -> None:
    try:
        fail()
    except ConnectionError:
        readable.exception("run.broke", url="redis://:hunter2@host")

    assert "can't reach redis://***@host with 1 header" in lines.getvalue()
    assert "in fail" in lines.getvalue()
    assert "hunter2" not in lines.getvalue()
    assert "letmein" not in lines.getvalue()


def test_a_readable_line_has_no_secret(readable: Any, lines: Lines) -> None:
    readable.info("redis.awaited", password="hunter2", url="redis://:hunter2@host")

    assert "hunter2" not in lines.getvalue()


@pytest.mark.timeout(10)
def test_a_long_text_is_masked_quickly(log: Any, lines: Lines) -> None:
    log.info("tool.printed", text="://" + "a:" * 200_000, addresses="://:" * 100_000)

    assert len(lines.all()) == 1


def test_masking_does_not_change_the_callers_values(log: Any) -> None:
    params = {"token": "hunter2", "deep": [{"url": "redis://:hunter2@host"}]}
    log.info("tool.called", params=params)

    assert params == {"token": "hunter2", "deep": [{"url": "redis://:hunter2@host"}]}


# -- secrets of a run -----------------------------------------------------------------

PEM = "-----BEGIN KEY-----\r\n  MIIEvQIBADANBg\nkqhkiG9w0BAQEF\nshort\n-----END KEY-----\n"


def test_a_secret_of_several_lines_is_masked_line_by_line_too() -> None:
    mask = logs.masking([PEM])

    assert mask(f"all: {PEM}") == "all: ***"
    assert [mask(line) for line in PEM.splitlines()] == ["***", "  ***", "***", "short", "***"]
    assert mask(repr(PEM)) == "'***'"


SECRET = 'pä55 w/rd+"\\x\n'
FORMS = {
    "JSON": json.dumps(SECRET),
    "JSON in UTF-8": json.dumps(SECRET, ensure_ascii=False),
    "Python": repr(SECRET),
    "bytes": repr(SECRET.strip()),
    "a URL": quote(SECRET),
    "a URL, all escaped": quote(SECRET, safe=""),
    "a form": quote_plus(SECRET),
    "a URL in lower case": re.sub("%..", lambda one: one[0].lower(), quote(SECRET)),
    "hex": SECRET.encode().hex(),
    "HEX": SECRET.encode().hex().upper(),
    "base64": base64.b64encode(SECRET.encode()).decode(),
    "base64 without padding": base64.b64encode(SECRET.encode()).decode().rstrip("="),
    "base64 for URLs": base64.urlsafe_b64encode(SECRET.encode()).decode(),
    **{
        f"base64 behind {n} bytes": base64.b64encode(b"u" * n + SECRET.encode() + b"!").decode()
        for n in range(5)
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_in_every_usual_form(form: str) -> None:
    text = f"before {FORMS[form]} after"

    masked = logs.masking([SECRET])(text)

    assert "***" in masked
    assert len(masked) <= len("before ") + len(" after") + 14
    assert masked.startswith("before ")
    assert masked.endswith(" after")


@pytest.mark.parametrize("text", ["before", "hunter", "aHVudGVy", "00000000", "%2F%2F%2F%2F"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.masking([SECRET, "hunter22"])(text) == text


def test_texts_that_differ_by_a_secret_differ_by_its_name() -> None:
    named = logs.naming({"B": "hunter22", "A": "hunter22", "C": "another secret"})

    assert [named(text) for text in ("of hunter22", "of another secret", "of aHVudGVyMjI=")] == [
        "of ${A}",
        "of ${C}",
        "of ${A}=",
    ]


@given(st.text(min_size=1), st.text(), st.text())
def test_any_text_can_be_a_secret(secret: str, before: str, after: str) -> None:
    masked = logs.masking([secret])(before + secret + after)

    assert secret not in masked or len(secret) < logs.SHORTEST_SECRET


def test_a_short_secret_is_not_masked() -> None:
    assert logs.masking(["hunter", "to"])("to hunter") == "to ***"


def test_a_json_value_is_masked_in_its_texts_and_keys() -> None:
    mask = logs.masking(["hunter22"])

    found = logs.masked_within({"hunter22": ["a hunter22", 1, None, {"x": ("hunter22",)}]}, mask)

    assert found == {"***": ["a ***", 1, None, {"x": ["***"]}]}
