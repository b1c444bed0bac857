"""`fullsend artifacts`, and what `fullsend show` says of what was kept."""

import asyncio
import json
import os
import pty
import shlex
from pathlib import Path

import pytest

from services.executor.artifacts import Keeper, LocalBlobs
from tests.acceptance.commands import FULLSEND, Shell, row_of
from tests.acceptance.inside import Inside
from tests.acceptance.keeping import LARGE, NOTE, RUN, address, addresses, age, cas, recorded, spoil
from tests.conftest import Neighbour, Serve, Tools

MAKER = """
    from shared import toolkit

    def maker(size: int = 200_000):
        toolkit.artifact("plots/large.bin", b"x" * size)
        toolkit.artifact("note.txt", b"a note\\n")
        return {"letters": "y" * size}
"""


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    """The store of the service under test."""
    return LocalBlobs(tmp_path / "artifacts")


@pytest.fixture
def here(tmp_path: Path, redis_url: str) -> Inside:
    """A directory to work in, beside the store."""
    directory = tmp_path / "here"
    directory.mkdir()
    return Inside(directory, {"REDIS_URL": redis_url, "ARTIFACTS": str(tmp_path / "artifacts")})


@pytest.fixture
def shell(here: Inside) -> Shell:
    """The same, for commands in processes of their own."""
    return Shell(here.directory, here.variables)


# -- with a worker --------------------------------------------------------------------


async def test_the_life_of_what_a_run_kept(
    shell: Shell, here: Inside, neighbour: Neighbour, serve: Serve, tools: Tools, blobs: LocalBlobs
) -> None:
    tools("maker", MAKER)
    await neighbour.publish("exp", "maker", seed=7)
    async with serve():
        run_id = (await neighbour.run("exp"))["run_id"]
    record = await neighbour.record(run_id)
    age(blobs)

    listed = await here.fullsend("artifacts", "ls", run_id)
    shown = await here.fullsend("show", run_id)
    verified, swept = await asyncio.gather(
        shell.fullsend("artifacts", "verify", run_id), shell.fullsend("artifacts", "gc")
    )
    fetched = await here.fullsend("artifacts", "get", run_id, "plots/large.bin", "-o", "here.bin")
    await neighbour.redis.delete(
        *[key for key in await neighbour.redis.keys("*") if run_id in key], "tools:maker"
    )
    refused = await here.fullsend("artifacts", "gc")
    forgotten = await here.fullsend("artifacts", "gc", "--force")

    large = row_of(listed, "plots/large.bin")[1:]
    assert large == ["200.0 kB", "application/octet-stream", "stored", f"cas://{address(LARGE)}", "-"]
    assert row_of(listed, "note.txt")[1:] == ["7 bytes", "text/plain", "inline", "data:", "-"]
    assert verified.code == 0
    assert verified.out.startswith("verified 1 run, 3 blobs of ")
    assert "1 inline artifact: no problems" in verified.out
    assert "0 blobs deleted, 0 bytes freed; 3 referenced" in swept.out
    assert (shell.directory / "here.bin").read_bytes() == LARGE
    assert (fetched.out, fetched.code) == ("", 0)
    assert "y" * 200_000 in shown.out
    assert f"run digest    {record['run_digest']}" in shown.out
    assert "entry point   maker" in shown.out
    assert "seed          7" in shown.out
    assert row_of(shown, "note.txt")[1:] == ["7 bytes", "text/plain", "inline"]
    assert "nothing in Redis" in refused.error
    assert "3 blobs deleted" in forgotten.out
    assert addresses(blobs) == set()


# -- ls -------------------------------------------------------------------------------


async def test_ls_says_what_the_store_holds(here: Inside, blobs: LocalBlobs) -> None:
    empty = await here.fullsend("artifacts", "ls")
    blobs.put(LARGE)
    blobs.put(NOTE)

    told, as_json, listed = await asyncio.gather(
        here.fullsend("artifacts", "ls"),
        here.fullsend("artifacts", "ls", "--json"),
        here.fullsend("artifacts", "ls", "--blobs"),
    )

    assert empty.out == f"{blobs.base}: 0 blobs, 0 bytes\n"
    assert told.out == f"{blobs.base}: 2 blobs, 200.0 kB\n"
    assert json.loads(as_json.out) == {"place": blobs.base, "type": "local", "blobs": 2, "bytes": 200_007}
    assert row_of(listed, f"cas://{address(NOTE)}")[1] == "7 bytes"


async def test_ls_needs_no_redis_to_look_at_the_store(here: Inside) -> None:
    away = here.with_variables(REDIS_URL="redis://127.0.0.1:1/0")

    assert (await away.fullsend("artifacts", "ls")).code == 0


