"""`fullsend artifacts verify` and `fullsend artifacts gc`."""

import asyncio
import json
from pathlib import Path

import pytest

from services.executor.artifacts import Artifact, Keeper, LocalBlobs
from tests.acceptance.artifact_store import (
    LARGE,
    NOTE,
    RUN,
    damage,
    digests_in,
    make_old,
    sha256_of,
    store_package,
    store_text,
    write_record,
)
from tests.acceptance.commands import Shell
from tests.conftest import Neighbour


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


# -- verify ---------------------------------------------------------------------------


async def test_verify_names_each_problem(shell: Shell, neighbour: Neighbour, blobs: LocalBlobs) -> None:
    keeper, large = Keeper(blobs, inline_max_bytes=10), bytes(100)
    gone, corrupt, good = (keeper.keep(name, name.encode() + large) for name in ("gone", "corrupt", "good"))
    grown = Artifact("grown", good.reference, 5, good.sha256, good.media_type)
    lost = f"cas://{sha256_of(b'lost')}"
    run_id = await write_record(neighbour, gone, corrupt, good, grown, result=lost, params=json.dumps([lost]))
    damage(blobs, b"gone" + large, None)
    damage(blobs, b"corrupt" + large, b"?")

    done, as_json = await asyncio.gather(
        shell.fullsend("artifacts", "verify", run_id),
        shell.fullsend("artifacts", "verify", run_id, "--json"),
    )

    assert done.code == as_json.code == 1
    problems = {one["what"]: one for one in json.loads(as_json.out)["problems"]}
    assert {what: one["problem"] for what, one in problems.items()} == {
        "artifact 'gone'": "missing",
        "artifact 'corrupt'": "corrupt",
        "artifact 'grown'": "wrong size",
        "a parameter": "missing",
    }
    assert problems["a parameter"]["others"] == 1
    assert blobs.place(corrupt.sha256) in problems["artifact 'corrupt'"]["text"]
    assert f"missing: {run_id} artifact 'gone': {blobs.place(gone.sha256)}" in done.out
    assert len(done.lines) == 5
    assert done.lines[-1].endswith("4 problems")


