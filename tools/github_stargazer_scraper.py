# /// script
# requires-python = ">=3.11"
# [tool.fullsend]
# environment = ["GITHUB_TOKEN"]
# timeout_seconds = 3600
# ///
"""Find the latest stargazers of GitHub repositories, with their public profiles.

GitHub lists stargazers from the oldest on, up to page 400.  The tool therefore reads backwards from the last
page.  For a repository with more stars it starts with the event feed, which contains the latest stars (among
at most 300 events).  Each profile takes one or more of the 5,000 requests per hour of a token (60 without a
token).  At the limit the run is retried when GitHub allows more requests, and the next attempt does not
request the same profiles again.

GitHub's Acceptable Use Policies forbid unsolicited bulk mail to addresses found there; you are responsible
for your use of the results.
"""

import http.client
import json
import os
import re
import time
import urllib.request
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice, takewhile
from typing import Any, NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from shared import toolkit

JSON = "application/vnd.github+json"
STARS = "application/vnd.github.star+json"
LAST_PAGE = 400
MOST_REDIRECTS = 3
PUSHES_TO_OPEN = 3
REPOSITORY = re.compile(r"[A-Za-z0-9-]+/[A-Za-z0-9._-]+")
PROFILE_FIELDS = ("name", "email", "company", "bio", "location")
GONE = {404, 409, 422, 451}
"""Statuses of people and commits that are not visible or no longer exist."""


class GitHubError(Exception):
    """GitHub refused the request or did not answer.  `partial_results` are the leads found before."""

    def __init__(
        self, message: str, *, status: int = 0, retryable: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retryable = retryable
        self.retry_after = retry_after
        self.partial_results: list[dict[str, Any]] | None = None


class RateLimitError(GitHubError):
    """The rate limit is reached for the next `retry_after` seconds."""


class Star(NamedTuple):
    """A star: user, repository and time."""

    login: str
    repo: str
    at: datetime


class Page(NamedTuple):
    """One page of a response, and the URLs of related pages (`next`, `last`)."""

    content: Any
    links: Mapping[str, str]


def github_stargazer_scraper(
    repo: str = "",
    repos: list[str] | None = None,
    limit: int = 500,
    max_results: int | None = None,
    days_ago: int | None = None,
    extract_email: bool = True,
    include_commits: bool = False,
    filter_job_titles: list[str] | None = None,
    filter_company_stage: str = "",
    api_url: str = "https://api.github.com",
    timeout_seconds: float = 20.0,
) -> dict[str, Any]:
    """List the latest stargazers of one or more repositories as leads, newest first.

    Several repositories take turns, so that the largest doesn't crowd out the others; a
    person who starred two of them appears once.  Uses the variable GITHUB_TOKEN if it is set.

    Args:
        repo: One repository, `owner/name`.
        repos: Several of them.
        limit: How many stargazers to look at, over all repositories.
        max_results: Stop when so many leads are found.
        days_ago: Only who starred within so many days.
        extract_email: Look up the public email address of the profile.
        include_commits: For a profile without one, take the author's address of the person's
            latest public pushes.
        filter_job_titles: Only who has one of these in the profile's bio or company; GitHub
            has no field for a title.
        filter_company_stage: Not applied, GitHub knows nothing of it; `notes` says so.
        api_url: Where GitHub is; `https://HOST/api/v3` for an Enterprise Server.
        timeout_seconds: How long one request may take.

    Returns:
        `leads` (login, name, first_name, email, email_source, company, bio, location, repo,
        repo_name, starred_at, days_ago, profile_url), `leads_found`, `with_email`,
        `stargazers_examined`, and `notes` on what GitHub could not tell.
    """
    if limit < 1 or (max_results is not None and max_results < 1):
        raise ValueError(f"limit is {limit} and max_results {max_results}: each must be at least 1")
    names = repository_names(repo, repos or [])
    api = GitHub(api_url, timeout_seconds)
    titles = title_pattern(filter_job_titles or [])
    now = datetime.now(UTC)
    since = now - timedelta(days=days_ago) if days_ago is not None else datetime.min.replace(tzinfo=UTC)
    notes: list[str] = []
    if filter_company_stage:
        notes.append(f"not filtered by company stage {filter_company_stage!r}: GitHub has no such data")
    sources = (takewhile(lambda star: star.at >= since, latest_stars(api, name, notes)) for name in names)
    leads: list[dict[str, Any]] = []
    examined = 0
    try:
        for examined, star in enumerate(islice(in_turn(sources), limit), start=1):
            if (person := look_up(api, star.login, extract_email, include_commits, titles)) is not None:
                leads.append(lead(star, person, now))
                toolkit.partial(leads[-1])
            toolkit.progress(examined, limit, f"{len(leads)} leads among {examined} stargazers")
            if len(leads) == max_results:
                break
    except GitHubError as exc:
        exc.partial_results = leads or None
        raise
    toolkit.metric("leads_found", len(leads))
    with_email = sum(1 for found in leads if found["email"])
    counts = {"leads_found": len(leads), "with_email": with_email, "stargazers_examined": examined}
    return {**counts, "leads": leads, "notes": notes, "success": True}


def repository_names(repo: str, repos: list[str]) -> list[str]:
    """The repositories without duplicates; raises ValueError for names other than `owner/name`."""
    names = list(dict.fromkeys(name for name in [repo, *repos] if name))
    if not names:
        raise ValueError("repo or repos must name at least one repository")
    if wrong := [name for name in names if not REPOSITORY.fullmatch(name)]:
        raise ValueError(f"a repository is written owner/name, unlike {', '.join(map(repr, wrong))}")
    return names


def title_pattern(titles: list[str]) -> re.Pattern[str] | None:
    """A pattern that matches any of `titles` as whole words, ignoring case."""
    if not titles:
        return None
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, titles)) + r")(?!\w)", re.IGNORECASE)


