"""The page in a real Chromium, as its users see it; skipped where there is none, but not in CI."""

import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.async_api import Page, async_playwright, expect
from redis.asyncio import Redis

from tests.conftest import Neighbour, Serve, Tools
from tests.web.client import TOKEN, Client
from tests.web.test_live import CURVE
from tests.web.test_security import HOSTILE, publish_hostile_run

CHROMIUM = shutil.which("chromium")
IS_REQUIRED = os.environ.get("FULLSEND_TEST_BROWSER") == "required"

pytestmark = pytest.mark.skipif(CHROMIUM is None and not IS_REQUIRED, reason="chromium isn't installed")
expect.set_options(timeout=30_000)


@pytest.fixture
async def browser_page() -> AsyncIterator[Page]:
    """A tab whose scripts must not fail."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        await browser.close()
        assert errors == []


async def test_a_run_from_the_login_to_its_end_and_once_more(
    browser_page: Page, stranger: Client, serve: Serve, tools: Tools, neighbour: Neighbour, tmp_path: Path
) -> None:
    tools("curve", CURVE)
    gate, page = tmp_path / "gate", browser_page
    async with serve():
        await neighbour.publish("exp", "curve", params={"gate": str(gate)})
        await neighbour.run("exp", params={"gate": "", "steps": 1})  # its tool is described now

        await page.goto(f"{stranger.origin}/experiment?id=exp")
        await page.get_by_label("Token").fill("a wrong one")
        await page.get_by_role("button", name="Log in").click()
        await expect(page.get_by_role("alert")).to_have_text("That token is wrong.")
        await page.get_by_label("Token").fill(TOKEN)
        await page.get_by_role("button", name="Log in").click()

        await page.get_by_label("steps integer").fill("no number")
        await page.get_by_role("button", name="Run now").click()
        await expect(page.get_by_text("this is no integer")).to_be_visible()
        await page.get_by_label("steps integer").fill("5")
        await page.get_by_role("button", name="Run now").click()

        await expect(page.locator("#message")).to_have_text("1 of 5 climbs")
        await expect(page.locator("#log")).to_have_text("step 0\n")
        line = page.locator("#metrics path")
        begun = await line.get_attribute("d") or ""
        gate.touch()
        await expect(page.locator("#status")).to_contain_text("completed")
        await expect(page.locator("#log")).to_contain_text("step 4")
        await expect(page.locator("#record")).to_contain_text('"steps": 5')
        assert len(await line.get_attribute("d") or "") > len(begun)
        gate.unlink()

        await page.get_by_role("link", name="Edit and run").click()
        await page.get_by_label("steps integer").fill("7")
        await page.get_by_role("button", name="Run now").click()
        await expect(page.locator("#message")).to_have_text("1 of 7 climbs")
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator("#status")).to_contain_text("cancelled")

        await page.get_by_role("link", name="exp", exact=True).click()
        await page.get_by_role("button", name="Pause").click()
        await expect(page.locator("#state")).to_have_text("paused")
        await page.get_by_role("button", name="Resume").click()
        await expect(page.locator("#state")).to_have_text("ready")


async def test_keys_themes_narrow_screens_and_texts_that_try_to_be_scripts(
    browser_page: Page, stranger: Client, redis: Redis
) -> None:
    run_id, page = await publish_hostile_run(redis), browser_page
    await page.goto(f"{stranger.origin}/login?token={TOKEN}&to=/runs")
    await expect(page.locator("#link")).to_have_text("live")

    await page.keyboard.press("/")
    await expect(page.get_by_label("Text")).to_be_focused()
    await page.keyboard.press("Escape")
    await page.get_by_label("Text").blur()
    await page.keyboard.press("?")
    await expect(page.get_by_role("heading", name="Keys")).to_be_visible()
    await page.keyboard.press("Escape")
    light = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    await page.keyboard.press("d")
    assert await page.evaluate("getComputedStyle(document.body).backgroundColor") != light
    await page.set_viewport_size({"width": 390, "height": 800})
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")

    await expect(page.locator("h1")).to_have_text(run_id)
    await expect(page.locator("#log")).to_contain_text(HOSTILE)
    for path in ("/", "/runs", f"/run?id={quote(run_id, safe='')}", "/experiments", "/tools", "/schedules"):
        await page.goto(f"{stranger.origin}{path}")
        await expect(page.locator("html[data-ready]")).to_be_attached()
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "hacked" not in (await page.title()).replace(HOSTILE, "")
