"""What the tests of the commands share: a directory to run them in."""

from pathlib import Path

import pytest

from tests.acceptance.commands import Shell


@pytest.fixture
def shell(tmp_path: Path, redis_url: str) -> Shell:
    """A directory with nothing in it but what the test writes; REDIS_URL is the test's own server."""
    return Shell(tmp_path, {"REDIS_URL": redis_url})
