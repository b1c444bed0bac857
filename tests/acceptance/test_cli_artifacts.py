"""`fullsend artifacts ls` and `get`, and how `fullsend show` shows stored values."""

import asyncio
import json
import os
import pty
import shlex
from pathlib import Path

import pytest

from services.executor.artifacts import Keeper, LocalBlobs
from tests.acceptance.artifact_store import (
    LARGE,
    NOTE,
    RUN,
    damage,
    digests_in,
    make_old,
    sha256_of,
    store_text,
    write_record,
)
from tests.acceptance.commands import FULLSEND, Shell, row_of
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
    """The artifact store of the service under test."""
    return LocalBlobs(tmp_path / "artifacts")


@pytest.fixture
def shell(tmp_path: Path, redis_url: str) -> Shell:
    """An empty directory beside the artifact store."""
    directory = tmp_path / "here"
    directory.mkdir()
    return Shell(directory, {"REDIS_URL": redis_url, "ARTIFACTS": str(tmp_path / "artifacts")})


# -- with a worker --------------------------------------------------------------------


async def test_artifacts_of_a_run_are_listed_shown_verified_fetched_and_collected(
    shell: Shell, neighbour: Neighbour, serve: Serve, tools: Tools, blobs: LocalBlobs
) -> None:
    tools("maker", MAKER)
    await neighbour.publish("exp", "maker", seed=7)
    async with serve():
        run_id = (await neighbour.run("exp"))["run_id"]
    record = await neighbour.record(run_id)
    make_old(blobs)

    listed = await shell.fullsend("artifacts", "ls", run_id)
    shown = await shell.fullsend("show", run_id)
    verified, swept = await asyncio.gather(
        shell.fullsend("artifacts", "verify", run_id), shell.fullsend("artifacts", "gc")
    )
    fetched = await shell.fullsend("artifacts", "get", run_id, "plots/large.bin", "-o", "here.bin")
    await neighbour.redis.delete(
        *[key for key in await neighbour.redis.keys("*") if run_id in key], "tools:maker"
    )
    refused = await shell.fullsend("artifacts", "gc")
    forgotten = await shell.fullsend("artifacts", "gc", "--force")

    large = row_of(listed, "plots/large.bin")[1:]
    assert large == ["200.0 kB", "application/octet-stream", "stored", f"cas://{sha256_of(LARGE)}", "-"]
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
    assert digests_in(blobs) == set()


# -- ls -------------------------------------------------------------------------------


async def test_ls_describes_the_store(shell: Shell, blobs: LocalBlobs) -> None:
    empty = await shell.fullsend("artifacts", "ls")
    blobs.put(LARGE)
    blobs.put(NOTE)

    told, as_json, listed = await asyncio.gather(
        shell.fullsend("artifacts", "ls"),
        shell.fullsend("artifacts", "ls", "--json"),
        shell.fullsend("artifacts", "ls", "--blobs"),
    )

    assert empty.out == f"{blobs.base}: 0 blobs, 0 bytes\n"
    assert told.out == f"{blobs.base}: 2 blobs, 200.0 kB\n"
    assert json.loads(as_json.out) == {"place": blobs.base, "type": "local", "blobs": 2, "bytes": 200_007}
    assert row_of(listed, f"cas://{sha256_of(NOTE)}")[1] == "7 bytes"


async def test_ls_of_the_store_needs_no_redis(shell: Shell) -> None:
    away = shell.with_variables(REDIS_URL="redis://127.0.0.1:1/0")

    assert (await away.fullsend("artifacts", "ls")).code == 0


