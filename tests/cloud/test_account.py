"""Plans on a real account: `MODAL_TOKEN_ID=... MODAL_TOKEN_SECRET=... pytest -m cloud tests/cloud`.

They cost less than a dollar, use an app and a volume of their own, and remove them.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.cli.cloud import modal_app
from services.cli.cloud.modal_function import call_tool
from services.executor.isolation.calls import Event, Progress
from services.executor.outcome import Status
from services.planner.backends.modal_backend import ModalBackend
from services.planner.backends.modal_options import ModalOptions
from services.planner.cost.modal_prices import rates
from services.planner.execution import Execution, ExecutionResult, RunOptions
from services.planner.runtime import RuntimeConfig, ToolRuntime
from shared.messages import Policy
from tests.conftest import Tools
from tests.modal_server.fixtures import CHECKOUT

HAS_TOKEN = bool(os.environ.get("MODAL_TOKEN_ID")) or Path("~/.modal.toml").expanduser().exists()

pytestmark = [
    pytest.mark.cloud,
    pytest.mark.skipif(not HAS_TOKEN, reason="no token of Modal: MODAL_TOKEN_ID, MODAL_TOKEN_SECRET"),
    pytest.mark.xdist_group("modal"),
    pytest.mark.timeout(1_800),
]

OPTIONS = ModalOptions(app="fullsend-cloud-test", volume="fullsend-cloud-test", memory=1_024, max_parallel=10)
LEASE_SECONDS = 20.0


@pytest.fixture(scope="module", autouse=True)
def deployed() -> Iterator[None]:
    """The app, for all tests of this file."""
    image = modal_app.image_of(CHECKOUT, {"TOOL_ENVIRONMENT_ALLOWED": "CLOUD_TEST_*"})
    asyncio.run(modal_app.deploy(OPTIONS, image, call_tool))
    yield
    asyncio.run(modal_app.remove(OPTIONS, with_volume=True))


def backend(folder: Path, options: ModalOptions = OPTIONS) -> ModalBackend:
    """A backend with everything below a folder."""
    config = RuntimeConfig(
        tools_path=folder / "tools",
        artifacts=str(folder / "artifacts"),
        bundles_path=folder / "bundles",
        environments_path=folder / "environments",
    )
    runtime = ToolRuntime(config, 1, os.environ)
    return ModalBackend(options, runtime, concurrency=1_000, tell=print, lease_seconds=LEASE_SECONDS)


def call(tool: str, number: int = 1, seconds: float = 60, **parameters: object) -> Execution:
    """A call of a tool."""
    return Execution(tool, parameters, RunOptions(f"run-{number}", Policy(timeout_seconds=seconds)))


def value(result: ExecutionResult) -> Any:
    """What the tool returned."""
    assert result.error is None, result
    text = str(result.result)
    return json.loads(result.loader.load_text(text) if text.startswith("cas://") else text)


async def test_a_tool_runs_in_the_pool_of_a_container_with_artifacts_and_progress(
    tools: Tools, tmp_path: Path
) -> None:
    heard: list[Event] = []
    tools(
        "look",
        """
        import os, platform, sys, time
        from shared import toolkit
        def look():
            toolkit.progress(1, 2, "half")
            toolkit.artifact("large.bin", bytes(range(256)) * 4_000)
            time.sleep(2)
            return [platform.python_version(), platform.platform(), sorted(os.environ)]
        """,
    )
    async with backend(tmp_path) as modal:
        result = await modal.run(call("look"), report=heard.append)
    python, kernel, variables = value(result)
    print(python, kernel, variables)

    assert python.split(".")[:2] == [str(part) for part in sys.version_info[:2]]
    assert not [name for name in variables if name.startswith("MODAL_")]
    assert result.loader.load_bytes(result.artifacts["large.bin"]) == bytes(range(256)) * 4_000
    assert Progress(1, 2, "half") in heard


async def test_a_tool_over_its_limit_is_ended_and_its_container_goes_on(tools: Tools, tmp_path: Path) -> None:
    tools("hang", "import time\ndef hang(): time.sleep(600)\n")
    tools("noop", "def noop(): return 1\n")
    async with backend(tmp_path) as modal:
        late = await modal.run(call("hang", seconds=3))
        after = await modal.run(call("noop"))

    assert late.status is Status.TIMEOUT
    assert value(after) == 1


async def test_fifty_cases_at_once_in_order(tools: Tools, tmp_path: Path) -> None:
    tools("square", "import time\ndef square(n):\n  time.sleep(1)\n  return n * n\n")
    began = time.monotonic()
    async with backend(tmp_path, replace(OPTIONS, max_parallel=50)) as modal:
        results = await asyncio.gather(*(modal.run(call("square", n, n=n)) for n in range(50)))
    print(f"50 cases of 1 s, 50 at once: {time.monotonic() - began:.1f} s")

    assert [value(one) for one in results] == [n * n for n in range(50)]


async def test_a_container_that_modal_ends_has_its_cases_run_again(tools: Tools, tmp_path: Path) -> None:
    """A container ends that needs more memory than its hard limit; the tool's own limit is left out."""
    tools(
        "greedy",
        """
        # /// script
        # [tool.fullsend.modal]
        # memory_mib = 512
        # ///
        def greedy(): return len(bytearray(500_000_000_000))
        """,
    )
    async with backend(tmp_path) as modal:
        result = await modal.run(call("greedy"))
    print(result.status, result.error, result.lost_attempts)

    assert result.status in (Status.FAILED, Status.LOST)


PLANNER = """
import asyncio, sys
from pathlib import Path
from tests.cloud.test_account import backend, call

async def main():
    async with backend(Path(sys.argv[1])) as modal:
        print("open", flush=True)
        await modal.run(call("beat", seconds=600), report=lambda event: print(event, flush=True))

asyncio.run(main())
"""


async def test_the_tools_of_a_planner_that_is_killed_are_ended(tools: Tools, tmp_path: Path) -> None:
    tools(
        "beat",
        """
        import time
        from shared import toolkit
        def beat():
            for n in range(600):
                toolkit.progress(n)
                time.sleep(1)
        """,
    )
    planner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PLANNER, str(tmp_path), cwd=CHECKOUT, stdout=asyncio.subprocess.PIPE
    )
    assert planner.stdout is not None
    while b"Progress" not in await planner.stdout.readline():
        pass
    planner.kill()
    await planner.wait()
    began = time.monotonic()
    while (await modal_app.look(OPTIONS)).running:
        await asyncio.sleep(1)
    print(f"ended {time.monotonic() - began:.0f} s after the kill, with a lease of {LEASE_SECONDS:g} s")


async def test_a_gpu_is_there(tools: Tools, tmp_path: Path) -> None:
    tools(
        "gpu",
        """
        # /// script
        # [tool.fullsend.modal]
        # gpu = "T4"
        # ///
        import subprocess
        def gpu(): return subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
        """,
    )
    async with backend(tmp_path) as modal:
        result = await modal.run(call("gpu", seconds=120))

    assert "T4" in str(value(result))


async def test_the_platform_says_its_prices() -> None:
    found = await rates()
    print(found)

    assert found.source.startswith("Modal, asked on 20")
