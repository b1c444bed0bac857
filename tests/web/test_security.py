"""Who is let in, who may act, and what browsers are told."""

import json
from typing import Any

import pytest
from redis.asyncio import Redis

from services.web.bodies import BODY_MAX_BYTES
from services.web.security import LOGINS
from tests.web.client import TOKEN, VIEW_TOKEN, Client
from tests.web.conftest import ServePage

RUN = "exp:1700000000000-0"
HOSTILE = (
    "</script><script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\">'\"&"
)


async def test_a_stranger_is_sent_to_the_login_and_sees_nothing(stranger: Client) -> None:
    answer = await stranger.get("/run", {"id": RUN})

    assert answer.status == 303
    assert answer.headers["location"] == "/login?to=%2Frun%3Fid%3Dexp%253A1700000000000-0"
    assert (await stranger.get("/run/history", accept="application/json")).status == 401
    assert (await stranger.get("/live", accept="text/event-stream")).status == 401
    assert (await stranger.get("/login")).status == 200


async def test_the_link_gives_a_session_that_scripts_and_other_sites_do_not_get(stranger: Client) -> None:
    answer = await stranger.get("/login", {"token": TOKEN, "to": "/runs"})

    assert answer.headers["location"] == "/runs"
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(answer.headers["set-cookie"].split("; "))
    stranger.headers["cookie"] = answer.headers["set-cookie"].partition(";")[0]
    assert (await stranger.get("/")).status == 200
    stranger.headers["cookie"] += "0"
    assert (await stranger.get("/")).status == 303


@pytest.mark.parametrize("to", ["//evil.example", "https://evil.example", "/\\evil.example"])
async def test_a_login_leads_to_no_other_site(stranger: Client, to: str) -> None:
    answer = await stranger.post("/login", {"token": TOKEN, "to": to})

    assert answer.headers["location"] == "/"


async def test_wrong_logins_are_answered_a_few_times_only(stranger: Client) -> None:
    for _ in range(LOGINS):
        assert (await stranger.post("/login", {"token": "a guess"})).headers["location"].startswith("/login?")

    assert (await stranger.post("/login", {"token": TOKEN})).status == 429
    assert (await stranger.get("/", authorization=f"Bearer {TOKEN}")).status == 429


async def test_a_foreign_host_name_is_not_served(stranger: Client) -> None:
    for host in ("evil.example", "127.0.0.1.evil.example", "[", ""):
        assert (await stranger.get("/login", host=host)).status == 421


async def test_nothing_is_done_for_other_sites_or_without_the_token_of_the_session(
    client: Client, redis: Redis
) -> None:
    await redis.hset(f"experiment_runs:{RUN}", mapping={"status": "running", "lease": "w/normal/1-0"})
    await redis.zadd("fullsend:executor:open:exp", {"1700000000000-0": 1})
    page = await client.get("/run", {"id": RUN})
    form = {"id": RUN, "csrf": page.csrf}

    refused = [
        await client.post("/run/cancel", form, origin="https://evil.example"),
        await client.post("/run/cancel", form, sec_fetch_site="cross-site"),
        await client.post("/run/cancel", form, sec_fetch_site="same-site"),
        await client.post("/run/cancel", form, origin="null"),
        await client.post("/run/cancel", {"id": RUN}),
        await client.post("/run/cancel", form | {"csrf": "0" * 64}),
        await client.post("/run/cancel", form, cookie=""),
    ]

    assert [answer.status for answer in refused] == [403, 403, 403, 403, 403, 403, 303]
    assert await redis.hget(f"experiment_runs:{RUN}", "cancel") is None
    assert (await client.post("/run/cancel", form)).headers["location"] == "/run?id=exp%3A1700000000000-0"
    assert await redis.hget(f"experiment_runs:{RUN}", "cancel") == "1"


async def test_who_may_look_may_not_act(stranger: Client, redis: Redis) -> None:
    await redis.hset(f"experiment_runs:{RUN}", mapping={"status": "running", "lease": "w/normal/1-0"})
    await stranger.log_in(VIEW_TOKEN)

    page = await stranger.get("/run", {"id": RUN})

    assert page.status == 200
    assert "/run/cancel" not in page.text
    assert (await stranger.post("/run/cancel", {"id": RUN})).status == 403