async def test_verify_all_reads_every_record_and_every_blob(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await write_record(neighbour, Keeper(blobs).keep("a", LARGE))
    await write_record(neighbour, Keeper(blobs).keep("b", NOTE), run_id="exp:2-0")
    blobs.put(b"orphan")

    sound = await shell.fullsend("artifacts", "verify", "--all")
    path = damage(blobs, b"orphan", b"?")
    broken = await shell.fullsend("artifacts", "verify", "--all")

    assert sound.code == 0
    assert sound.out == "verified 2 runs, 2 blobs of 200.0 kB and 1 inline artifact: no problems\n"
    assert broken.code == 1
    assert broken.lines[0].startswith(f"corrupt: unreferenced: {path}")


async def test_verify_reads_the_files_of_a_package(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    digest = store_package(blobs, {"__init__.py": b"import help", "help.py": b"pass"})
    await write_record(neighbour, tool_digest=digest, run_digest="0" * 64)

    sound = await shell.fullsend("artifacts", "verify", RUN)
    damage(blobs, b"pass", None)
    broken = await shell.fullsend("artifacts", "verify", RUN)

    assert sound.out.startswith("verified 1 run, 3 blobs")
    assert broken.lines[0].startswith(f"missing: {RUN} the tool's code, help.py: ")


async def test_a_corrupt_inline_artifact_is_a_problem(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    artifact = Keeper(blobs).keep("a", NOTE)
    other = Keeper(blobs).keep("a", b"another").reference
    await write_record(
        neighbour, Artifact("a", other, artifact.size_bytes, artifact.sha256, artifact.media_type)
    )

    done = await shell.fullsend("artifacts", "verify", RUN)

    assert done.code == 1
    assert done.lines[0].startswith(f"corrupt: {RUN} artifact 'a': ")


@pytest.mark.parametrize("arguments", [(), (RUN, "--all")])
async def test_verify_needs_either_runs_or_all(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert "--all" in (await shell.fullsend("artifacts", "verify", *arguments)).error


# -- gc -------------------------------------------------------------------------------


async def test_gc_keeps_referenced_blobs_and_deletes_the_others(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    keeper, redis = Keeper(blobs, inline_max_bytes=0), neighbour.redis
    of_record = keeper.keep("a", b"artifact")
    await write_record(
        neighbour,
        of_record,
        **{name: store_text(blobs, name) for name in ("result", "partial_results", "traceback")},
    )
    under_way = json.dumps(keeper.keep("b", b"under way").to_json())
    await redis.hset("fullsend:executor:artifacts:exp:9-0", "b", under_way)
    await redis.set(
        "fullsend:executor:cached:" + "0" * 64, json.dumps({"result": store_text(blobs, "cached")})
    )
    code = store_package(blobs, {"__init__.py": b"import help", "help.py": b"pass"})
    await redis.hset("tools:packaged", "digest", code)
    pinned = blobs.put(b"def pinned(): ...").sha256
    await neighbour.publish("exp_2", f"pinned@sha256:{pinned}")
    kept = digests_in(blobs)
    blobs.put(b"orphan")
    make_old(blobs)
    blobs.put(b"young orphan")

    tried = await shell.fullsend("artifacts", "gc", "--dry-run")
    still_there = digests_in(blobs)
    done = await shell.fullsend("artifacts", "gc", "--json")

    assert tried.lines[0] == f"cas://{sha256_of(b'orphan')}  6 bytes  stored 2 days ago"
    summary = "1 blob would be deleted, 6 bytes would be freed; 10 referenced, 1 younger than 1d"
    assert tried.lines[1:] == [f"{blobs.base}: {summary}"]
    assert still_there == {*kept, sha256_of(b"orphan"), sha256_of(b"young orphan")}
    told = json.loads(done.out)
    assert [one["reference"] for one in told["deleted"]] == [f"cas://{sha256_of(b'orphan')}"]
    assert (told["freed_bytes"], told["kept"], told["young"]) == (6, 10, 1)
    assert digests_in(blobs) == {*kept, sha256_of(b"young orphan")}


async def test_the_age_of_blobs_to_delete_can_be_chosen(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await write_record(neighbour, result=store_text(blobs, "kept"))
    blobs.put(b"an hour old")
    make_old(blobs, 1 / 24)

    later = await shell.fullsend("artifacts", "gc", "--older-than", "2h")
    now = await shell.fullsend("artifacts", "gc", "--older-than", "30m")
    wrong = await shell.fullsend("artifacts", "gc", "--older-than", "soon")

    assert "0 blobs deleted" in later.out
    assert "1 blob deleted" in now.out
    assert digests_in(blobs) == {sha256_of(b"kept")}
    assert "'soon' is not an age" in wrong.error


@pytest.mark.parametrize("trouble", ["unreachable", "forbidden"])
async def test_nothing_is_deleted_if_a_part_of_redis_cant_be_read(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, trouble: str
) -> None:
    await write_record(neighbour, result=store_text(blobs, "kept"))
    blobs.put(b"orphan")
    make_old(blobs)
    if trouble == "unreachable":
        shell = shell.with_variables(REDIS_URL="redis://127.0.0.1:1/0")
    else:
        await neighbour.redis.rpush("fullsend:executor:blocked:limit", "an order")
        await neighbour.redis.execute_command("ACL", "SETUSER", "default", "-lrange")

    done = await shell.fullsend("artifacts", "gc", "--force")

    assert done.code == 1
    assert "Redis" in done.error
    assert len(digests_in(blobs)) == 2


async def test_gc_refuses_a_store_that_nothing_in_redis_refers_to(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await write_record(neighbour, result=f"cas://{sha256_of(b'elsewhere')}")
    blobs.put(b"of another Redis")
    make_old(blobs)

    done = await shell.fullsend("artifacts", "gc")

    assert "the store may belong to another Redis" in done.error
    assert len(digests_in(blobs)) == 1


@pytest.mark.parametrize("count", [0, 1])
async def test_gc_accepts_a_store_without_old_blobs(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs, count: int
) -> None:
    for number in range(count):
        blobs.put(bytes([number]))

    done = await shell.fullsend("artifacts", "gc")

    assert done.code == 0
    assert f"0 blobs deleted, 0 bytes freed; 0 referenced, {count} younger than 1d" in done.out


async def test_a_corrupt_package_manifest_does_not_stop_gc(
    shell: Shell, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    files = {"__init__.py": b"import help", "help.py": b"pass"}
    digest = store_package(blobs, files)
    await neighbour.redis.hset("tools:packaged", "digest", digest)
    path = Path(blobs.place(digest))
    path.chmod(0o644)
    path.write_bytes(b"?")
    make_old(blobs)

    done = await shell.fullsend("artifacts", "gc")

    assert done.code == 0
    assert digests_in(blobs) == {digest}


async def test_the_help_says_that_a_store_belongs_to_one_redis(shell: Shell) -> None:
    done = await shell.fullsend("artifacts", "gc", "--help")

    assert "A store belongs to ONE Redis" in " ".join(done.out.split())
