"""What the tool makes of Resend's refusals, and what it refuses to send itself."""

from types import ModuleType
from typing import Any

import pytest

from tests.tools.conftest import Send
from tests.tools.fake_resend import FakeResend, error, people
from tests.tools.local_api import LocalApi, Reply

# -- refusals -------------------------------------------------------------------------


def test_a_failure_in_the_middle_keeps_what_was_sent(
    send: Send, mailer: ModuleType, resend: FakeResend
) -> None:
    resend.refusals[2] = error(500, "internal_server_error", "An unexpected error occurred.")
    with pytest.raises(mailer.ResendError, match="500 internal_server_error") as caught:
        send(recipients=people(150))

    assert caught.value.retryable is True
    assert [entry["email"] for entry in caught.value.partial_results] == people(100)


def test_a_rate_limit_is_retried_when_resend_says(send: Send, mailer: ModuleType, resend: FakeResend) -> None:
    resend.refusals[1] = error(429, "rate_limit_exceeded", "Too many requests.", retry_after="3")
    with pytest.raises(mailer.RateLimitError) as caught:
        send(recipients=people(1))

    assert caught.value.retryable is True
    assert caught.value.retry_after == 3.0
    assert caught.value.partial_results is None


def test_a_used_up_window_is_waited_for_before_the_next_batch_only(
    send: Send, mailer: ModuleType, resend: FakeResend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(mailer.time, "sleep", pauses.append)
    answer = resend.answer
    limits = {"ratelimit-limit": "5", "ratelimit-remaining": "0", "ratelimit-reset": "1"}
    resend.api.answer = lambda request: answer(request)._replace(headers=limits)
    send(recipients=people(200))

    assert pauses == [0.0, 1.0]


@pytest.mark.parametrize(
    ("status", "name", "retryable"),
    [
        (400, "validation_error", False),
        (401, "missing_api_key", False),
        (403, "validation_error", False),
        (404, "not_found", False),
        (409, "invalid_idempotent_request", False),
        (409, "concurrent_idempotent_requests", True),
        (422, "missing_required_field", False),
        (429, "daily_quota_exceeded", False),
        (429, "monthly_quota_exceeded", False),
        (500, "application_error", True),
    ],
)
def test_a_refusal_is_retried_only_if_that_can_help(
    send: Send, mailer: ModuleType, resend: FakeResend, status: int, name: str, retryable: bool
) -> None:
    resend.refusals[1] = error(status, name, "because")
    with pytest.raises(mailer.ResendError, match=f"{status} {name}: because") as caught:
        send(recipients=people(1))

    assert caught.value.retryable is retryable
    assert not isinstance(caught.value, OSError)


@pytest.mark.parametrize(
    "body",
    [b"<html>", b"null", b"{}", b'{"data": []}', b'{"data": [{}]}'],
    ids=["html", "null", "empty", "few", "no id"],
)
def test_an_answer_that_is_not_documented_is_asked_for_again(
    send: Send, mailer: ModuleType, resend: FakeResend, body: bytes
) -> None:
    resend.refusals[1] = Reply(body)
    with pytest.raises(mailer.ResendError, match="something else than it documents") as caught:
        send(recipients=people(1))

    assert caught.value.retryable is True


def test_an_error_page_that_is_not_json_is_quoted(send: Send, mailer: ModuleType, resend: FakeResend) -> None:
    resend.refusals[1] = Reply(b"<h1>502 Bad Gateway</h1>", 502)
    with pytest.raises(mailer.ResendError, match="Bad Gateway") as caught:
        send(recipients=people(1))

    assert caught.value.retryable is True


def test_a_redirect_is_a_refusal_and_never_followed(
    send: Send, mailer: ModuleType, resend: FakeResend
) -> None:
    resend.refusals[1] = Reply(b"", 302, {"location": "/elsewhere"})
    with pytest.raises(mailer.ResendError, match="302"):
        send(recipients=people(1))

    assert resend.api.paths == ["/emails/batch"]


def test_a_refused_connection_is_retryable(
    send: Send, mailer: ModuleType, nobody: str, resend: FakeResend
) -> None:
    with pytest.raises(mailer.ResendError, match="can't be reached") as caught:
        send(recipients=people(1), api_url=nobody)

    assert caught.value.retryable is True


def test_an_answer_that_breaks_off_is_retryable(send: Send, mailer: ModuleType, resend: FakeResend) -> None:
    resend.refusals[1] = Reply(b"{", headers={"content-length": "1000"})
    with pytest.raises(mailer.ResendError, match="can't be reached") as caught:
        send(recipients=people(1))

    assert caught.value.retryable is True


# -- checked before anything is sent --------------------------------------------------


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"recipients": []}, "at least one"),
        ({"recipients": "ada@example.com"}, "must be a list"),
        ({"recipients": ["ada@example.com", "nobody"]}, "recipient 2: 'nobody'"),
        ({"recipients": ["ada@example"]}, "recipient 1"),
        ({"recipients": ["ada@example.com, bob@example.com"]}, "recipient 1"),
        ({"recipients": ["Ada <ada@example.com"]}, "recipient 1"),
        ({"recipients": ["ada@example.com\nBcc: x@example.com"]}, "recipient 1"),
        ({"recipients": [{"name": "Ada"}]}, "in `email`"),
        ({"recipients": [7]}, "recipient 1"),
        (
            {"recipients": ["Ada@example.com", "Ada <ada@example.com>"]},
            "recipient 2: ada@example.com is there twice",
        ),
        ({"subject": " "}, "needs a subject"),
        ({"text": ""}, "html, text or template"),
        ({"template": "Hi"}, "leave out html and text"),
        ({"text": "Hi {{first_name}}"}, "no value for first_name"),
        ({"text": "Hi {{first name}}"}, "text holds a placeholder"),
        ({"subject": "{{x}}", "variables": {"x": "a\nBcc: b"}}, "line break"),
        ({"from_email": "jake"}, "from_email 'jake'"),
        ({"reply_to": "jake"}, "reply_to 'jake'"),
        ({"api_url": "http://api.example.com"}, "must be https"),
    ],
)
def test_what_cant_be_sent_is_refused_before_anything_is(
    send: Send, resend: FakeResend, params: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        send(**{"recipients": ["ada@example.com"], **params})

    assert resend.api.requests == []


def test_all_bad_recipients_are_named_up_to_ten(send: Send, mailer: ModuleType, resend: FakeResend) -> None:
    with pytest.raises(mailer.InvalidEmailError) as caught:
        send(recipients=["ok@example.com", *["bad"] * 12])

    assert str(caught.value).count("recipient ") == 10
    assert str(caught.value).endswith("and 2 more")


def test_a_missing_key_is_said_plainly(send: Send, mailer: ModuleType, api: LocalApi) -> None:
    with pytest.raises(mailer.ResendError, match="RESEND_API_KEY is not set"):
        send(recipients=people(1))

    assert api.requests == []


def test_a_broken_key_is_not_quoted(
    send: Send, mailer: ModuleType, api: LocalApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESEND_API_KEY", "re_secret\r\nX-Evil: 1")
    with pytest.raises(mailer.ResendError) as caught:
        send(recipients=people(1))

    assert "secret" not in str(caught.value)
    assert api.requests == []
