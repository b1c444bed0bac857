"""Writes and damages records and blobs for the tests of `fullsend artifacts`."""

import hashlib
import json
import os
import time
from pathlib import Path

from services.executor.artifacts import Artifact, LocalBlobs
from tests.conftest import Neighbour

RUN = "exp:1700000000000-0"
LARGE, NOTE = b"x" * 200_000, b"a note\n"


async def write_record(neighbour: Neighbour, *artifacts: Artifact, run_id: str = RUN, **fields: str) -> str:
    """Write the record of a run with these artifacts; its id."""
    described = {one.name: one.to_json() for one in artifacts}
    members = {"status": "completed", "artifacts": json.dumps(described), **fields}
    await neighbour.redis.hset(f"experiment_runs:{run_id}", mapping=members)
    return run_id


def sha256_of(content: bytes) -> str:
    """The digest under which a content is stored."""
    return hashlib.sha256(content).hexdigest()


def damage(blobs: LocalBlobs, content: bytes, instead: bytes | None) -> Path:
    """Replace the content of a blob, or delete it; its path."""
    path = Path(blobs.place(sha256_of(content)))
    path.chmod(0o644)
    path.write_bytes(instead) if instead is not None else path.unlink()
    return path


def make_old(blobs: LocalBlobs, days: float = 2) -> None:
    """Set the time of all blobs to so many days ago."""
    moment = time.time() - days * 86_400
    for one in blobs.all():
        os.utime(blobs.place(one.sha256), (moment, moment))


def digests_in(blobs: LocalBlobs) -> set[str]:
    """The digests of all blobs."""
    return {one.sha256 for one in blobs.all()}


def store_package(blobs: LocalBlobs, files: dict[str, bytes]) -> str:
    """Store a tool that is a package; its digest."""
    lines = "".join(f"{blobs.put(content).sha256}  {path}\n" for path, content in sorted(files.items()))
    return blobs.put(lines.encode()).sha256


def store_text(blobs: LocalBlobs, text: str) -> str:
    """Store a text; its reference."""
    return f"cas://{blobs.put(text.encode()).sha256}"
