"""Bundles on disk: written for import by any number of threads and workers at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.executor.artifacts import LocalBlobs
from services.executor.tools.bundles import Bundle, Bundles


def test_many_threads_may_lay_out_the_same_bundle_at_once(tmp_path: Path) -> None:
    bundle = Bundle("tool", {"tool.py": b"def tool(): pass\n", "other.py": b"x = 1\n"})
    with ThreadPoolExecutor(8) as threads:
        for number in range(50):
            kept = Bundles(LocalBlobs(tmp_path / "blobs"), tmp_path / f"bundles-{number}")
            done = [threads.submit(kept.lay_out, bundle) for _ in range(8)]

            assert [one.result() for one in done] == [None] * 8
            assert kept.entry(bundle).read_bytes() == b"def tool(): pass\n"
            assert [path.name for path in (tmp_path / f"bundles-{number}").iterdir()] == [
                f"tool@{bundle.digest}"
            ]


def test_a_damaged_bundle_is_written_again(tmp_path: Path) -> None:
    bundle, kept = (
        Bundle("tool", {"tool.py": b"def tool(): pass\n"}),
        Bundles(LocalBlobs(tmp_path / "blobs"), tmp_path / "b"),
    )
    kept.lay_out(bundle)
    path = kept.entry(bundle)
    path.chmod(0o644)
    path.write_bytes(b"something else")

    kept.lay_out(bundle)

    assert path.read_bytes() == b"def tool(): pass\n"
