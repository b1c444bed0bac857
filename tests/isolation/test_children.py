"""What a tool starts with `multiprocessing` works as in plain Python."""

import hashlib
from pathlib import Path

import pytest

from services.executor.isolation.calls import Answer, Level, Module, Returned
from tests.isolation.bench import Bench
from tests.isolation.bench import bench as bench_of

METHODS = ["fork", "spawn", "forkserver"]
POOLS = {
    "pool": "with mp.get_context(method).Pool(2) as pool: return pool.map(work, [1, 2, 3])",
    "executor": """
    with ProcessPoolExecutor(2, mp_context=mp.get_context(method)) as pool:
        return list(pool.map(work, [1, 2, 3]))""",
    "process": """
    context = mp.get_context(method)
    queue = context.Queue()
    child = context.Process(target=put, args=(queue,))
    child.start()
    found = queue.get(timeout=20)
    child.join()
    return found""",
}
SOURCE = """
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from shared import toolkit
import helper
class Wrong(Exception): pass
def work(x):
    toolkit.metric("seen", x)
    if x > 100: raise Wrong(x)
    return x * helper.FACTOR * x
def put(queue): queue.put([work(x) for x in (1, 2, 3)])
def run(method):
    {body}
"""


def value(answer: Answer) -> object:
    assert isinstance(answer, Returned), answer
    return answer.value