async def test_ls_shows_readable_artifacts_beside_a_broken_one(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    good = Keeper(blobs).keep("good", NOTE).to_json()
    artifacts = json.dumps({"bad": {"reference": "cas://1"}, "good": good})
    await neighbour.redis.hset(f"experiment_runs:{RUN}", mapping={"status": "failed", "artifacts": artifacts})

    listed, as_json, shown = await asyncio.gather(
        shell.fullsend("artifacts", "ls", RUN),
        shell.fullsend("artifacts", "ls", RUN, "--json"),
        shell.fullsend("show", RUN),
    )

    assert "is not a SHA-256" in row_of(listed, "bad")[-1]
    assert row_of(listed, "good")[1] == "7 bytes"
    assert json.loads(as_json.out)[1] == {"name": "good", **good, "stored": False}
    assert "is not a SHA-256" in shown.out
    assert "base64" not in shown.out


async def test_ls_shows_the_artifacts_of_a_running_run(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await neighbour.redis.hset(f"experiment_runs:{RUN}", "status", "running")
    one = json.dumps(Keeper(blobs).keep("early.txt", NOTE).to_json())
    await neighbour.redis.hset(f"fullsend:executor:artifacts:{RUN}", "early.txt", one)

    listed = await shell.fullsend("artifacts", "ls", RUN)
    fetched = await shell.fullsend("artifacts", "get", RUN, "early.txt")

    assert row_of(listed, "early.txt")[1] == "7 bytes"
    assert fetched.out == "a note\n"


# -- get ------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", NOTE, bytes(range(256)) * 20_000])
async def test_get_writes_exactly_the_stored_bytes(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, content: bytes
) -> None:
    artifact = Keeper(blobs).keep("a.bin", content)
    run_id = await write_record(neighbour, artifact)

    piped, written, by_reference = await asyncio.gather(
        shell.raw("artifacts", "get", run_id, "a.bin"),
        shell.fullsend("artifacts", "get", run_id, "a.bin", "-o", "."),
        shell.raw("artifacts", "get", str(artifact.reference), "-o", "-"),
    )

    assert piped == by_reference == (0, content, b"")
    assert written.code == 0
    assert (shell.directory / "a.bin").read_bytes() == content


async def test_get_replaces_a_file_only_with_force(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    run_id = await write_record(neighbour, Keeper(blobs).keep("a", NOTE))
    there = shell.directory / "mine"
    there.write_text("mine")

    refused = await shell.fullsend("artifacts", "get", run_id, "a", "-o", "mine")
    kept = there.read_text()
    forced = await shell.fullsend("artifacts", "get", run_id, "a", "-o", "mine", "--force")

    assert "exists; use --force to replace it" in refused.error
    assert kept == "mine"
    assert forced.code == 0
    assert there.read_bytes() == NOTE


async def test_get_never_replaces_a_device(shell: Shell, neighbour: Neighbour, blobs: LocalBlobs) -> None:
    run_id = await write_record(neighbour, Keeper(blobs).keep("a", NOTE))
    pipe = shell.directory / "pipe"
    os.mkfifo(pipe)

    done = await shell.fullsend("artifacts", "get", run_id, "a", "-o", "pipe", "--force")

    assert "is not a regular file" in done.error
    assert pipe.is_fifo()


def on_terminal(shell: Shell, *arguments: str) -> tuple[int, str]:
    """The exit code and the output of a command on a terminal."""
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


async def test_on_a_terminal_get_names_the_file_after_the_last_part_of_the_name(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    run_id = await write_record(neighbour, Keeper(blobs).keep("plots/a.png", NOTE))

    code, shown = await asyncio.to_thread(on_terminal, shell, "artifacts", "get", run_id, "plots/a.png")

    assert code == 0
    assert sha256_of(NOTE) in shown
    assert "a note" not in shown
    assert {path.name: path.read_bytes() for path in shell.directory.iterdir()} == {"a.png": NOTE}


@pytest.mark.parametrize("name", ["../../a.png", "/etc/a.png", "..\\a.png", "a.png"])
async def test_no_artifact_name_leads_out_of_the_directory(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, name: str
) -> None:
    run_id = await write_record(neighbour, Keeper(blobs).keep(name, NOTE))

    done = await shell.fullsend("artifacts", "get", run_id, name, "-o", ".")

    assert done.code == 0
    assert [path.name for path in shell.directory.iterdir()] == ["a.png"]


@pytest.mark.parametrize("name", ["..", "a/..", "a/", ".env", "x/.bashrc"])
async def test_get_refuses_names_that_are_not_usable_as_file_names(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, name: str
) -> None:
    run_id = await write_record(neighbour, Keeper(blobs).keep(name, NOTE))

    done = await shell.fullsend("artifacts", "get", run_id, name, "-o", ".")

    assert "choose one with -o" in done.error
    assert list(shell.directory.iterdir()) == []


async def test_get_lists_the_artifacts_if_the_name_is_unknown_or_missing(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    run_id = await write_record(
        neighbour, Keeper(blobs).keep("a.txt", NOTE), Keeper(blobs).keep("b.txt", b"")
    )

    other, none, bare, no_blob = await asyncio.gather(
        shell.fullsend("artifacts", "get", run_id, "c.txt"),
        shell.fullsend("artifacts", "get", "exp:2-0", "a.txt"),
        shell.fullsend("artifacts", "get", run_id),
        shell.fullsend("artifacts", "get", f"cas://{sha256_of(LARGE)}"),
    )

    assert "has no artifact 'c.txt'; it has 'a.txt', 'b.txt'" in other.error
    assert "there is no run 'exp:2-0'" in none.error
    assert "it has 'a.txt', 'b.txt'" in bare.error
    assert blobs.place(sha256_of(LARGE)) in no_blob.error
    assert [done.code for done in (other, none, bare, no_blob)] == [1, 1, 1, 1]


@pytest.mark.parametrize("instead", [b"y" * 200_000, b"x" * 199_999, None])
async def test_a_corrupt_or_missing_artifact_is_an_error_and_leaves_no_file(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, instead: bytes | None
) -> None:
    run_id = await write_record(neighbour, Keeper(blobs).keep("a.bin", LARGE))
    path = damage(blobs, LARGE, instead)

    done = await shell.fullsend("artifacts", "get", run_id, "a.bin", "-o", "a.bin")

    assert done.code == 1
    assert f"{run_id}: {path}" in done.error
    assert list(shell.directory.iterdir()) == []


# -- show -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["result", "partial_results", "traceback"])
async def test_show_loads_stored_values(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, field: str
) -> None:
    await write_record(neighbour, **{field: store_text(blobs, '{"n": 12345}')})

    shown, as_json = await asyncio.gather(shell.fullsend("show", RUN), shell.fullsend("show", RUN, "--json"))

    assert '"n": 12345' in shown.out
    assert "cas://" not in shown.out
    assert json.loads(as_json.out)[field] == "cas://" + sha256_of(b'{"n": 12345}')


async def test_show_gives_the_command_that_fetches_a_large_value(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    reference = store_text(blobs, json.dumps("z" * 1_000_000))
    await write_record(neighbour, result=reference)

    shown = await shell.fullsend("show", RUN)
    [command] = [line for line in shown.lines if "artifacts get" in line]
    fetched = await shell.fullsend(*shlex.split(command)[1:])

    assert "is not shown: it is too large (1.0 MB)" in shown.out
    assert len(shown.out) < 2_000
    assert fetched.code == 0
    assert json.loads((shell.directory / "result.json").read_text()) == "z" * 1_000_000


async def test_show_says_why_a_result_cant_be_loaded(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, tmp_path: Path
) -> None:
    reference = store_text(blobs, "[1]")
    await write_record(neighbour, result=reference)
    path = damage(blobs, b"[1]", None)

    shown = await shell.fullsend("show", RUN)
    (tmp_path / "file").write_text("in the way")
    elsewhere = await shell.with_variables(ARTIFACTS=str(tmp_path / "file")).fullsend("show", RUN)

    assert shown.code == elsewhere.code == 0
    assert reference in shown.out
    assert f"is not shown: {path}: there is no such blob" in shown.out
    assert f"is not shown: {tmp_path / 'file'}" in elsewhere.out
    assert "can't be read: Not a directory" in elsewhere.out


async def test_a_result_that_looks_like_a_reference_is_shown_as_text(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await write_record(
        neighbour, result=json.dumps(store_text(blobs, "not this")), cached="true", cached_from="exp:1-0"
    )

    shown = await shell.fullsend("show", RUN)

    assert f"cas://{sha256_of(b'not this')}" in shown.out
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
    run_id = await write_record(neighbour, Keeper(blobs).keep("large", large))
    measured = (
        "import resource, sys; from services.cli.main import main;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024; before = peak();"
        "code = main(sys.argv[1:]); print(peak() - before, file=sys.stderr); sys.exit(code)"
    )

    done = await shell.python("-c", measured, "artifacts", "get", run_id, "large", "-o", "copy")

    assert done.code == 0, done
    assert (shell.directory / "copy").stat().st_size == size_bytes
    assert int(done.err.splitlines()[-1]) < size_bytes / 2
