"""Fixtures of the tests of the commands."""

from pathlib import Path

import pytest

from tests.acceptance.commands import Shell


@pytest.fixture
def shell(tmp_path: Path, redis_url: str) -> Shell:
    """An empty directory; REDIS_URL is the test's own server."""
    return Shell(tmp_path, {"REDIS_URL": redis_url})
