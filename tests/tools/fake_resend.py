"""Resend's API as documented, as far as the tool uses it."""

from typing import Any

from tests.tools.local_api import LocalApi, Reply, Request

KEY = "re_123_test"


class FakeResend:
    """`POST /emails/batch`: ids for what is accepted, the same again for the same idempotency key."""

    def __init__(self, api: LocalApi) -> None:
        self.delivered: list[dict[str, Any]] = []
        self.refusals: dict[int, Reply] = {}
        self.answers: dict[str, tuple[Any, Any]] = {}
        self.api = api
        api.answer = self.answer

    def answer(self, request: Request) -> Reply:
        if (refusal := self.refusals.pop(len(self.api.requests), None)) is not None:
            return refusal
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return error(403, "invalid_api_key", "API key is invalid")
        key = request.headers["idempotency-key"]
        if key not in self.answers:
            self.answers[key] = (request.body, self.deliver(request.body))
        body, answer = self.answers[key]
        if body != request.body:
            return error(
                409, "invalid_idempotent_request", "Same idempotency key used with a different payload"
            )
        return Reply(answer)

    def deliver(self, batch: list[dict[str, Any]]) -> dict[str, Any]:
        assert 1 <= len(batch) <= 100
        good = [email for email in batch if "invalid" not in email["to"][0]]
        errors = [
            {"index": index, "message": "The `to` address is not valid."}
            for index, email in enumerate(batch)
            if email not in good
        ]
        first = len(self.delivered)
        self.delivered += good
        return {"data": [{"id": f"id-{first + n}"} for n in range(len(good))], "errors": errors}


def error(status: int, name: str, message: str, **headers: str) -> Reply:
    """An error in Resend's shape; header names are written with underscores."""
    body = {"statusCode": status, "name": name, "message": message}
    return Reply(body, status, {key.replace("_", "-"): value for key, value in headers.items()})


def people(count: int) -> list[str]:
    return [f"p{number}@example.com" for number in range(count)]