@pytest.mark.parametrize("name", ["mine", "statistics", "orjson"])
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("method", METHODS)
async def test_children_import_what_the_tool_imports(bench: Bench, method: str, pool: str, name: str) -> None:
    (bench.directory / "helper.py").write_text("FACTOR = 1")
    tool = bench.tool(SOURCE.format(body=POOLS[pool]), name=name)

    found = value(await bench.run(tool, params={"method": method}, timeout_seconds=60))

    assert found == [1, 4, 9]
    # Not connected to the executor there, and so as if run by hand.
    assert sorted(line for line in bench.lines("stderr") if line.startswith("metric")) == [
        f"metric seen={number}" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("level", Level)
async def test_children_are_found_at_every_level(bench: Bench, level: Level) -> None:
    (bench.directory / "helper.py").write_text("FACTOR = 1")
    tool = bench.tool(SOURCE.format(body=POOLS["pool"]))

    for _ in range(2):
        assert value(await bench.run(tool, params={"method": "spawn"}, level=level)) == [1, 4, 9]


async def test_an_exception_of_a_child_is_the_tools_own(bench: Bench) -> None:
    tool = bench.tool(
        """
        import multiprocessing as mp
        class Wrong(Exception): pass
        def work(x): raise Wrong(x)
        def run():
            with mp.get_context("spawn").Pool(1) as pool:
                try: pool.map(work, [1])
                except Wrong as error: return repr(error)
        """,
        name="statistics",
    )

    assert value(await bench.run(tool)) == "Wrong(1)"


async def test_a_package_and_its_modules_are_found_by_children(bench: Bench) -> None:
    folder = bench.directory / "email"
    folder.mkdir()
    (folder / "parts.py").write_text("def work(x): return x + 1\n")
    main = b"""
import multiprocessing as mp
from . import parts
def email():
    import email.message
    with mp.get_context("spawn").Pool(1) as pool:
        return [pool.map(parts.work, [1]), parts.__name__, email.message.__name__]
"""
    (folder / "__init__.py").write_bytes(main)
    digest = hashlib.sha256(main).hexdigest()

    answer = await bench.run(Module("email", folder / "__init__.py", digest, main=digest))

    assert value(answer) == [[2], "fullsend_tool.email.parts", "email.message"]


# -- names ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["statistics", "orjson"])
async def test_a_tool_that_is_named_like_what_it_imports_gets_that(bench: Bench, name: str) -> None:
    tool = bench.tool(f"import {name} as wanted\ndef run(): return [__name__, wanted.__file__]", name=name)

    described = await bench.pool.describe(tool, 20)
    found = value(await bench.run(tool))

    assert isinstance(found, list)
    assert found[0] == described.module == f"fullsend_tool.{name}"
    assert Path(found[1]).parent != bench.directory


async def test_a_tool_with_a_name_of_its_own_keeps_it(bench: Bench) -> None:
    (bench.directory / "neighbour.py").write_text("import mine\ndef name(): return mine.__name__\n")
    tool = bench.tool("import neighbour\ndef run(): return [__name__, neighbour.name()]", name="mine")

    assert value(await bench.run(tool)) == ["mine", "mine"]


async def test_the_toolkit_is_the_only_thing_called_shared(bench: Bench) -> None:
    (bench.directory / "shared.py").write_text("secret = 1")
    answer = await bench.run("""
        import importlib
        from shared import toolkit
        import shared.toolkit
        def run():
            try: importlib.import_module("shared.keys")
            except ModuleNotFoundError: return toolkit is shared.toolkit and not hasattr(shared, "secret")
    """)

    assert value(answer) is True


# -- hashes -----------------------------------------------------------------------------

HASHES = """
import multiprocessing as mp, os, subprocess, sys
TEXTS = {"ann", "bob", "cid", "dan", "eve", "fay"}
def order(_=None): return " ".join(TEXTS)
def run():
    with mp.get_context("spawn").Pool(1) as pool:
        child = pool.map(order, [0])[0]
    code = "print(' '.join({'ann', 'bob', 'cid', 'dan', 'eve', 'fay'}))"
    plain = subprocess.run([sys.executable, "-c", code], stdout=-1, text=True).stdout.strip()
    return [order(), child, plain]
"""


async def test_all_seeded_runs_walk_through_texts_in_the_same_order(bench: Bench) -> None:
    tool = bench.tool(HASHES)

    found = [value(await bench.run(tool, seed=seed, level=level)) for seed in (1, 2) for level in Level]

    assert len({text for texts in found for text in texts}) == 1  # type: ignore[attr-defined]


async def test_runs_with_different_seeds_share_a_warm_process_but_not_with_unseeded_ones(
    bench: Bench,
) -> None:
    tool = bench.tool("import os\ndef run(): return os.getpid()")

    seeded = {value(await bench.run(tool, seed=seed)) for seed in (1, 2)}
    unseeded = {value(await bench.run(tool)) for _ in range(2)}

    assert len(seeded) == len(unseeded) == 1
    assert seeded != unseeded


async def test_unseeded_runs_have_random_hashes(bench: Bench) -> None:
    tool = bench.tool("def run(): return hash('text')")

    assert len({value(await bench.run(tool, level=Level.SPAWN)) for _ in range(3)}) > 1
    assert "PYTHONHASHSEED" not in value(await bench.run("import os\ndef run(): return dict(os.environ)"))  # type: ignore[operator]


async def test_a_seeded_interpreter_imports_nothing_from_where_it_started(bench: Bench) -> None:
    tool = bench.tool("import sys\ndef run(): return sys.path")

    unseeded, seeded = [value(await bench.run(tool, level=Level.SPAWN, seed=seed)) for seed in (None, 1)]

    assert seeded == unseeded


@pytest.mark.parametrize("seed", [None, 1])
async def test_an_interpreter_with_the_tools_own_options_finds_what_is_installed(
    bench: Bench, seed: int | None
) -> None:
    # So joblib starts its resource tracker.
    tool = bench.tool("""
        import subprocess, sys
        def run():
            options = subprocess._args_from_interpreter_flags()
            return subprocess.run([sys.executable, *options, "-c", "import orjson"]).returncode
    """)

    for level in Level:
        assert value(await bench.run(tool, seed=seed, level=level)) == 0


async def test_variables_of_python_do_not_reach_the_fork_server(tmp_path: Path) -> None:
    (tmp_path / "orjson.py").write_text("raise ImportError('not this one')")
    async with bench_of(tmp_path, environ={"PYTHONPATH": str(tmp_path)}) as own:
        answer = await own.run("import orjson\ndef run(): return orjson.loads('1')")

    assert value(answer) == 1
