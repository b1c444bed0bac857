"""`fullsend web` as its user starts it."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from services.cli import web
from services.cli.output import CommandError
from tests.acceptance.commands import Running, Shell
from tests.web.client import TOKEN, Client

SHELL_TOKEN = "s" * web.SHORTEST_TOKEN


@contextlib.asynccontextmanager
async def _started(shell: Shell, *arguments: str) -> AsyncIterator[tuple[Running, str]]:
    async with shell.called("web", "--port", "0", *arguments) as process:
        assert process.stdout is not None
        yield process, (await process.stdout.readline()).decode().strip()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)


async def test_the_link_that_it_prints_logs_in_and_open_pages_do_not_hold_up_its_end(shell: Shell) -> None:
    async with _started(shell) as (process, link):
        client = Client(urlsplit(link).port or 0)
        answer = await client.get(link.removeprefix(client.origin))
        client.headers["cookie"] = answer.headers["set-cookie"].partition(";")[0]
        assert (await client.get("/")).status == 200

        def listen() -> list[bytes]:
            with client.stream({}) as stream:
                first = stream.line()
                process.send_signal(signal.SIGTERM)
                return [first, *stream.rest()]

        lines = await asyncio.to_thread(listen)
        code = await process.wait()

    assert lines[0] == b"retry: 2000\n"
    assert b"event: bye\n" in lines
    assert code == -signal.SIGTERM


async def test_beyond_loopback_it_needs_a_secret(shell: Shell) -> None:
    for options in (["--host", "0.0.0.0"], ["--host", "0.0.0.0", "--no-auth"]):
        done = await shell.fullsend("web", "--port", "0", *options)
        assert "WEB_TOKEN" in done.error
    done = await shell.with_variables(WEB_TOKEN="short").fullsend("web", "--port", "0")
    assert done.error == "error: WEB_TOKEN is too short; it needs at least 16 characters"

    with_token = shell.with_variables(WEB_TOKEN=SHELL_TOKEN)
    async with _started(with_token, "--host", "0.0.0.0", "--allow-host", "Page.example") as (_, link):
        client = Client(urlsplit(link).port or 0, {"authorization": f"Bearer {SHELL_TOKEN}"})
        assert SHELL_TOKEN not in link
        assert (await client.get("/runs", host="page.example:80")).status == 200
        assert (await client.get("/runs", authorization=f"Bearer {TOKEN}", host="page.example")).status == 303
        assert (await client.get("/runs")).status == 421


async def test_without_a_token_on_loopback_only_who_asked_for_it(shell: Shell) -> None:
    async with _started(shell, "--no-auth", "--read-only", "--prefix", "x/") as (_, link):
        client = Client(urlsplit(link).port or 0)
        assert link == f"{client.origin}/x/"
        assert (await client.get("/x/runs")).status == 200


def test_a_missing_package_is_one_line_with_the_remedy() -> None:
    with pytest.raises(CommandError, match=r"install them with: pip install 'fullsend-executor\[web\]'"):
        web.check_packages(["no_such_package"])