# -- stargazers -----------------------------------------------------------------------


def latest_stars(api: "GitHub", repo: str, notes: list[str]) -> Iterator[Star]:
    """The stars of `repo`, newest first; stars that GitHub does not list are noted."""
    first = api.get(f"/repos/{repo}/stargazers?per_page=100", list, STARS)
    last_url = first.links.get("last", "")
    found = re.search(r"[?&]page=(\d+)", last_url)
    last = min(int(found[1]), LAST_PAGE) if found else 1
    if last == LAST_PAGE:
        notes.append(f"{repo}: GitHub lists the first 40,000 stargazers; newer ones are from its event feed")
        yield from stars_in_events(api, repo)
    for number in range(last, 1, -1):
        page = api.get(re.sub(r"([?&]page=)\d+", rf"\g<1>{number}", last_url), list, STARS)
        yield from reversed(stars_on(page, repo))
    yield from reversed(stars_on(first, repo))


def stars_on(page: Page, repo: str) -> list[Star]:
    """The stars on a page of stargazers, oldest first; a deleted account has no user."""
    entries = [entry for entry in page.content if entry["user"]]
    return [
        Star(entry["user"]["login"], repo, datetime.fromisoformat(entry["starred_at"])) for entry in entries
    ]


def stars_in_events(api: "GitHub", repo: str) -> Iterator[Star]:
    """The latest stars from the repository's events: a WatchEvent is a star."""
    target = f"/repos/{repo}/events?per_page=100"
    while target:
        page = api.get(target, list)
        for event in page.content:
            if event["type"] == "WatchEvent":
                yield Star(event["actor"]["login"], repo, datetime.fromisoformat(event["created_at"]))
        target = page.links.get("next", "")


def in_turn(sources: Iterable[Iterator[Star]]) -> Iterator[Star]:
    """The stars of all sources in turn, each person once."""
    waiting = deque(sources)
    seen: set[str] = set()
    while waiting:
        source = waiting.popleft()
        star = next((star for star in source if star.login not in seen), None)
        if star is not None:
            yield star
            seen.add(star.login)
            waiting.append(source)


# -- profiles -------------------------------------------------------------------------


def look_up(
    api: "GitHub", login: str, extract_email: bool, include_commits: bool, titles: re.Pattern[str] | None
) -> dict[str, Any] | None:
    """The profile of a person; None if the account is deleted or no wanted title matches."""
    if not extract_email and titles is None:
        return {}
    # Recorded for the run, so that the next attempt after a rate limit gets further than this one.
    person: dict[str, Any] | None = toolkit.once(f"profile {login}", partial(profile, api, login))
    if person is None:
        return None
    if titles and not titles.search(f"{person['bio'] or ''}\n{person['company'] or ''}"):
        return None
    if not extract_email:
        return {**person, "email": None}
    if person["email"] or not include_commits:
        return {**person, "email_source": "profile" if person["email"] else None}
    email = toolkit.once(f"commit email {login}", partial(commit_email, api, login))
    return {**person, "email": email, "email_source": "commits" if email else None}


def profile(api: "GitHub", login: str) -> dict[str, Any] | None:
    """The public profile of a person, or None if the account is deleted."""
    found = api.find(f"/users/{quote(login)}", dict)
    return {field: found.get(field) for field in PROFILE_FIELDS} if found else None


def commit_email(api: "GitHub", login: str) -> str | None:
    """The address in a person's public commits; not the address that GitHub generates."""
    events = api.find(f"/users/{quote(login)}/events/public?per_page=100", list) or []
    pushes = [event for event in events if event["type"] == "PushEvent"]
    for push in pushes[:PUSHES_TO_OPEN]:
        commit = api.find(f"/repos/{push['repo']['name']}/commits/{push['payload']['head']}", dict)
        # The author of a commit can be another person than the one who pushes it.
        if commit and (commit.get("author") or {}).get("login") == login:
            email: str = commit["commit"]["author"]["email"]
            if "@" in email and not email.endswith("@users.noreply.github.com"):
                return email
    return None


