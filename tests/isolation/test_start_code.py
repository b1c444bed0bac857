"""What a tool's environment has executed when an interpreter starts is as confined as the tool."""

import os
import zipfile

import pytest

from services.executor.isolation import sandbox
from services.executor.isolation.calls import Level, Returned
from services.executor.isolation.environment.environments import Environment
from services.executor.isolation.environment.requirements import Requirements
from services.executor.isolation.sandbox import Sandbox, Unavailable
from tests.isolation.bench import Bench
from tests.isolation.workshop import Workshop, find_uv

pytestmark = pytest.mark.skipif(
    isinstance(sandbox.detect(), Unavailable), reason="nothing on this machine can confine a process"
)

# Harmless: it tries to read, and keeps what came of it where the tool finds it.
TRYING = """
import builtins, os
def attempt(path):
    try:
        return open(path, "rb").read(1) and "read"
    except OSError as error:
        return type(error).__name__
if not hasattr(builtins, "tried"): builtins.tried = []
builtins.tried.append([attempt({memory!r}), attempt({secret!r})])
"""
SOURCE = """
import builtins, multiprocessing as mp, os, sys
def told(): return [builtins.tried, sys.prefix, sys.flags.no_site, callable(exit)]
def tell(connection): connection.send(told())
def run():
    spawn = mp.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=tell, args=(theirs,))
    child.start()
    found = [told(), ours.recv() if ours.poll(20) else None, sys.executable]
    child.join()
    return found
"""


async def made(workshop: Workshop, files: dict[str, str]) -> Environment:
    """An environment with a package that has these files as well."""
    with zipfile.ZipFile(workshop.wheel("pinned", "1.0"), "a") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return await workshop.environments(uv=find_uv()).ensure(Requirements(("pinned",)))


@pytest.mark.parametrize("sandbox", [Sandbox.PROCESS, Sandbox.FILES])
async def test_code_of_packages_that_runs_at_the_start_is_confined_at_every_level(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    workshop, secret = Workshop(place), place / "secret"
    secret.write_text("secret")
    trying = TRYING.format(memory=f"/proc/{os.getpid()}/environ", secret=str(secret))
    files = {"pinned.pth": "import first\n", "first.py": trying, "sitecustomize.py": trying}
    environment = await made(workshop, files)
    tool = bench.tool(SOURCE, environment=environment, sandbox=sandbox)

    answers = [await bench.run(tool, level=level) for level in Level]

    tried = ["PermissionError", "PermissionError" if sandbox.limits_files else "read"]
    # As in an interpreter that was started in the environment, and so are those that it starts.
    as_started = [[tried, tried], str(environment.prefix), 0, True]
    assert answers == [Returned([as_started, as_started, str(environment.python)], 3)] * 3


async def test_lines_of_pth_files_are_executed_as_often_as_by_an_interpreter_that_is_started(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    counting = "import builtins; builtins.count = getattr(builtins, 'count', 0) + 1\n"
    environment = await made(Workshop(tmp_path_factory.mktemp("elsewhere")), {"pinned.pth": counting})
    tool = bench.tool(
        """
        import subprocess, sys
        def run():
            started = subprocess.check_output([sys.executable, "-c", "print(count)"])
            return [count, int(started)]
        """,
        environment=environment,
    )

    answer = await bench.run(tool)

    assert isinstance(answer, Returned)
    assert answer.value[0] == answer.value[1] > 0


async def test_a_package_can_not_choose_which_standard_library_is_loaded_before(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    workshop, elsewhere = Workshop(place), place / "elsewhere"
    elsewhere.mkdir()
    environment = await made(workshop, {"pinned-1.0.data/data/pyvenv.cfg": f"home = {elsewhere / 'bin'}\n"})
    assert str(elsewhere) in (environment.prefix / "pyvenv.cfg").read_text()
    (elsewhere / "lib").mkdir()
    (elsewhere / "lib" / "secret").write_text("secret")
    tool = bench.tool(
        f"""
        import pinned
        def run():
            try: return open({str(elsewhere / "lib" / "secret")!r}).read()
            except PermissionError: return pinned.VERSION
        """,
        environment=environment,
        sandbox=Sandbox.FILES,
    )

    assert await bench.run(tool) == Returned("1.0")
