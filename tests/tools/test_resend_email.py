"""Emails through a server that speaks Resend's API: what is sent, and that it is sent once."""

from types import ModuleType

import pytest

import shared.toolkit
from tests.tools.conftest import RecordingToolkit, Send
from tests.tools.fake_resend import KEY, FakeResend, error, people

# -- what is sent ---------------------------------------------------------------------


def test_every_recipient_gets_an_email_and_an_id(send: Send, resend: FakeResend) -> None:
    result = send(recipients=["ada@example.com", {"email": "Bob <bob@example.com>"}])

    assert result == {
        "emails_sent": 2,
        "emails_rejected": 0,
        "batches": 1,
        "sent": [
            {"email": "ada@example.com", "id": "id-0"},
            {"email": "Bob <bob@example.com>", "id": "id-1"},
        ],
        "rejected": [],
        "success": True,
    }
    assert resend.delivered[0] == {
        "from": "Jake <jake@example.com>",
        "to": ["ada@example.com"],
        "subject": "Hi",
        "text": "Hello",
    }


def test_the_request_is_what_resend_documents(send: Send, resend: FakeResend) -> None:
    send(recipients=people(1))

    [request] = resend.api.requests
    assert (request.method, request.path) == ("POST", "/emails/batch")
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("fullsend")
    assert request.headers["x-batch-validation"] == "permissive"


def test_placeholders_are_filled_in_for_each_recipient(send: Send, resend: FakeResend) -> None:
    send(
        recipients=[
            {"email": "ada@example.com", "first_name": "Ada"},
            {"email": "bob@example.com", "first_name": None},
        ],
        subject="Re: {{ repo_name }}",
        text="Hi {{first_name}}, {{repo_name}} it is.",
        variables={"first_name": "there", "repo_name": "next.js"},
    )

    assert [email["subject"] for email in resend.delivered] == ["Re: next.js"] * 2
    assert [email["text"] for email in resend.delivered] == [
        "Hi Ada, next.js it is.",
        "Hi there, next.js it is.",
    ]


def test_values_are_escaped_in_html_and_not_in_text(send: Send, resend: FakeResend) -> None:
    who = {"email": "eve@example.com", "first_name": "<b>Eve & Co</b>"}
    send(recipients=[who], html="<p>{{first_name}}</p>", text="{{first_name}}")

    assert resend.delivered[0]["html"] == "<p>&lt;b&gt;Eve &amp; Co&lt;/b&gt;</p>"
    assert resend.delivered[0]["text"] == "<b>Eve & Co</b>"


def test_a_value_with_braces_is_not_a_placeholder_again(send: Send, resend: FakeResend) -> None:
    who = {"email": "eve@example.com", "first_name": "{{secret}}"}
    send(recipients=[who], text="Hi {{first_name}}", variables={"secret": "x"})

    assert resend.delivered[0]["text"] == "Hi {{secret}}"


def test_a_template_is_sent_as_text_and_as_html(send: Send, resend: FakeResend) -> None:
    template = "Hi {{first_name}},\n\nA < B\nand on.\n"
    send(recipients=[{"email": "a@example.com", "first_name": "Ada"}], text="", template=template)

    assert resend.delivered[0]["text"] == "Hi Ada,\n\nA < B\nand on.\n"
    assert resend.delivered[0]["html"] == "<p>Hi Ada,</p>\n<p>A &lt; B<br>\nand on.</p>"


def test_answers_go_to_reply_to(send: Send, resend: FakeResend) -> None:
    send(recipients=people(1), reply_to="sales@example.com")

    assert resend.delivered[0]["reply_to"] == "sales@example.com"


def test_more_than_a_hundred_recipients_go_out_in_batches(
    send: Send, resend: FakeResend, toolkit: RecordingToolkit
) -> None:
    result = send(recipients=people(201))

    assert [len(request.body) for request in resend.api.requests] == [100, 100, 1]
    assert [entry["email"] for entry in result["sent"]] == people(201)
    assert toolkit.steps == [(100, 201), (200, 201), (201, 201)]
    assert toolkit.metrics == [("emails_sent", 100), ("emails_sent", 100), ("emails_sent", 1)]
    assert toolkit.partials == result["sent"]


def test_a_recipient_that_resend_rejects_is_named_and_the_others_get_theirs(
    send: Send, resend: FakeResend
) -> None:
    result = send(recipients=["a@example.com", "b@invalid.example", "c@example.com"])

    assert result["sent"] == [
        {"email": "a@example.com", "id": "id-0"},
        {"email": "c@example.com", "id": "id-1"},
    ]
    assert result["rejected"] == [{"email": "b@invalid.example", "error": "The `to` address is not valid."}]


def test_a_run_in_which_everyone_is_rejected_fails(
    send: Send, mailer: ModuleType, resend: FakeResend
) -> None:
    with pytest.raises(mailer.ResendError, match="rejected every recipient") as caught:
        send(recipients=["b@invalid.example"])

    assert caught.value.retryable is False


# -- never twice ----------------------------------------------------------------------


def test_idempotency_keys_are_the_same_in_every_attempt_and_differ_by_batch(
    send: Send, resend: FakeResend, toolkit: RecordingToolkit
) -> None:
    send(recipients=people(101))
    toolkit.effects.clear()  # as if the executor had died before it could remember
    toolkit.run.attempt = 2
    send(recipients=people(101))

    keys = [request.headers["idempotency-key"] for request in resend.api.requests]
    assert keys[:2] == keys[2:]
    assert len(set(keys)) == 2
    assert len(resend.delivered) == 101


def test_another_run_has_other_idempotency_keys(
    send: Send, resend: FakeResend, toolkit: RecordingToolkit
) -> None:
    send(recipients=people(1))
    toolkit.effects.clear()
    toolkit.run.id = "exp_outreach:1705320000001-0"
    send(recipients=people(1))

    assert len(resend.delivered) == 2


def test_calls_by_hand_are_not_taken_for_attempts_of_one_run(
    send: Send, resend: FakeResend, toolkit: RecordingToolkit
) -> None:
    toolkit.run.id = shared.toolkit.run.id
    send(recipients=people(1))
    toolkit.effects.clear()
    send(recipients=people(1))

    assert len(resend.delivered) == 2


@pytest.mark.parametrize("run_id", ["é:\u4e2d:1-0", "x" * 400 + ":1-0"], ids=["not ascii", "long"])
def test_an_idempotency_key_fits_into_the_header_whatever_the_run_is_called(
    send: Send, resend: FakeResend, toolkit: RecordingToolkit, run_id: str
) -> None:
    toolkit.run.id = run_id
    send(recipients=people(1))

    key = resend.api.requests[0].headers["idempotency-key"]
    assert 1 <= len(key) <= 256
    assert key.isascii()


def test_a_retry_asks_only_for_the_batches_that_are_missing(
    send: Send, mailer: ModuleType, resend: FakeResend, toolkit: RecordingToolkit
) -> None:
    resend.refusals[2] = error(500, "internal_server_error", "An unexpected error occurred.")
    with pytest.raises(mailer.ResendError):
        send(recipients=people(101))

    result = send(recipients=people(101))

    assert [len(request.body) for request in resend.api.requests] == [100, 1, 1]
    assert result["emails_sent"] == 101
    assert sum(value for _, value in toolkit.metrics) == 101
