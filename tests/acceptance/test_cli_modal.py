"""`fullsend plan` and `fullsend sweep` on Modal, and `fullsend modal`: real commands, containers of a server
of our own."""

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from services.planner.backends.modal_options import APP
from services.planner.plan import Plan
from services.planner.results import inline_value
from tests.acceptance.commands import FULLSEND, Shell
from tests.acceptance.test_cli_dask import table, write
from tests.acceptance.test_cli_plan_display import on_a_terminal
from tests.conftest import eventually
from tests.modal_server import RunningServer

pytestmark = pytest.mark.xdist_group("modal")

CHECKOUT = Path(__file__).parents[2]
TOOL = """
import os, time
from pathlib import Path
from shared import toolkit

def work(n, wait=""):
    if wait:
        Path(f"{wait}.{n}").write_text(str(os.getpid()))
        while not Path(wait).exists():
            time.sleep(0.01)
    if n == 2:
        raise ValueError("two is too many")
    toolkit.artifact("square.txt", str(n * n).encode() * 50_000)
    return {"n": n, "seed": toolkit.run.seed}
"""


@pytest.fixture
def here(modal_server: RunningServer, tmp_path: Path) -> Shell:
    """A directory with a tool, without Redis; Modal is the server of the tests."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    modal = {name: value for name, value in os.environ.items() if name.startswith("MODAL_")}
    return Shell(tmp_path, {}).with_variables(**modal, MODAL_SLOTS="4", MODAL_MAX_PARALLEL="8")


async def test_a_sweep_has_the_same_tables_on_modal_as_locally(here: Shell) -> None:
    shutil.copy(Path(__file__).parents[2] / "tools" / "ring_simulation.py", here.directory / "tools")
    sweep = (
        "sweep", "ring", "--kappa", "0.25,1", "--concentration", "1,5", "--replicates", "2",
        "--n-agents", "200",
    )  # fmt: skip

    local = await here.fullsend(*sweep, "--directory", "local")
    cloud = await here.fullsend(*sweep, "--cloud", "--cloud-parallel", "4", "--directory", "cloud")

    assert (local.code, cloud.code) == (0, 0), cloud
    assert cloud.lines[:5] == local.lines[:5]
    assert table(here, "cloud") == table(here, "local")
    for path in (here.directory / "local" / "report").glob("metrics*.csv"):
        assert (here.directory / "cloud" / "report" / path.name).read_bytes() == path.read_bytes()


async def test_a_plan_runs_on_modal_and_goes_on_after_its_planner_was_killed(here: Shell) -> None:
    gate = here.directory / "gate"
    write(here, 5, wait=str(gate))
    async with here.called("plan", "run", "plan.yaml", "--backend", "modal", "--directory", "p") as process:
        await eventually(lambda: _begun(gate, 0, 1, 2, 3), "the first cases to run")
        process.kill()
        await process.wait()
    gate.touch()
    done = await here.fullsend("plan", "resume", "p", "--json")
    estimate = await here.fullsend("plan", "run", "plan.yaml", "--backend", "modal", "--estimate")
    status = json.loads((await here.fullsend("modal", "status", "--json")).out)

    found = json.loads(done.out)
    assert (found["done"], found["failed"], found["session"]["backend"]) == (4, 1, "modal")
    one = Plan.open(here.directory / "p").results()[3].execution
    assert one is not None
    assert one.loader.load_bytes(one.artifacts["square.txt"]) == b"9" * 50_000
    assert one.storage_base == str(here.directory / "p" / "artifacts")
    assert "5 runs of work, 4 at once on modal" in estimate.lines
    assert status["ended"] >= 5


async def test_fifty_cases_at_once_are_in_order_and_shown_by_a_bar(here: Shell) -> None:
    manifest = {
        "workflow_id": "fifty",
        "tool": "work",
        "sweep": {"dimensions": {"n": list(range(100, 150))}},
        "execution_policy": {"concurrency": 50},
    }
    (here.directory / "plan.yaml").write_text(json.dumps(manifest))
    with_terminal = here.with_variables(TERM="xterm-256color")
    run = ("plan", "run", "plan.yaml", "--backend", "modal", "--directory", "p")

    shown = await on_a_terminal(with_terminal, 120, *run)

    results = Plan.open(here.directory / "p").results()
    assert [inline_value(one)["n"] for one in results] == list(range(100, 150))
    assert "50 of 50 done, 0 failed, 0 running" in shown
    assert "50 running" in shown
    assert "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in shown


async def test_modal_says_what_is_missing_before_a_plan_begins(here: Shell) -> None:
    write(here, 1)
    run = ("plan", "run", "plan.yaml", "--backend", "modal")

    no_token = await here.with_variables(MODAL_TOKEN_ID="", MODAL_TOKEN_SECRET="").fullsend(*run)
    wrong_token = await here.with_variables(MODAL_TOKEN_SECRET="as-other").fullsend(*run)
    both = await here.fullsend("sweep", "ring", "--cloud", "--backend", "dask")
    alone = await here.fullsend("sweep", "ring", "--cloud-parallel", "5")

    assert no_token.error.startswith("error: Modal takes no token of this process (")
    assert no_token.error.endswith(
        "set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET, or run `python -m modal setup`"
    )
    assert wrong_token.error.startswith(
        "error: Modal takes no token of this process (Token validation failed"
    )
    assert both.error == "error: --cloud is `--backend modal`, not dask"
    assert alone.error == "error: --cloud-parallel is for `--cloud`"


async def test_the_app_is_deployed_shown_and_removed(here: Shell, tmp_path: Path) -> None:
    write(here, 1)
    folder = tmp_path / "server"
    folder.mkdir()
    with RunningServer(folder) as server:
        mine = here.with_variables(MODAL_SERVER_URL=server.modal.url, MODAL_VOLUME="my-volume")
        before = await mine.fullsend("modal", "status", "--json")
        missing = await mine.fullsend("plan", "run", "plan.yaml", "--backend", "modal", "--directory", "p")
        deployed = [await mine.fullsend("modal", "deploy") for _ in range(2)]
        status = await mine.fullsend("modal", "status")
        removed = [await mine.fullsend("modal", "remove", *option) for option in ((), ("--volume",), ())]
        after = await mine.fullsend("modal", "status")

    assert (before.code, json.loads(before.out)["is_deployed"]) == (1, False)
    assert missing.error == f"error: there is no app {APP} on Modal; deploy it with `fullsend modal deploy`"
    assert not (here.directory / "p").exists()
    assert [one.lines for one in deployed] == 2 * [[f"deployed {APP}; run a plan with `--backend modal`"]]
    assert status.lines == [
        f"app {APP} is deployed",
        "calls: 0 run; in the last hour, 0 ended, 0 of them by a fault",
        "volume my-volume",
    ]
    assert [one.lines for one in removed] == [
        [f"removed app {APP}, queue fullsend-reports"],
        ["removed volume my-volume"],
        [f"there is no app {APP} on Modal"],
    ]
    assert after.lines == [
        f"app {APP} is not deployed; deploy it with `fullsend modal deploy`",
        "volume my-volume; there is no such volume",
    ]


async def test_the_workflow_runs_a_plan_that_is_given_by_hand(here: Shell, tmp_path: Path) -> None:
    workflow = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "sweep.yml").read_text())
    job = workflow["jobs"]["plan"]
    scripts = {step["name"]: step["run"] for step in job["steps"] if "run" in step}
    write(here, 2)
    fullsend = {
        "PATH": f"{FULLSEND.parent}:{os.environ['PATH']}",
        "PLAN": "plan.yaml",
        "MODAL_MAX_PARALLEL": "4",
    }
    process = await asyncio.create_subprocess_exec(
        "bash", "-e", "-c", scripts["Run"], cwd=tmp_path, env={**os.environ, **fullsend}
    )
    code = await process.wait()
    deploying = await here.fullsend(*scripts["Deploy"].removeprefix("fullsend ").split(), "--help")

    assert workflow[True]["workflow_dispatch"]["inputs"].keys() == {"plan", "parallel"}  # YAML reads `on` so
    assert (CHECKOUT / workflow[True]["workflow_dispatch"]["inputs"]["plan"]["default"]).exists()
    assert job["env"].keys() >= fullsend.keys() - {"PATH"}
    assert (code, deploying.code) == (0, 0)
    assert len(table(here, job["steps"][-1]["with"]["path"].rstrip("/"))) == 2
    assert "requirements-dev.txt" in scripts["Install"]


async def _begun(gate: Path, *numbers: int) -> bool:
    paths = [gate.with_name(f"{gate.name}.{n}") for n in numbers]
    return all(path.exists() and path.read_text() for path in paths)
