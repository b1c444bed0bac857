#!/usr/bin/env bash
# modal 1.6.4: a volume gets mixed-up content if an open file of more than 8 MiB is uploaded.  Seen 2026-12-01.
#
# `Volume.batch_upload().put_file(open(path, "rb"), ...)` is documented for "a local file or file-like object".
# Expected: the same content as with `put_file(path, ...)`.
# Seen: the client reads the blocks of 8 MiB in several threads, each through a copy of the file's descriptor
# (os.dup), and copies share one position; so blocks have the bytes of other places, silently.
# With one CPU there is one thread, and all is well.
#
# Exits with 0 if this is still so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check 'modal==1.6.4'
"$folder/venv/bin/python" - "$folder/file" <<'PY'
import asyncio
import os
import sys
from pathlib import Path, PurePosixPath

import modal
from modal._utils.blob_utils import FileUploadSpec2  # what `put_file` makes of its argument

PLACE, SIZE, TRIES = PurePosixPath("/file"), 64 << 20, 200
sys.setswitchinterval(1e-6)  # threads change places more often than usual, so that few tries are needed
path = Path(sys.argv[1])
path.write_bytes(os.urandom(SIZE))


async def digests() -> tuple[list[bytes], list[bytes]]:
    """The SHA-256 of each block, of the path and of the open file."""
    with path.open("rb") as file:
        by_path = await FileUploadSpec2.from_path(path, PLACE, asyncio.Semaphore(8), 0o644)
        by_file = await FileUploadSpec2.from_fileobj(file, PLACE, asyncio.Semaphore(8), 0o644)
    return [one.contents_sha256 for one in by_path.blocks], [one.contents_sha256 for one in by_file.blocks]


for number in range(1, TRIES + 1):
    expected, seen = asyncio.run(digests())
    wrong = sum(one != other for one, other in zip(expected, seen, strict=True))
    if wrong:
        print(f"modal {modal.__version__}: {wrong} of {len(expected)} blocks have other content (try {number})")
        sys.exit(0)
print(f"modal {modal.__version__}: all blocks were right, {TRIES} times")
sys.exit(1)
PY
