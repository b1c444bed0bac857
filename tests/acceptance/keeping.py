"""A store of artifacts and the records that refer to it, sound and spoilt."""

import hashlib
import json
import os
import time
from pathlib import Path

from services.executor.artifacts import Artifact, LocalBlobs
from tests.conftest import Neighbour

RUN = "exp:1700000000000-0"
LARGE, NOTE = b"x" * 200_000, b"a note\n"


async def recorded(neighbour: Neighbour, *artifacts: Artifact, run_id: str = RUN, **fields: str) -> str:
    """A run's record with these artifacts."""
    described = {one.name: one.to_json() for one in artifacts}
    members = {"status": "completed", "artifacts": json.dumps(described), **fields}
    await neighbour.redis.hset(f"experiment_runs:{run_id}", mapping=members)
    return run_id


def address(content: bytes) -> str:
    """The SHA-256 that it is stored under."""
    return hashlib.sha256(content).hexdigest()


def spoil(blobs: LocalBlobs, content: bytes, instead: bytes | None) -> Path:
    """Have something else at a blob's place, or nothing."""
    path = Path(blobs.place(address(content)))
    path.chmod(0o644)
    path.write_bytes(instead) if instead is not None else path.unlink()
    return path


def age(blobs: LocalBlobs, days: float = 2) -> None:
    """Have all that is in the store be that old."""
    moment = time.time() - days * 86_400
    for one in blobs.all():
        os.utime(blobs.place(one.sha256), (moment, moment))


def addresses(blobs: LocalBlobs) -> set[str]:
    """Of all that is in the store."""
    return {one.sha256 for one in blobs.all()}


def package(blobs: LocalBlobs, files: dict[str, bytes]) -> str:
    """Keep a tool that is a package; its digest."""
    lines = "".join(f"{blobs.put(content).sha256}  {path}\n" for path, content in sorted(files.items()))
    return blobs.put(lines.encode()).sha256


def cas(blobs: LocalBlobs, text: str) -> str:
    """Keep a text; its reference."""
    return f"cas://{blobs.put(text.encode()).sha256}"
