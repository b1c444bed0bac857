"""Tools loaded from their files, as the executor does, with a toolkit that remembers what they report."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.ports import free_port
from tests.tools.fake_github import FakeGitHub
from tests.tools.fake_resend import KEY, FakeResend
from tests.tools.local_api import LocalApi, serve

Load = Callable[[str], ModuleType]
Scrape = Callable[..., dict[str, Any]]
Send = Callable[..., dict[str, Any]]
TOOLS = Path(__file__).parents[2] / "tools"


class RecordingToolkit:
    """Stands for `shared.toolkit`; what `once` keeps outlives an attempt, the rest is in order of events."""

    def __init__(self) -> None:
        self.run = SimpleNamespace(id="exp_outreach:1705320000000-0", experiment_id="exp_outreach", attempt=1)
        self.steps: list[tuple[float, float | None]] = []
        self.metrics: list[tuple[str, float]] = []
        self.partials: list[Any] = []
        self.effects: dict[str, str] = {}

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        self.steps.append((done, total))

    def metric(self, name: str, value: float, **tags: Any) -> None:
        self.metrics.append((name, value))

    def partial(self, item: Any) -> None:
        self.partials.append(item)

    def once(self, key: str, function: Callable[[], Any]) -> Any:
        if key not in self.effects:
            self.effects[key] = json.dumps(function())
        return json.loads(self.effects[key])


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    monkeypatch.delenv("RESEND_API_KEY", raising=False)


@pytest.fixture
def toolkit() -> RecordingToolkit:
    return RecordingToolkit()


@pytest.fixture
def load(toolkit: RecordingToolkit) -> Load:
    """Loads a tool by name, its toolkit replaced by the recording one."""

    def load_tool(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"tool_{name}", TOOLS / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.toolkit = toolkit  # type: ignore[attr-defined]
        return module

    return load_tool


@pytest.fixture
def api() -> Iterator[LocalApi]:
    with serve() as running:
        yield running


@pytest.fixture
def nobody() -> str:
    """The URL of a port where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


# -- GitHub -----------------------------------------------------------------------------


@pytest.fixture
def github(api: LocalApi) -> FakeGitHub:
    return FakeGitHub(api)


@pytest.fixture
def scraper(load: Load) -> ModuleType:
    return load("github_stargazer_scraper")


@pytest.fixture
def scrape(scraper: ModuleType, api: LocalApi) -> Scrape:
    return lambda **params: scraper.github_stargazer_scraper(**{"api_url": api.url, **params})


# -- Resend -----------------------------------------------------------------------------


@pytest.fixture
def resend(api: LocalApi, monkeypatch: pytest.MonkeyPatch) -> FakeResend:
    monkeypatch.setenv("RESEND_API_KEY", KEY)
    return FakeResend(api)


@pytest.fixture
def mailer(load: Load) -> ModuleType:
    return load("resend_email")


@pytest.fixture
def send(mailer: ModuleType, api: LocalApi) -> Send:
    """The tool with a valid letter, any part of which a test may replace."""
    letter = {"subject": "Hi", "from_email": "Jake <jake@example.com>", "text": "Hello", "api_url": api.url}
    return lambda **params: mailer.resend_email(**{**letter, **params})
