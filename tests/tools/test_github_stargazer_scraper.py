"""Stargazers, and who they are, from a server that speaks GitHub's REST API."""

from types import ModuleType
from typing import Any

import pytest

from tests.tools.conftest import RecordingToolkit, Scrape
from tests.tools.fake_github import NOW, FakeGitHub
from tests.tools.local_api import Reply


def logins(result: dict[str, Any]) -> list[str]:
    return [lead["login"] for lead in result["leads"]]


# -- who starred ----------------------------------------------------------------------


def test_stargazers_come_newest_first_with_their_profiles(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "ada", days_ago=3.5)
    github.starred("o/r", "bob", days_ago=1.5)
    github.person("ada", name="Ada Lovelace", email="ada@example.com", company="@engines", bio="Maths")
    github.person("bob")
    result = scrape(repo="o/r")

    assert logins(result) == ["bob", "ada"]
    assert result["leads"][1] == {
        "login": "ada",
        "first_name": "Ada",
        "name": "Ada Lovelace",
        "email": "ada@example.com",
        "email_source": "profile",
        "company": "@engines",
        "bio": "Maths",
        "location": None,
        "repo": "o/r",
        "repo_name": "r",
        "starred_at": github.stars["o/r"][0]["starred_at"].replace("Z", "+00:00"),
        "days_ago": 3,
        "profile_url": "https://github.com/ada",
    }
    assert (result["leads_found"], result["with_email"], result["stargazers_examined"]) == (2, 1, 2)
    assert result["notes"] == []


def test_pages_are_read_backwards_from_the_last_one(scrape: Scrape, github: FakeGitHub) -> None:
    everyone = [f"u{number}" for number in range(250)]
    github.starred("o/r", *everyone)
    result = scrape(repo="o/r", limit=250, extract_email=False)

    assert logins(result) == everyone[::-1]
    assert [request.query.get("page") for request in github.api.requests] == [None, "3", "2"]


