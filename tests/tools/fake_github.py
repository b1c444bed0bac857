"""GitHub's REST API as documented, as far as the scraper uses it."""

from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from tests.tools.local_api import LocalApi, Reply, Request

NOW = datetime.now(UTC)


class FakeGitHub:
    """Repositories with stars, people with profiles, pushes and commits; 100 entries to a page."""

    def __init__(self, api: LocalApi) -> None:
        self.api = api
        self.stars: dict[str, list[dict[str, Any]]] = {}
        self.feeds: dict[str, list[dict[str, Any]]] = {}
        self.people: dict[str, dict[str, Any]] = {}
        self.commits: dict[str, dict[str, Any]] = {}
        self.moved: dict[str, str] = {}
        self.refusals: dict[str, Reply] = {}
        self.cap_pages = 400
        api.answer = self.answer

    def starred(self, repo: str, *logins: str, days_ago: float = 1.0) -> None:
        """`logins` starred `repo`, one after the other, all of them about `days_ago`."""
        for login in logins:
            at = (NOW - timedelta(days=days_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")
            self.stars.setdefault(repo, []).append({"starred_at": at, "user": {"login": login}})

    def person(self, login: str, **fields: Any) -> None:
        empty = dict.fromkeys(("name", "email", "company", "bio", "location"))
        self.people[login] = {"login": login, "type": "User", **empty, **fields}

    def pushed(self, login: str, sha: str, email: str, author: str | None = None) -> None:
        """`login` pushed a commit that `author` (or `login`) had written."""
        push = {"type": "PushEvent", "repo": {"name": f"{login}/site"}, "payload": {"head": sha}}
        self.feeds.setdefault(login, []).append(push)
        commit = {"sha": sha, "author": {"login": author or login}, "commit": {"author": {"email": email}}}
        self.commits[f"/repos/{login}/site/commits/{sha}"] = commit

    def answer(self, request: Request) -> Reply:
        if (refusal := self.refusals.get(request.path)) is not None:
            return refusal
        match request.path.strip("/").split("/"):
            case ["repos", owner, name, *_] if f"{owner}/{name}" in self.moved:
                path = request.path.replace(f"{owner}/{name}", self.moved[f"{owner}/{name}"])
                location = f"{self.api.url}{path}?{urlencode(request.query)}"
                return Reply({"message": "Moved Permanently"}, 301, {"location": location})
            case ["repos", owner, name, "stargazers"] if f"{owner}/{name}" in self.stars:
                return self.page(request, self.stars[f"{owner}/{name}"])
            case ["repos", owner, name, "events"]:
                return self.page(request, self.feeds.get(f"{owner}/{name}", []))
            case ["users", login, "events", "public"]:
                return self.page(request, self.feeds.get(login, []))
            case ["users", login] if login in self.people:
                return Reply(self.people[login])
            case _ if request.path in self.commits:
                return Reply(self.commits[request.path])
            case _:
                return Reply({"message": "Not Found", "status": "404"}, 404)

    def page(self, request: Request, entries: list[Any]) -> Reply:
        number = int(request.query.get("page", 1))
        size = int(request.query["per_page"])
        last = min(-(-len(entries) // size), self.cap_pages)
        if number > self.cap_pages:
            return Reply(
                {"message": "In order to keep the API fast for everyone, pagination is limited"}, 422
            )
        links = []
        for relation, target in (("next", number + 1), ("last", last)):
            if number < last:
                url = f"{self.api.url}{request.path}?per_page={size}&page={target}"
                links.append(f'<{url}>; rel="{relation}"')
        return Reply(entries[(number - 1) * size : number * size], headers={"link": ", ".join(links)})
