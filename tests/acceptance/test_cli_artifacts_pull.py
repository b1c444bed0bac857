"""`fullsend artifacts pull`."""

import json
from pathlib import Path

from services.executor.artifacts import open_blobs
from tests.acceptance.commands import Shell
from tests.s3 import s3_endpoint, s3_url

__all__ = ["s3_endpoint", "s3_url"]

MAKER = """
from shared import toolkit

def maker(n):
    toolkit.artifact("plots/large.bin", bytes([n]) * 200_000)
    toolkit.artifact("same.bin", b"s" * 100_000)
    toolkit.artifact("../note.txt", f"note {n}".encode())
    return {"letters": "y" * 100_000}
"""


async def test_artifacts_of_a_plan_are_brought_once_verified_and_completed_later(
    tmp_path: Path, s3_url: str
) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "maker.py").write_text(MAKER)
    cases = [{"parameters": {"n": n}} for n in range(3)]
    (tmp_path / "plan.json").write_text(json.dumps({"workflow_id": "w", "tool": "maker", "cases": cases}))
    shell = Shell(tmp_path, {})
    await shell.fullsend("plan", "run", "plan.json", "--directory", "p")
    distant = open_blobs(s3_url)
    for blob in (tmp_path / "p" / "artifacts" / "sha256").rglob("*"):
        if blob.is_file():
            distant.put(blob)
    (tmp_path / "p" / "artifacts").rename(tmp_path / "away")

    missing = await shell.fullsend("artifacts", "pull", "p")
    first = await shell.fullsend("artifacts", "pull", "p", "--store", s3_url, "--json")
    large = tmp_path / "p" / "artifacts" / "cases" / "2" / "plots" / "large.bin"
    contents = [large.with_name("large.bin").read_bytes(), (large.parents[1] / "result").read_bytes()]
    large.chmod(0o600)
    large.write_bytes(b"damaged")
    (large.parents[1] / "same.bin").unlink()
    again = await shell.fullsend("artifacts", "pull", "p", "--store", s3_url)
    own = await shell.fullsend("artifacts", "pull", "p", "--output", "copy", "--json")

    # Five large contents: one for each case, one that all cases share, and what they returned.
    assert (missing.code, first.code, again.code, own.code) == (1, 0, 0, 0), first
    assert missing.err.splitlines()[-1] == "error: 5 artifacts could not be brought"
    summary = json.loads(first.out)
    assert (summary["fetched"], summary["there"], summary["problems"]) == (5, 3, {})
    assert contents == [b"\x02" * 200_000, b'{"letters":"%s"}' % (b"y" * 100_000)]
    assert again.lines == [f"{tmp_path}/p/artifacts: 8 artifacts, 800.0 kB, 7 were there"]
    assert large.read_bytes() == b"\x02" * 200_000
    assert (json.loads(own.out)["fetched"], (tmp_path / "note.txt").exists()) == (8, False)
    notes = sorted(one.read_text() for one in (tmp_path / "copy" / "cases").rglob("*note*"))
    assert notes == ["note 0", "note 1", "note 2"]
    assert (tmp_path / "copy" / "cases" / "0" / "same.bin").read_bytes() == b"s" * 100_000