def test_no_page_is_read_that_isnt_needed(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", *(f"u{number}" for number in range(250)))
    result = scrape(repo="o/r", limit=10, extract_email=False)

    assert logins(result)[0] == "u249"
    assert result["stargazers_examined"] == 10
    assert [request.query.get("page") for request in github.api.requests] == [None, "3"]


def test_the_request_is_what_github_documents(
    scrape: Scrape, github: FakeGitHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_test")
    github.starred("o/r", "ada")
    github.person("ada")
    scrape(repo="o/r")

    first, second = github.api.requests
    assert (first.path, first.query["per_page"]) == ("/repos/o/r/stargazers", "100")
    assert first.headers["accept"] == "application/vnd.github.star+json"
    assert first.headers["authorization"] == "Bearer ghp_test"
    assert first.headers["x-github-api-version"] == "2022-11-28"
    assert first.headers["user-agent"].startswith("fullsend")
    assert second.headers["accept"] == "application/vnd.github+json"


def test_no_token_means_no_authorization(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "ada")
    scrape(repo="o/r", extract_email=False)

    assert "authorization" not in github.api.requests[0].headers


def test_days_ago_ends_the_search_at_older_stars(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", *(f"old{number}" for number in range(150)), days_ago=40)
    github.starred("o/r", "new", days_ago=29)
    result = scrape(repo="o/r", days_ago=30, extract_email=False)

    assert logins(result) == ["new"]
    assert [request.query.get("page") for request in github.api.requests] == [None, "2"]


def test_several_repositories_take_turns_and_nobody_appears_twice(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/big", "a3", "a2", "both", "a1")
    github.starred("o/small", "b1", "both")
    result = scrape(repos=["o/big", "o/small"], extract_email=False)

    assert [(lead["login"], lead["repo_name"]) for lead in result["leads"]] == [
        ("a1", "big"),
        ("both", "small"),
        ("a2", "big"),
        ("b1", "small"),
        ("a3", "big"),
    ]


def test_a_repository_beyond_githubs_list_begins_with_its_event_feed(
    scrape: Scrape, github: FakeGitHub, scraper: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scraper, "LAST_PAGE", 2)
    github.cap_pages = 2
    github.starred("o/r", *(f"u{number}" for number in range(300)), days_ago=100)
    star = {
        "type": "WatchEvent",
        "actor": {"login": "latest"},
        "created_at": NOW.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    github.feeds["o/r"] = [{"type": "PushEvent"}] * 100 + [star]
    result = scrape(repo="o/r", limit=2, extract_email=False)

    assert logins(result) == ["latest", "u199"]
    assert "newer ones are from its event feed" in result["notes"][0]


def test_a_renamed_repository_is_followed(scrape: Scrape, github: FakeGitHub) -> None:
    github.moved["old/r"] = "new/r"
    github.starred("new/r", "ada")

    assert logins(scrape(repo="old/r", extract_email=False)) == ["ada"]


def test_a_redirect_to_another_host_gets_no_token(
    scrape: Scrape, scraper: ModuleType, github: FakeGitHub, nobody: str
) -> None:
    github.refusals["/repos/o/r/stargazers"] = Reply({}, 301, {"location": f"{nobody}/repos/o/r/stargazers"})
    with pytest.raises(scraper.GitHubError, match="another host") as caught:
        scrape(repo="o/r")

    assert caught.value.retryable is False


def test_a_deleted_account_is_passed_over(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "gone", "ada")
    github.stars["o/r"].append({"starred_at": "2024-01-15T10:30:00Z", "user": None})
    github.person("ada")
    result = scrape(repo="o/r")

    assert logins(result) == ["ada"]
    assert result["stargazers_examined"] == 2


# -- who they are ---------------------------------------------------------------------


def test_titles_are_looked_for_as_words_in_bio_and_company(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "bio", "company", "inside", "other")
    github.person("bio", bio="Proud cto, father of two")
    github.person("company", company="VP Engineering at Acme")
    github.person("inside", bio="I love octopuses and factories: CTOs")
    github.person("other")
    result = scrape(repo="o/r", filter_job_titles=["CTO", "VP Engineering"])

    assert sorted(logins(result)) == ["bio", "company"]
    assert result["stargazers_examined"] == 4


def test_max_results_ends_the_search(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "c", "b", "a")
    for login in "abc":
        github.person(login)
    result = scrape(repo="o/r", max_results=2)

    assert logins(result) == ["a", "b"]
    assert "/users/c" not in github.api.paths


def test_a_company_stage_is_not_pretended_to_be_applied(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "ada")
    result = scrape(repo="o/r", filter_company_stage="Series A", extract_email=False)

    assert logins(result) == ["ada"]
    assert "not filtered by company stage 'Series A'" in result["notes"][0]


def test_commits_give_the_address_that_a_profile_lacks(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "ada")
    github.person("ada")
    github.feeds["ada"] = [{"type": "WatchEvent"}]
    github.pushed("ada", "c1", "bob@example.com", author="bob")
    github.pushed("ada", "c2", "1+ada@users.noreply.github.com")
    github.pushed("ada", "c3", "ada@example.com")
    [lead] = scrape(repo="o/r", include_commits=True)["leads"]

    assert (lead["email"], lead["email_source"]) == ("ada@example.com", "commits")


def test_commits_that_are_gone_give_no_address(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "ada")
    github.person("ada")
    github.pushed("ada", "c1", "ada@example.com")
    missing = {"message": "No commit found for SHA: c1", "status": "422"}
    github.refusals["/repos/ada/site/commits/c1"] = Reply(missing, 422)
    [lead] = scrape(repo="o/r", include_commits=True)["leads"]

    assert (lead["email"], lead["email_source"]) == (None, None)


def test_commits_are_not_asked_for_when_the_profile_has_an_address(
    scrape: Scrape, github: FakeGitHub
) -> None:
    github.starred("o/r", "ada")
    github.person("ada", email="ada@example.com")
    scrape(repo="o/r", include_commits=True)

    assert github.api.paths == ["/repos/o/r/stargazers", "/users/ada"]


def test_without_extract_email_none_is_given(scrape: Scrape, github: FakeGitHub) -> None:
    github.starred("o/r", "ada")
    github.person("ada", email="ada@example.com", bio="CTO")
    [lead] = scrape(repo="o/r", extract_email=False, filter_job_titles=["CTO"])["leads"]

    assert (lead["email"], lead["email_source"]) == (None, None)


def test_progress_leads_and_a_metric_are_reported(
    scrape: Scrape, github: FakeGitHub, toolkit: RecordingToolkit
) -> None:
    github.starred("o/r", "ada", "bob")
    result = scrape(repo="o/r", limit=5, extract_email=False)

    assert toolkit.steps == [(1, 5), (2, 5)]
    assert toolkit.partials == result["leads"]
    assert toolkit.metrics == [("leads_found", 2)]


@pytest.mark.parametrize(
    "params",
    [
        {"repo": "o/r", "limit": 2000, "extract_email": True, "include_commits": True},
        {
            "repos": ["o/r", "o/s"],
            "max_results": 200,
            "days_ago": 30,
            "filter_job_titles": ["CTO", "Head of Engineering"],
            "filter_company_stage": "Series A",
        },
    ],
)
def test_the_parameters_of_published_experiments_work(
    scrape: Scrape, github: FakeGitHub, params: dict[str, Any]
) -> None:
    github.starred("o/r", "ada")
    github.starred("o/s", "bob")
    github.person("ada", bio="CTO")
    github.person("bob")

    assert logins(scrape(**params)) == ["ada"]
