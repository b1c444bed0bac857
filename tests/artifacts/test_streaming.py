"""Large content is streamed through a store."""

from pathlib import Path

import pytest

from tests.artifacts.conftest import url_of
from tests.artifacts.processes import finish, start

MIB = 1 << 20
LARGE_BYTES = 256 * MIB
GROWTH_BYTES = 64 * MIB

PUTS_AND_GETS = """
    import sys
    from pathlib import Path
    from services.executor.artifacts import Keeper, open_blobs
    from tests.artifacts.processes import peak_bytes

    keeper = Keeper(open_blobs(sys.argv[1]))
    source, copy = Path(sys.argv[2]), Path(sys.argv[3])
    small = keeper.blobs.put(b"what every process needs once")
    keeper.blobs.verify(small.sha256)
    before_bytes = peak_bytes()
    artifact = keeper.keep("large", source)
    keeper.copy_to(artifact, copy)
    print(peak_bytes() - before_bytes, artifact.size_bytes, copy.stat().st_size)
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_memory_stays_flat_when_large_content_is_kept_and_copied(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.write(b"not only zeros")
        file.truncate(LARGE_BYTES)

    printed = finish(start(PUTS_AND_GETS, url_of(kind, request), source, tmp_path / "copy"))

    growth_bytes, kept_bytes, copied_bytes = map(int, printed.split())
    assert (kept_bytes, copied_bytes) == (LARGE_BYTES, LARGE_BYTES)
    assert growth_bytes < GROWTH_BYTES


PUTS_A_PIPE = """
    import sys
    from services.executor.artifacts import open_blobs
    from tests.artifacts.processes import peak_bytes

    blobs = open_blobs(sys.argv[1])
    blobs.put(b"what every process needs once")
    before_bytes = peak_bytes()
    blob = blobs.put(sys.stdin.buffer)
    print(peak_bytes() - before_bytes, blob.size_bytes)
"""


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_memory_stays_flat_when_a_pipe_is_stored(kind: str, request: pytest.FixtureRequest) -> None:
    size_bytes = 80 * MIB

    printed = finish(start(PUTS_A_PIPE, url_of(kind, request)), "x" * size_bytes)

    growth_bytes, kept_bytes = map(int, printed.split())
    assert kept_bytes == size_bytes
    assert growth_bytes < GROWTH_BYTES
