"""`fullsend artifacts verify` and `gc`: whether all is sound, and what may go."""

import asyncio
import json
from pathlib import Path

import pytest

from services.executor.artifacts import Artifact, Keeper, LocalBlobs
from tests.acceptance.inside import Inside
from tests.acceptance.keeping import LARGE, NOTE, RUN, address, addresses, age, cas, package, recorded, spoil
from tests.conftest import Neighbour


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


# -- verify ---------------------------------------------------------------------------


async def test_verify_names_each_problem(here: Inside, neighbour: Neighbour, blobs: LocalBlobs) -> None:
    keeper, large = Keeper(blobs, inline_max_bytes=10), bytes(100)
    gone, corrupt, good = (keeper.keep(name, name.encode() + large) for name in ("gone", "corrupt", "good"))
    grown = Artifact("grown", good.reference, 5, good.sha256, good.media_type)
    lost = f"cas://{address(b'lost')}"
    run_id = await recorded(neighbour, gone, corrupt, good, grown, result=lost, params=json.dumps([lost]))
    spoil(blobs, b"gone" + large, None)
    spoil(blobs, b"corrupt" + large, b"?")

    done, as_json = await asyncio.gather(
        here.fullsend("artifacts", "verify", run_id),
        here.fullsend("artifacts", "verify", run_id, "--json"),
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


async def test_verify_all_reads_every_record_and_what_no_record_names(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await recorded(neighbour, Keeper(blobs).keep("a", LARGE))
    await recorded(neighbour, Keeper(blobs).keep("b", NOTE), run_id="exp:2-0")
    blobs.put(b"orphan")

    sound = await here.fullsend("artifacts", "verify", "--all")
    path = spoil(blobs, b"orphan", b"?")
    broken = await here.fullsend("artifacts", "verify", "--all")

    assert sound.code == 0
    assert sound.out == "verified 2 runs, 2 blobs of 200.0 kB and 1 inline artifact: no problems\n"
    assert broken.code == 1
    assert broken.lines[0].startswith(f"corrupt: unreferenced: {path}")


async def test_verify_reads_the_files_of_a_package(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    digest = package(blobs, {"__init__.py": b"import help", "help.py": b"pass"})
    await recorded(neighbour, tool_digest=digest, run_digest="0" * 64)

    sound = await here.fullsend("artifacts", "verify", RUN)
    spoil(blobs, b"pass", None)
    broken = await here.fullsend("artifacts", "verify", RUN)

    assert sound.out.startswith("verified 1 run, 3 blobs")
    assert broken.lines[0].startswith(f"missing: {RUN} the tool's code, help.py: ")


async def test_an_inline_artifact_that_is_not_what_it_was_is_a_problem(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    artifact = Keeper(blobs).keep("a", NOTE)
    other = Keeper(blobs).keep("a", b"another").reference
    await recorded(neighbour, Artifact("a", other, artifact.size_bytes, artifact.sha256, artifact.media_type))

    done = await here.fullsend("artifacts", "verify", RUN)

    assert done.code == 1
    assert done.lines[0].startswith(f"corrupt: {RUN} artifact 'a': ")


@pytest.mark.parametrize("arguments", [(), (RUN, "--all")])
async def test_verify_wants_to_know_what(here: Inside, arguments: tuple[str, ...]) -> None:
    assert "--all" in (await here.fullsend("artifacts", "verify", *arguments)).error


# -- gc -------------------------------------------------------------------------------


async def test_gc_keeps_what_anything_refers_to_and_deletes_the_rest(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    keeper, redis = Keeper(blobs, inline_max_bytes=0), neighbour.redis
    of_record = keeper.keep("a", b"artifact")
    await recorded(
        neighbour,
        of_record,
        **{name: cas(blobs, name) for name in ("result", "partial_results", "traceback")},
    )
    under_way = json.dumps(keeper.keep("b", b"under way").to_json())
    await redis.hset("fullsend:executor:artifacts:exp:9-0", "b", under_way)
    await redis.set("fullsend:executor:cached:" + "0" * 64, json.dumps({"result": cas(blobs, "cached")}))
    code = package(blobs, {"__init__.py": b"import help", "help.py": b"pass"})
    await redis.hset("tools:packaged", "digest", code)
    pinned = blobs.put(b"def pinned(): ...").sha256
    await neighbour.publish("exp_2", f"pinned@sha256:{pinned}")
    kept = addresses(blobs)
    blobs.put(b"orphan")
    age(blobs)
    blobs.put(b"young orphan")

    tried = await here.fullsend("artifacts", "gc", "--dry-run")
    still_there = addresses(blobs)
    done = await here.fullsend("artifacts", "gc", "--json")

    assert tried.lines[0] == f"cas://{address(b'orphan')}  6 bytes  stored 2 days ago"
    summary = "1 blob would be deleted, 6 bytes would be freed; 10 referenced, 1 younger than 1d"
    assert tried.lines[1:] == [f"{blobs.base}: {summary}"]
    assert still_there == {*kept, address(b"orphan"), address(b"young orphan")}
    told = json.loads(done.out)
    assert [one["reference"] for one in told["deleted"]] == [f"cas://{address(b'orphan')}"]
    assert (told["freed_bytes"], told["kept"], told["young"]) == (6, 10, 1)
    assert addresses(blobs) == {*kept, address(b"young orphan")}


async def test_how_young_is_too_young_can_be_chosen(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await recorded(neighbour, result=cas(blobs, "kept"))
    blobs.put(b"an hour old")
    age(blobs, 1 / 24)

    later = await here.fullsend("artifacts", "gc", "--older-than", "2h")
    now = await here.fullsend("artifacts", "gc", "--older-than", "30m")
    wrong = await here.fullsend("artifacts", "gc", "--older-than", "soon")

    assert "0 blobs deleted" in later.out
    assert "1 blob deleted" in now.out
    assert addresses(blobs) == {address(b"kept")}
    assert "'soon' is not an age" in wrong.error


@pytest.mark.parametrize("trouble", ["unreachable", "forbidden"])
async def test_nothing_is_deleted_when_not_all_of_redis_can_be_read(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, trouble: str
) -> None:
    await recorded(neighbour, result=cas(blobs, "kept"))
    blobs.put(b"orphan")
    age(blobs)
    if trouble == "unreachable":
        here = here.with_variables(REDIS_URL="redis://127.0.0.1:1/0")
    else:
        await neighbour.redis.rpush("fullsend:executor:blocked:limit", "an order")
        await neighbour.redis.execute_command("ACL", "SETUSER", "default", "-lrange")

    done = await here.fullsend("artifacts", "gc", "--force")

    assert done.code == 1
    assert "Redis" in done.error
    assert len(addresses(blobs)) == 2


async def test_a_store_that_this_redis_knows_nothing_of_is_left_alone(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    await recorded(neighbour, result=f"cas://{address(b'elsewhere')}")
    blobs.put(b"of another Redis")
    age(blobs)

    done = await here.fullsend("artifacts", "gc")

    assert "the store may belong to another Redis" in done.error
    assert len(addresses(blobs)) == 1


@pytest.mark.parametrize("count", [0, 1])
async def test_a_store_with_nothing_old_in_it_is_nothing_to_complain_about(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs, count: int
) -> None:
    for number in range(count):
        blobs.put(bytes([number]))

    done = await here.fullsend("artifacts", "gc")

    assert done.code == 0
    assert f"0 blobs deleted, 0 bytes freed; 0 referenced, {count} younger than 1d" in done.out


async def test_a_corrupt_manifest_does_not_stop_a_collection(
    here: Inside, neighbour: Neighbour, blobs: LocalBlobs
) -> None:
    files = {"__init__.py": b"import help", "help.py": b"pass"}
    digest = package(blobs, files)
    await neighbour.redis.hset("tools:packaged", "digest", digest)
    path = Path(blobs.place(digest))
    path.chmod(0o644)
    path.write_bytes(b"?")
    age(blobs)

    done = await here.fullsend("artifacts", "gc")

    assert done.code == 0
    assert addresses(blobs) == {digest}


async def test_the_help_says_that_a_store_belongs_to_one_redis(here: Inside) -> None:
    done = await here.fullsend("artifacts", "gc", "--help")

    assert "A store belongs to ONE Redis" in " ".join(done.out.split())