async def test_a_page_that_is_read_only_does_nothing_for_anybody(serve_page: ServePage) -> None:
    async with serve_page(read_only=True, act_token="") as anybody:
        assert (await anybody.get("/runs")).status == 200
        assert (await anybody.post("/run/cancel", {"id": RUN})).status == 403
    async with serve_page(read_only=True) as client:
        answer = await client.post("/run/cancel", {"id": RUN}, authorization=f"Bearer {TOKEN}")
        assert answer.status == 403


async def test_every_response_tells_the_browser_to_run_nothing_foreign(client: Client) -> None:
    paths = (
        "/",
        "/runs",
        "/run",
        "/nowhere",
        "/static/app.js",
        "/static/nowhere",
        "/login",
        "/login?token=x",
    )

    answers = [await client.get(path) for path in paths] + [await client.get("/", host="evil.example")]

    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; ")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_large_form_is_refused(client: Client) -> None:
    answer = await client.post("/run/cancel", {"id": "x" * BODY_MAX_BYTES})

    assert answer.status == 413


async def publish_hostile_run(redis: Redis) -> str:
    """The record of a run whose every text tries to be a script; its id."""
    run_id = f"{HOSTILE}:1700000000000-0"
    artifact = {
        "reference": "data:text/html;base64,PHNjcmlwdD4=",
        "media_type": "text/html",
        "size_bytes": 8,
        "sha256": "0" * 64,
    }
    texts = dict.fromkeys(("error", "error_type", "traceback", "tool", "worker", "triggered_by"), HOSTILE)
    record: dict[Any, Any] = texts | {
        "status": "failed", "result": json.dumps({HOSTILE: HOSTILE}), "params": json.dumps(HOSTILE),
        "artifacts": json.dumps({HOSTILE: artifact, "bad": HOSTILE}),
        "attempts": json.dumps([{"error": HOSTILE}]),
        "exit": json.dumps({HOSTILE: HOSTILE, "stacks": HOSTILE, "last_lines": [HOSTILE]}),
        "queued_at": HOSTILE, "started_at": HOSTILE,
    }  # fmt: skip
    await redis.hset(f"experiment_runs:{run_id}", mapping=record)
    await redis.xadd(
        f"fullsend:executor:logs:{run_id}", {"at": "1", "stream": f"stdout {HOSTILE}", "text": HOSTILE}
    )
    return run_id


async def test_nothing_that_a_run_leaves_behind_becomes_part_of_a_page(client: Client, redis: Redis) -> None:
    run_id = await publish_hostile_run(redis)

    pages = [
        await client.get("/"),
        await client.get("/runs", {"text": HOSTILE, "experiment": HOSTILE}),
        await client.get("/run", {"id": run_id}),
        await client.get("/run", {"id": HOSTILE}),
        await client.get("/login", {"to": f"/{HOSTILE}"}),
    ]

    assert [page.status for page in pages] == [200, 200, 200, 404, 200]
    for page in pages:
        assert "hacked" in page.text
        assert "<script>document" not in page.text
        assert "<img src=x" not in page.text


async def test_an_artifact_is_a_file_for_the_browser_whatever_it_contains(
    client: Client, redis: Redis
) -> None:
    html = {
        "reference": "data:text/html;base64,PHNjcmlwdD4=",
        "media_type": "text/html",
        "size_bytes": 8,
        "sha256": "0" * 64,
    }
    await redis.hset(
        f"experiment_runs:{RUN}", mapping={"status": "failed", "artifacts": json.dumps({"a": html})}
    )

    answer = await client.get("/run/artifact", {"id": RUN, "name": "a"})

    assert answer.text == "<script>"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == "attachment; filename*=UTF-8''a"
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert (await client.get("/run/artifact", {"id": RUN, "name": "b"})).status == 422


@pytest.mark.parametrize("sent", ["/fullsend", ""], ids=["with the prefix", "without it"])
async def test_behind_a_proxy_all_links_have_its_prefix(serve_page: ServePage, sent: str) -> None:
    async with serve_page(prefix="/fullsend") as client:
        answer = await client.get(f"{sent}/login", {"token": TOKEN})
        assert answer.headers["location"] == "/fullsend/"
        assert "Path=/fullsend/" in answer.headers["set-cookie"]
        client.headers["cookie"] = answer.headers["set-cookie"].partition(";")[0]

        page = await client.get(f"{sent}/runs")

        assert page.status == 200
        assert 'href="/fullsend/static/app.css"' in page.text
        assert (await client.get(f"{sent}/static/app.css")).status == 200
