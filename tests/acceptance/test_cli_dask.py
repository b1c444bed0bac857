"""`fullsend plan` on a Dask cluster: the same results, also after a kill, and nothing left behind."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.planner.plan import Plan
from services.planner.report.tables import TIMES
from tests.acceptance.commands import Shell, family, survivors
from tests.conftest import Serve, eventually
from tests.planner.backends.conftest import DaskCluster

pytestmark = pytest.mark.xdist_group("dask")

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
def here(tmp_path: Path) -> Shell:
    """A directory with a tool, without Redis."""
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "work.py").write_text(TOOL)
    return Shell(tmp_path, {})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[DaskCluster]:
    """A cluster with one worker, for the commands of one test."""
    folder = tmp_path / "dask"
    folder.mkdir()
    cluster = DaskCluster(folder)
    try:
        cluster.start_scheduler()
        cluster.start_worker()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def on_cluster(here: Shell, cluster: DaskCluster) -> Shell:
    """The directory, with the cluster in the variable that Dask itself reads."""
    return here.with_variables(DASK_SCHEDULER_ADDRESS=cluster.address)


def write(shell: Shell, cases: int, wait: str = "") -> None:
    """Write a manifest of so many cases to `plan.yaml`."""
    parameters = [{"n": number, **({"wait": wait} if wait else {})} for number in range(cases)]
    manifest = {
        "workflow_id": "my plan",
        "tool": "work",
        "cases": [{"parameters": one} for one in parameters],
        "execution_policy": {"concurrency": 4},
    }
    (shell.directory / "plan.yaml").write_text(json.dumps(manifest))


def table(shell: Shell, plan: str) -> list[dict[str, str]]:
    """The rows of a report's table, without times."""
    with (shell.directory / plan / "report" / "cases.csv").open(newline="") as file:
        return [{name: one for name, one in row.items() if name not in TIMES} for row in csv.DictReader(file)]


async def test_a_sweep_has_the_same_tables_on_every_backend(
    here: Shell, redis_url: str, serve: Serve
) -> None:
    shutil.copy(Path(__file__).parents[2] / "tools" / "ring_simulation.py", here.directory / "tools")
    sweep = (
        "sweep", "ring", "--kappa", "0.25,0.5,1", "--concentration", "1,5", "--replicates", "2",
        "--n-agents", "200",
    )  # fmt: skip

    local = await here.fullsend(*sweep, "--directory", "local")
    dask = await here.fullsend(
        *sweep, "--backend", "dask", "--dask-scheduler", "local", "--directory", "dask", "--concurrency", "2"
    )
    store = str(here.directory / ".fullsend" / "artifacts")
    with_redis = here.with_variables(REDIS_URL=redis_url, ARTIFACTS=store)
    async with serve(artifacts=store):
        fleet = await with_redis.fullsend(*sweep, "--backend", "fleet", "--directory", "fleet")

    assert (local.code, dask.code, fleet.code) == (0, 0, 0), (dask, fleet)
    for name, done in (("dask", dask), ("fleet", fleet)):
        assert done.lines[:7] == local.lines[:7]
        assert table(here, name) == table(here, "local")
        for path in (here.directory / "local" / "report").glob("metrics*.csv"):
            assert (here.directory / name / "report" / path.name).read_bytes() == path.read_bytes()


async def test_a_plan_runs_on_the_cluster_that_dask_is_configured_for(
    on_cluster: Shell,
) -> None:
    write(on_cluster, 4)
    done = await on_cluster.fullsend("plan", "run", "plan.yaml", "--backend", "dask", "--directory", "p")
    await on_cluster.fullsend("plan", "run", "plan.yaml", "--directory", "q")
    estimate = await on_cluster.fullsend("plan", "run", "plan.yaml", "--backend", "dask", "--estimate")

    assert done.lines[0] == "case 2 failed: ValueError: two is too many"
    assert table(on_cluster, "p") == table(on_cluster, "q")
    one = Plan.open(on_cluster.directory / "p").results()[3].execution
    assert one is not None
    assert one.loader.load_bytes(one.artifacts["square.txt"]) == b"9" * 50_000
    assert one.storage_base == str(on_cluster.directory / "p" / "artifacts")
    assert "4 runs of work, 4 at once on dask" in estimate.lines


async def test_a_planner_that_is_killed_leaves_nothing_and_its_plan_goes_on(
    on_cluster: Shell,
) -> None:
    gate = on_cluster.directory / "gate"
    write(on_cluster, 5, wait=str(gate))
    async with on_cluster.called(
        "plan", "run", "plan.yaml", "--backend", "dask", "--directory", "p"
    ) as process:
        await eventually(lambda: _begun(gate, 0, 1, 2, 3), "the first cases to run")
        pids = [(gate.with_name(f"gate.{n}")).read_text() for n in range(4)]
        process.kill()
        await process.wait()
    await eventually(lambda: _ended(pids), "the tools to end")
    gate.touch()
    done = await on_cluster.fullsend("plan", "resume", "p", "--json")

    found = json.loads(done.out)
    assert (found["done"], found["failed"], found["session"]["backend"]) == (4, 1, "dask")


async def test_ctrl_c_ends_the_cluster_of_this_machine_with_the_plan(here: Shell) -> None:
    gate = here.directory / "gate"
    write(here, 5, wait=str(gate))

    async with here.called(
        "plan", "run", "plan.yaml", "--backend", "dask", "--dask-scheduler", "local", "--directory", "p"
    ) as process:
        await eventually(lambda: _begun(gate, 0, 1), "the first cases to run")
        below = family(process.pid)
        process.send_signal(2)
        _, err = await process.communicate()

    assert process.returncode == 130
    assert survivors(below) == []
    assert "Traceback" not in err.decode()
    assert Plan.open(here.directory / "p").status().left == 5


async def test_options_that_make_no_sense_are_refused_before_a_plan_is_created(here: Shell) -> None:
    write(here, 1)

    nowhere = await here.fullsend("plan", "run", "plan.yaml", "--backend", "dask", "--directory", "p")
    other = await here.fullsend("plan", "run", "plan.yaml", "--dask-scheduler", "local", "--directory", "p")

    assert nowhere.error == (
        "error: which Dask cluster? Give `--dask-scheduler tcp://HOST:8786` or set DASK_SCHEDULER_ADDRESS; "
        "`--dask-scheduler local` starts one on this machine"
    )
    assert other.error == "error: --dask-scheduler is for `--backend dask`, not for local"
    assert not (here.directory / "p").exists()


async def _begun(gate: Path, *numbers: int) -> bool:
    paths = [gate.with_name(f"{gate.name}.{n}") for n in numbers]
    return all(path.exists() and path.read_text() for path in paths)


async def _ended(pids: list[str]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)
