# /// script
# requires-python = ">=3.11"
# [tool.fullsend]
# environment = ["RESEND_API_KEY"]
# ///
"""Send one personal email to each recipient through Resend, and never the same one twice.

One request sends up to 100 emails (https://resend.com/docs/api-reference/emails/send-batch-emails).  A retry
does not repeat them for two reasons: the executor records the batches that were sent, and each request has an
idempotency key made of the run and the batch's number, with which Resend recognises a batch whose response
was lost.
"""

import hashlib
import http.client
import json
import os
import re
import time
import urllib.request
import uuid
from collections.abc import Mapping
from functools import partial
from html import escape
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from shared import toolkit

BATCH_SIZE = 100
LONGEST_PAUSE_SECONDS = 5.0
PLACEHOLDER = re.compile(r"\{\{\s*(\w+)\s*\}\}")
_BARE = r"[^\s@<>(),;:\"\[\]]+@[^\s@<>(),;:\"\[\]]+\.[^\s@<>(),;:\"\[\].]+"
ADDRESS = re.compile(rf'(?P<bare>{_BARE})|(?:[^<>,;"]*|"[^"]*" )<(?P<named>{_BARE})>')


class InvalidEmailError(ValueError):
    """An email can't be sent; nothing was sent."""


class ResendError(Exception):
    """Resend refused the request or did not answer; `partial_results` are the emails sent before."""

    def __init__(self, message: str, *, retryable: bool = False, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.retry_after = retry_after
        self.partial_results: list[dict[str, str]] | None = None


class RateLimitError(ResendError):
    """The rate limit is reached for the next `retry_after` seconds."""


class Letter(NamedTuple):
    """The email of all recipients, before `{{name}}` is replaced."""

    sender: str
    subject: str
    html: str
    text: str
    reply_to: str


def resend_email(
    recipients: list[str | dict[str, Any]],
    subject: str,
    from_email: str,
    html: str = "",
    text: str = "",
    template: str = "",
    variables: dict[str, Any] | None = None,
    reply_to: str = "",
    api_url: str = "https://api.resend.com",
    timeout_seconds: float = 30.0,
) -> dict[str, Any]:
    """Send one email per recipient, with `{{name}}` in subject and body filled in for each.

    Everything is checked before anything is sent.  Needs the variable RESEND_API_KEY.

    Args:
        recipients: Addresses, or objects with `email` and what the placeholders name, such as
            `first_name`.
        subject: May hold placeholders, as the bodies may.
        from_email: `jake@example.com` or `Jake <jake@example.com>`, of a domain verified at Resend.
        html: The body as HTML; values are escaped in it.
        text: The body as plain text; may accompany `html`.
        template: Instead of both: plain text, sent as it is and, by paragraphs, as HTML.
        variables: Values for placeholders that a recipient has no value for.
        reply_to: Where answers go, when not to the sender.
        api_url: Where Resend is.
        timeout_seconds: How long one request may take.

    Returns:
        `emails_sent`, `sent` (address and Resend's id of each), `emails_rejected`, `rejected`
        (address and Resend's reason) and `batches`.
    """
    resend = Resend(api_url, timeout_seconds)
    letter = checked_letter(from_email, subject, html, text, template, reply_to)
    emails = compose(recipients, letter, variables or {})
    batches = [emails[start : start + BATCH_SIZE] for start in range(0, len(emails), BATCH_SIZE)]
    sent: list[dict[str, str]] = []
    rejected: list[dict[str, str]] = []
    for number, batch in enumerate(batches, start=1):
        try:
            outcome = toolkit.once(f"batch {number}", partial(resend.send, batch, idempotency_key(number)))
        except ResendError as exc:
            exc.partial_results = sent or None
            raise
        for email in outcome["sent"]:
            toolkit.partial(email)
        sent += outcome["sent"]
        rejected += outcome["rejected"]
        toolkit.progress(len(sent) + len(rejected), len(emails), f"batch {number} of {len(batches)}")
    if not sent:
        raise ResendError(f"Resend rejected every recipient, the first with: {rejected[0]['error']}")
    counts = {"emails_sent": len(sent), "emails_rejected": len(rejected), "batches": len(batches)}
    return {**counts, "sent": sent, "rejected": rejected, "success": True}


def idempotency_key(batch_number: int) -> str:
    """The idempotency key of a batch: the same in every attempt of a run."""
    # Calls by hand all have the same run id, and each of them must send.
    run_id = str(uuid.uuid4()) if toolkit.run.id == "by-hand" else toolkit.run.id
    key = f"{quote(run_id)}/{batch_number}"
    return key if len(key) <= 256 else hashlib.sha256(key.encode()).hexdigest()  # Resend's maximum length


# -- emails ---------------------------------------------------------------------------


def checked_letter(sender: str, subject: str, html: str, text: str, template: str, reply_to: str) -> Letter:
    """Check the letter; returns it."""
    if template and (html or text):
        raise InvalidEmailError("template stands for both bodies: leave out html and text, or template")
    if template:
        html, text = paragraphs(template), template
    if not subject.strip() or not (html or text).strip():
        raise InvalidEmailError("an email needs a subject, and html, text or template")
    for name, part in (("subject", subject), ("html", html), ("text", text)):
        if "{{" in PLACEHOLDER.sub("", part):
            raise InvalidEmailError(f"{name} holds a placeholder that is not of the form {{{{first_name}}}}")
    for name, address in (("from_email", sender), ("reply_to", reply_to or sender)):
        if not bare_address(address):
            raise InvalidEmailError(f"{name} {address!r} is not an email address")
    return Letter(sender, subject, html, text, reply_to)


def paragraphs(template: str) -> str:
    """Plain text as HTML: an empty line ends a paragraph, and line breaks are kept."""
    blocks = re.split(r"\n\s*\n", escape(template.strip(), quote=False))
    return "\n".join("<p>" + block.replace("\n", "<br>\n") + "</p>" for block in blocks)


def compose(recipients: list[Any], letter: Letter, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One email per recipient in the API's form; raises InvalidEmailError with all mistakes."""
    if not isinstance(recipients, list) or not recipients:
        raise InvalidEmailError("recipients must be a list with at least one address")
    emails: dict[str, dict[str, Any]] = {}
    problems = []
    for position, recipient in enumerate(recipients, start=1):
        try:
            address, email = compose_one(recipient, letter, variables)
        except InvalidEmailError as exc:
            problems.append(f"recipient {position}: {exc}")
        else:
            if emails.setdefault(address, email) is not email:
                problems.append(f"recipient {position}: {address} is there twice")
    if problems:
        more = f"; and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise InvalidEmailError("nothing was sent: " + "; ".join(problems[:10]) + more)
    return list(emails.values())


def compose_one(recipient: Any, letter: Letter, variables: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The bare address of one recipient, and the email."""
    person = {"email": recipient} if isinstance(recipient, str) else recipient
    address = bare_address(person.get("email")) if isinstance(person, dict) else ""
    if not address:
        raise InvalidEmailError(f"{recipient!r} is neither an address nor an object with one in `email`")
    values = {**variables, **{name: value for name, value in person.items() if value not in (None, "")}}
    subject = fill(letter.subject, values).strip()
    if not subject.isprintable():
        raise InvalidEmailError("the subject would have a line break or a control character in it")
    email = {"from": letter.sender, "to": [person["email"]], "subject": subject}
    if letter.html:
        email["html"] = fill(letter.html, {name: escape(str(value)) for name, value in values.items()})
    if letter.text:
        email["text"] = fill(letter.text, values)
    if letter.reply_to:
        email["reply_to"] = letter.reply_to
    return address.lower(), email


def bare_address(text: object) -> str:
    """The bare address in `ada@example.com` or `Ada <ada@example.com>`; empty if there is none."""
    found = ADDRESS.fullmatch(text) if isinstance(text, str) and text.isprintable() else None
    return (found["bare"] or found["named"]) if found else ""


def fill(template: str, values: Mapping[str, Any]) -> str:
    """`template` with its placeholders replaced; a placeholder without a value is an error."""
    if missing := sorted({name for name in PLACEHOLDER.findall(template) if name not in values}):
        raise InvalidEmailError(f"no value for {', '.join(missing)}")
    return PLACEHOLDER.sub(lambda found: str(values[found[1]]), template)


# -- Resend's API ---------------------------------------------------------------------


class EveryStatus(urllib.request.HTTPErrorProcessor):
    """Returns every response unchanged, so that no redirect sends the key to another host."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class Resend:
    """Sends batches with one API key, which no message contains."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        if (parts.scheme, parts.hostname) != ("http", "127.0.0.1") and parts.scheme != "https":
            raise ValueError(f"api_url {url!r} must be https: the key would be readable on the way")
        self.url = url.rstrip("/") + "/emails/batch"
        self.timeout_seconds = timeout_seconds
        self.pause_seconds = 0.0
        self.opener = urllib.request.build_opener(EveryStatus)
        self.key = os.environ.get("RESEND_API_KEY", "").strip()
        if not self.key:
            raise ResendError("RESEND_API_KEY is not set: create a key at https://resend.com/api-keys")
        if not self.key.isascii() or not self.key.isprintable():
            raise ResendError("RESEND_API_KEY holds characters that no key has: copy it again")

    def send(self, batch: list[dict[str, Any]], idempotency_key: str) -> dict[str, list[dict[str, str]]]:
        """Send one batch; returns the sent emails, and the rejected ones with reasons."""
        headers = {
            "Authorization": f"Bearer {self.key}",
            "Content-Type": "application/json",
            "Idempotency-Key": idempotency_key,
            "User-Agent": "fullsend-resend-email/1.0",
            # One invalid recipient must not prevent the other 99 emails.
            "x-batch-validation": "permissive",
        }
        request = urllib.request.Request(self.url, json.dumps(batch).encode(), headers)  # noqa: S310 - see __init__
        time.sleep(self.pause_seconds)  # a refusal would cost an attempt
        self.pause_seconds = 0.0
        try:
            with self.opener.open(request, timeout=self.timeout_seconds) as response:
                status, answer_headers, body = response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "reason", exc)
            raise ResendError(f"{self.url} can't be reached: {reason}", retryable=True) from exc
        if status != 200:
            raise refusal(status, answer_headers, body)
        outcome = read_outcome([email["to"][0] for email in batch], body)
        toolkit.metric("emails_sent", len(outcome["sent"]))
        if answer_headers.get("ratelimit-remaining") == "0":
            self.pause_seconds = min(seconds(answer_headers, "ratelimit-reset", 1.0), LONGEST_PAUSE_SECONDS)
        return outcome


def read_outcome(addresses: list[str], body: bytes) -> dict[str, list[dict[str, str]]]:
    """Match Resend's response to the batch: ids of accepted emails in order, errors by index."""
    try:
        answer = json.loads(body)
        errors = {error["index"]: str(error["message"]) for error in answer.get("errors") or []}
        rejected = [{"email": addresses[index], "error": message} for index, message in errors.items()]
        accepted = [address for index, address in enumerate(addresses) if index not in errors]
        entries = zip(accepted, answer["data"], strict=True)
        sent = [{"email": address, "id": str(entry["id"])} for address, entry in entries]
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        # A retry is safe: with the idempotency key it returns the same response and sends no second email.
        message = f"Resend answered 200 with something else than it documents: {body[:200]!r}"
        raise ResendError(message, retryable=True) from exc
    return {"sent": sent, "rejected": rejected}


def refusal(status: int, headers: Mapping[str, str], body: bytes) -> ResendError:
    """The error for a status other than 200 (https://resend.com/docs/api-reference/errors)."""
    try:
        answer = json.loads(body)
        name, detail = str(answer["name"]), str(answer["message"])
    except (ValueError, LookupError, TypeError):
        name, detail = "", body[:200].decode(errors="replace")
    message = f"Resend answered {status} {name}: {detail}"
    if status == 429 and not name.endswith("_quota_exceeded"):
        return RateLimitError(message, retryable=True, retry_after=seconds(headers, "retry-after", 1.0))
    if name == "concurrent_idempotent_requests":
        return ResendError(message, retryable=True, retry_after=seconds(headers, "retry-after", 2.0))
    return ResendError(message, retryable=status >= 500)


def seconds(headers: Mapping[str, str], name: str, default: float) -> float:
    """The number of seconds in a header, or `default`."""
    value = headers.get(name) or ""
    return float(value) if value.isdecimal() else default