async def test_ls_shows_the_readable_artifacts_beside_the_broken_one(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    good = Keeper(blobs).keep("good", NOTE).to_json()
    artifacts = json.dumps({"bad": {"reference": "cas://1"}, "good": good})
    await neighbour.redis.hset(f"experiment_runs:{RUN}", mapping={"status": "failed", "artifacts": artifacts})

    listed, as_json, shown = await asyncio.gather(
        here.fullsend("artifacts", "ls", RUN),
        here.fullsend("artifacts", "ls", RUN, "--json"),
        here.fullsend("show", RUN),
    )

    assert "is not a SHA-256" in row_of(listed, "bad")[-1]
    assert row_of(listed, "good")[1] == "7 bytes"
    assert json.loads(as_json.out)[1] == {"name": "good", **good, "stored": False}
    assert "is not a SHA-256" in shown.out
    assert "base64" not in shown.out


async def test_ls_shows_what_a_run_under_way_has_kept_so_far(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await neighbour.redis.hset(f"experiment_runs:{RUN}", "status", "running")
    one = json.dumps(Keeper(blobs).keep("early.txt", NOTE).to_json())
    await neighbour.redis.hset(f"fullsend:executor:artifacts:{RUN}", "early.txt", one)

    listed = await here.fullsend("artifacts", "ls", RUN)
    fetched = await here.fullsend("artifacts", "get", RUN, "early.txt")

    assert row_of(listed, "early.txt")[1] == "7 bytes"
    assert fetched.out == "a note\n"


# -- get ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", NOTE, bytes(range(256)) * 20_000])
async def test_get_hands_out_the_very_bytes(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, content: bytes
) -> None:
    artifact = Keeper(blobs).keep("a.bin", content)
    run_id = await recorded(neighbour, artifact)

    piped, written, by_reference = await asyncio.gather(
        here.raw("artifacts", "get", run_id, "a.bin"),
        here.fullsend("artifacts", "get", run_id, "a.bin", "-o", "."),
        here.raw("artifacts", "get", str(artifact.reference), "-o", "-"),
    )

    assert piped == by_reference == (0, content, b"")
    assert written.code == 0
    assert (here.directory / "a.bin").read_bytes() == content


async def test_get_replaces_a_file_only_when_told_to(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    run_id = await recorded(neighbour, Keeper(blobs).keep("a", NOTE))
    there = here.directory / "mine"
    there.write_text("mine")

    refused = await here.fullsend("artifacts", "get", run_id, "a", "-o", "mine")
    kept = there.read_text()
    forced = await here.fullsend("artifacts", "get", run_id, "a", "-o", "mine", "--force")

    assert "exists; use --force to replace it" in refused.error
    assert kept == "mine"
    assert forced.code == 0
    assert there.read_bytes() == NOTE


async def test_get_never_replaces_a_device(here: Inside, neighbour: Neighbour, blobs: LocalBlobs) -> None:
    run_id = await recorded(neighbour, Keeper(blobs).keep("a", NOTE))
    pipe = here.directory / "pipe"
    os.mkfifo(pipe)

    done = await here.fullsend("artifacts", "get", run_id, "a", "-o", "pipe", "--force")

    assert "is not a regular file" in done.error
    assert pipe.is_fifo()


def on_terminal(shell: Shell, *arguments: str) -> tuple[int, str]:
    """The exit code and all that the command prints when it is on a terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(shell.directory)
        os.execve(FULLSEND, [str(FULLSEND), *arguments], {**os.environ, **shell.variables, "COLUMNS": "300"})
    shown = b""
    while True:
        try:
            piece = os.read(terminal, 65_536)
        except OSError:  # the other end is closed
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


async def test_on_a_terminal_the_file_is_called_like_the_last_part_of_the_name(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    run_id = await recorded(neighbour, Keeper(blobs).keep("plots/a.png", NOTE))

    code, shown = await asyncio.to_thread(on_terminal, shell, "artifacts", "get", run_id, "plots/a.png")

    assert code == 0
    assert address(NOTE) in shown
    assert "a note" not in shown
    assert {path.name: path.read_bytes() for path in shell.directory.iterdir()} == {"a.png": NOTE}


@pytest.mark.parametrize("name", ["../../a.png", "/etc/a.png", "..\\a.png", "a.png"])
async def test_no_name_leads_out_of_the_directory(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, name: str
) -> None:
    run_id = await recorded(neighbour, Keeper(blobs).keep(name, NOTE))

    done = await here.fullsend("artifacts", "get", run_id, name, "-o", ".")

    assert done.code == 0
    assert [path.name for path in here.directory.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["..", "a/..", "a/", ".env", "x/.bashrc"])
async def test_a_name_that_is_no_name_for_a_file_has_to_be_chosen(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, name: str
) -> None:
    run_id = await recorded(neighbour, Keeper(blobs).keep(name, NOTE))

    done = await here.fullsend("artifacts", "get", run_id, name, "-o", ".")

    assert "choose one with -o" in done.error
    assert list(here.directory.iterdir()) == []


async def test_get_says_what_there_is_when_the_name_or_the_run_is_not(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    run_id = await recorded(neighbour, Keeper(blobs).keep("a.txt", NOTE), Keeper(blobs).keep("b.txt", b""))

    other, none, bare, no_blob = await asyncio.gather(
        here.fullsend("artifacts", "get", run_id, "c.txt"),
        here.fullsend("artifacts", "get", "exp:2-0", "a.txt"),
        here.fullsend("artifacts", "get", run_id),
        here.fullsend("artifacts", "get", f"cas://{address(LARGE)}"),
    )

    assert "has no artifact 'c.txt'; it has 'a.txt', 'b.txt'" in other.error
    assert "there is no run 'exp:2-0'" in none.error
    assert "it has 'a.txt', 'b.txt'" in bare.error
    assert blobs.place(address(LARGE)) in no_blob.error
    assert [done.code for done in (other, none, bare, no_blob)] == [1, 1, 1, 1]


@pytest.mark.parametrize("instead", [b"y" * 200_000, b"x" * 199_999, None])
async def test_what_is_not_what_it_was_is_an_error_and_no_file(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, instead: bytes | None
) -> None:
    run_id = await recorded(neighbour, Keeper(blobs).keep("a.bin", LARGE))
    path = spoil(blobs, LARGE, instead)

    done = await here.fullsend("artifacts", "get", run_id, "a.bin", "-o", "a.bin")

    assert done.code == 1
    assert f"{run_id}: {path}" in done.error
    assert list(here.directory.iterdir()) == []


# -- show -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["result", "partial_results", "traceback"])
async def test_show_loads_what_is_in_the_store(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, field: str
) -> None:
    await recorded(neighbour, **{field: cas(blobs, '{"n": 12345}')})

    shown, as_json = await asyncio.gather(here.fullsend("show", RUN), here.fullsend("show", RUN, "--json"))

    assert '"n": 12345' in shown.out
    assert "cas://" not in shown.out
    assert json.loads(as_json.out)[field] == "cas://" + address(b'{"n": 12345}')


async def test_show_gives_the_command_for_what_it_does_not_show(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    reference = cas(blobs, json.dumps("z" * 1_000_000))
    await recorded(neighbour, result=reference)

    shown = await here.fullsend("show", RUN)
    [command] = [line for line in shown.lines if "artifacts get" in line]
    fetched = await here.fullsend(*shlex.split(command)[1:])

    assert "is not shown: it is too large (1.0 MB)" in shown.out
    assert len(shown.out) < 2_000
    assert fetched.code == 0
    assert json.loads((here.directory / "result.json").read_text()) == "z" * 1_000_000


async def test_show_says_why_a_result_cant_be_loaded(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, tmp_path: Path
) -> None:
    reference = cas(blobs, "[1]")
    await recorded(neighbour, result=reference)
    path = spoil(blobs, b"[1]", None)

    shown = await here.fullsend("show", RUN)
    (tmp_path / "file").write_text("in the way")
    elsewhere = await here.with_variables(ARTIFACTS=str(tmp_path / "file")).fullsend("show", RUN)

    assert shown.code == elsewhere.code == 0
    assert reference in shown.out
    assert f"is not shown: {path}: there is no such blob" in shown.out
    assert f"is not shown: {tmp_path / 'file'}" in elsewhere.out
    assert "can't be read: Not a directory" in elsewhere.out


async def test_a_result_that_is_a_reference_is_a_text_and_not_what_it_refers_to(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await recorded(neighbour, result=json.dumps(cas(blobs, "not this")), cached="true", cached_from="exp:1-0")

    shown = await here.fullsend("show", RUN)

    assert f"cas://{address(b'not this')}" in shown.out
    assert "not this" not in shown.out
    assert "cached from   exp:1-0" in shown.out


# -- streams --------------------------------------------------------------------------


async def test_a_large_artifact_is_not_held_in_memory(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, tmp_path: Path
) -> None:
    size_bytes = 64 << 20
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(size_bytes)
    run_id = await recorded(neighbour, Keeper(blobs).keep("large", large))
    measured = (
        "import resource, sys; from services.cli.main import main;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024; before = peak();"
        "code = main(sys.argv[1:]); print(peak() - before, file=sys.stderr); sys.exit(code)"
    )

    done = await shell.python("-c", measured, "artifacts", "get", run_id, "large", "-o", "copy")

    assert done.code == 0, done
    assert (shell.directory / "copy").stat().st_size == size_bytes
    assert int(done.err.splitlines()[-1]) < size_bytes / 2
