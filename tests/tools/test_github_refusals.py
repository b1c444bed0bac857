"""What the scraper makes of GitHub's limits and refusals, and of parameters that can't be right."""

import time
from types import ModuleType
from typing import Any

import pytest

from tests.tools.conftest import Scrape
from tests.tools.fake_github import FakeGitHub
from tests.tools.local_api import Reply


def test_the_hourly_limit_is_waited_for_until_it_resets(
    scrape: Scrape, scraper: ModuleType, github: FakeGitHub
) -> None:
    github.starred("o/r", "bob", "ada")
    github.person("ada")
    message = {"message": "API rate limit exceeded for 127.0.0.1."}
    reset = str(int(time.time()) + 600)
    headers = {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": reset}
    github.refusals["/users/bob"] = Reply(message, 403, headers)
    with pytest.raises(scraper.RateLimitError) as caught:
        scrape(repo="o/r")

    assert caught.value.retryable is True
    assert 500 < caught.value.retry_after <= 601
    assert [lead["login"] for lead in caught.value.partial_results] == ["ada"]


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (403, {"retry-after": "30"}, 30.0),
        (429, {"retry-after": "7", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}, 7.0),
        (403, {"x-ratelimit-remaining": "12"}, 60.0),
        (429, {}, 60.0),
        (429, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1"}, 1.0),
    ],
)
def test_other_limits_are_waited_for_as_github_asks(
    scrape: Scrape,
    scraper: ModuleType,
    github: FakeGitHub,
    status: int,
    headers: dict[str, str],
    seconds: float,
) -> None:
    message = {"message": "You have exceeded a secondary rate limit. Please wait a few minutes."}
    github.refusals["/repos/o/r/stargazers"] = Reply(message, status, headers)
    with pytest.raises(scraper.RateLimitError, match="secondary rate limit") as caught:
        scrape(repo="o/r")

    assert caught.value.retry_after == seconds


def test_the_next_attempt_looks_nobody_up_twice(
    scrape: Scrape, scraper: ModuleType, github: FakeGitHub
) -> None:
    github.starred("o/r", "bob", "ada")
    github.person("ada")
    github.person("bob")
    github.refusals["/users/bob"] = Reply({"message": "slow down"}, 429)
    with pytest.raises(scraper.RateLimitError):
        scrape(repo="o/r")
    github.refusals.clear()

    assert [lead["login"] for lead in scrape(repo="o/r")["leads"]] == ["ada", "bob"]
    assert github.api.paths.count("/users/ada") == 1


@pytest.mark.parametrize(
    ("status", "message", "retryable"),
    [
        (401, "Bad credentials", False),
        (403, "Resource not accessible by personal access token", False),
        (404, "Not Found", False),
        (422, "Validation Failed", False),
        (451, "Repository access blocked", False),
        (500, "Server Error", True),
        (503, "Service unavailable", True),
    ],
)
def test_a_refusal_is_retried_only_if_that_can_help(
    scrape: Scrape, scraper: ModuleType, github: FakeGitHub, status: int, message: str, retryable: bool
) -> None:
    github.refusals["/repos/o/r/stargazers"] = Reply({"message": message}, status)
    with pytest.raises(scraper.GitHubError, match=f"{status} .*{message}") as caught:
        scrape(repo="o/r")

    assert caught.value.retryable is retryable
    assert not isinstance(caught.value, OSError)


@pytest.mark.parametrize("body", [b"<html>", b'{"message": "?"}', b""], ids=["html", "object", "nothing"])
def test_an_answer_that_is_not_documented_is_an_error(
    scrape: Scrape, scraper: ModuleType, github: FakeGitHub, body: bytes
) -> None:
    github.refusals["/repos/o/r/stargazers"] = Reply(body)
    with pytest.raises(scraper.GitHubError, match="something else than GitHub documents"):
        scrape(repo="o/r")


def test_a_refused_connection_is_retryable(scrape: Scrape, scraper: ModuleType, nobody: str) -> None:
    with pytest.raises(scraper.GitHubError, match="can't be reached") as caught:
        scrape(repo="o/r", api_url=nobody)

    assert caught.value.retryable is True


# -- checked before any request -------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({}, "at least one repository"),
        ({"repo": "langchain"}, "written owner/name"),
        ({"repos": ["o/r", "../x"]}, "'../x'"),
        ({"repo": "https://github.com/o/r"}, "written owner/name"),
        ({"repo": "o/r", "limit": 0}, "limit is 0"),
        ({"repo": "o/r", "max_results": 0}, "max_results 0"),
        ({"repo": "o/r", "api_url": "http://api.example.com"}, "must be https"),
    ],
)
def test_wrong_parameters_are_refused_before_any_request(
    scrape: Scrape, github: FakeGitHub, params: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        scrape(**params)

    assert github.api.requests == []


def test_a_broken_token_is_not_quoted(
    scrape: Scrape, github: FakeGitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_secret\nX-Evil: 1")
    with pytest.raises(ValueError, match="GITHUB_TOKEN holds characters") as caught:
        scrape(repo="o/r")

    assert "secret" not in str(caught.value)