def lead(star: Star, person: dict[str, Any], now: datetime) -> dict[str, Any]:
    """One row of the result; its members can be used as placeholders of an email."""
    return {
        "login": star.login,
        "first_name": (person.get("name") or "").partition(" ")[0] or None,
        **dict.fromkeys((*PROFILE_FIELDS, "email_source")),
        **person,
        "repo": star.repo,
        "repo_name": star.repo.partition("/")[2],
        "starred_at": star.at.isoformat(),
        "days_ago": (now - star.at).days,
        "profile_url": f"https://github.com/{star.login}",
    }


# -- GitHub's REST API ----------------------------------------------------------------


class EveryStatus(urllib.request.HTTPErrorProcessor):
    """Returns every response unchanged; redirects are followed below."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class GitHub:
    """GET requests to one host; the token is sent to no other."""

    def __init__(self, url: str, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        if (parts.scheme, parts.hostname) != ("http", "127.0.0.1") and parts.scheme != "https":
            raise ValueError(f"api_url {url!r} must be https: a token would be readable on the way")
        self.url = url.rstrip("/")
        self.timeout_seconds = timeout_seconds
        self.opener = urllib.request.build_opener(EveryStatus)
        self.headers = {"User-Agent": "fullsend-stargazers/1.0", "X-GitHub-Api-Version": "2022-11-28"}
        if token := os.environ.get("GITHUB_TOKEN", "").strip():
            if not token.isascii() or not token.isprintable():
                raise ValueError("GITHUB_TOKEN holds characters that no token has: copy it again")
            self.headers["Authorization"] = f"Bearer {token}"

    def find(self, target: str, kind: type) -> Any:
        """The content at `target`, or None if it is not visible."""
        try:
            return self.get(target, kind).content
        except GitHubError as exc:
            if exc.status in GONE:
                return None
            raise

    def get(self, target: str, kind: type, accept: str = JSON) -> Page:
        """The response at a path or URL, a `kind` in JSON; raises GitHubError otherwise."""
        url = target if "://" in target else self.url + target
        for _ in range(MOST_REDIRECTS):
            status, headers, body = self.ask(url, accept)
            if status not in {301, 302, 307, 308}:
                break
            url = urljoin(url, headers.get("location") or "")  # the repository was renamed
        if status != 200:
            raise refusal(status, headers, body, url)
        content = parsed(body)
        if not isinstance(content, kind):
            message = f"{url} answered something else than GitHub documents: {body[:200]!r}"
            raise GitHubError(message, status=status, retryable=True)
        links = re.findall(r'<([^>]+)>;\s*rel="(\w+)"', headers.get("link") or "")
        return Page(content, {relation: link for link, relation in links})

    def ask(self, url: str, accept: str) -> tuple[int, Mapping[str, str], bytes]:
        """Make one request; returns status, headers and body."""
        if not url.startswith(self.url + "/"):
            raise GitHubError(f"{self.url} refers to another host, {url}, which must not see the token")
        request = urllib.request.Request(url, headers={**self.headers, "Accept": accept})  # noqa: S310 - see __init__
        try:
            with self.opener.open(request, timeout=self.timeout_seconds) as response:
                return response.status, response.headers, response.read()
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "reason", exc)
            raise GitHubError(f"{url} can't be reached: {reason}", retryable=True) from exc


def refusal(status: int, headers: Mapping[str, str], body: bytes, url: str) -> GitHubError:
    """The error for a status other than 200; GitHub's rate limits are described in
    https://docs.github.com/rest/using-the-rest-api/rate-limits-for-the-rest-api."""
    answer = parsed(body)
    detail = str(answer.get("message")) if isinstance(answer, dict) else body[:200].decode(errors="replace")
    message = f"GitHub answered {status} to {url}: {detail}"
    used_up = headers.get("x-ratelimit-remaining") == "0"
    told_to_wait = used_up or "retry-after" in headers or "rate limit" in detail.lower()
    if status == 429 or (status == 403 and told_to_wait):
        wait_seconds = 60.0
        if (retry_after := headers.get("retry-after") or "").isdecimal():
            wait_seconds = float(retry_after)
        elif used_up and (reset := headers.get("x-ratelimit-reset") or "").isdecimal():
            wait_seconds = max(float(reset) - time.time(), 0.0) + 1.0
        return RateLimitError(message, status=status, retryable=True, retry_after=wait_seconds)
    return GitHubError(message, status=status, retryable=status >= 500)


def parsed(body: bytes) -> Any:
    """`body` read as JSON, or None."""
    try:
        return json.loads(body)
    except ValueError:
        return None
