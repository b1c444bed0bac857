"""Settings in a directory and an environment of their own."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.executor import config

Write = Callable[[str], None]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory and an environment with no setting in them."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.lower() in config.NAMES:
            monkeypatch.delenv(name)


@pytest.fixture
def env_file(elsewhere: None) -> Write:
    """Writes `.env`."""
    return lambda text: _write(config.ENV_FILE, text)


@pytest.fixture
def file(elsewhere: None) -> Write:
    """Writes `config/schedule.yaml`."""
    return lambda text: _write(config.FILE, text)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
