"""Real subprocesses: each test has its own pool, and must not leave a process behind."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.isolation.bench import Bench, bench


@pytest_asyncio.fixture(name="bench")
async def _bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(tmp_path) as ready:
        yield ready


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """The folder of a test's tools."""
    return tmp_path
