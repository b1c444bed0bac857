"""Reads content in chunks, from bytes, regular files and streams."""

import hashlib
import io
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from errno import ELOOP, ENXIO
from pathlib import Path
from typing import BinaryIO

from services.executor.artifacts.blobs import CHUNK_BYTES, Blob, Source
from shared.errors import ArtifactError, ArtifactNotFoundError


def open_source(source: Source) -> AbstractContextManager[BinaryIO]:
    """Return the content of `source` as a file; a stream of the caller is not closed.

    Raises:
        ArtifactNotFoundError: there is no file at that path.
        ArtifactError: the path is not a regular file, or can't be read.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not isinstance(source, Path):
        return nullcontext(source)
    try:
        return open_regular(source)
    except FileNotFoundError as exc:
        raise ArtifactNotFoundError(f"{source}: there is no such file") from exc
    except OSError as exc:
        raise ArtifactError(f"{source} can't be read: {exc.strerror}") from exc


def open_regular(path: Path) -> BinaryIO:
    """Open the regular file at `path`, unbuffered.  It follows no link, and waits for no FIFO.

    Raises:
        ArtifactError: it is not a regular file.
        OSError: it can't be opened.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (ELOOP, ENXIO):
            raise _irregular(path) from exc
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return os.fdopen(descriptor, "rb", buffering=0)


def _irregular(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} is not a regular file; links, directories, pipes and devices are not read")


def chunks_of(file: BinaryIO, place: str) -> Iterator[bytes]:
    """Yield the rest of `file` in chunks; raise `ArtifactError`, with `place`, if it can't be read."""
    while True:
        try:
            chunk = file.read(CHUNK_BYTES)
        except OSError as exc:
            raise ArtifactError(f"{place} can't be read to its end: {exc.strerror or exc}") from exc
        if not isinstance(chunk, bytes):
            raise ArtifactError(
                f"{place} gave {type(chunk).__name__}, not bytes; open it in blocking binary mode"
            )
        if not chunk:
            return
        yield chunk


def read_all(file: BinaryIO, place: str) -> bytes:
    """Return the rest of `file`; raise `ArtifactError`, with `place`, if it can't be read."""
    try:
        content = file.read()
    except OSError as exc:
        raise ArtifactError(f"{place} can't be read to its end: {exc.strerror or exc}") from exc
    return content


def named(source: Source) -> str:
    """Return the name of the source for messages."""
    match source:
        case bytes():
            return "the content"
        case Path():
            return str(source)
        case _:
            return f"the stream {getattr(source, 'name', '')}".rstrip()


def size_of(source: Source) -> int | None:
    """Return the number of bytes in the source, for messages; None if it is unknown."""
    match source:
        case bytes():
            return len(source)
        case Path() if source.is_file():
            return source.stat().st_size
        case _:
            return None


def digest_of(chunks: Iterable[bytes], write: Callable[[bytes], object] = len) -> Blob:
    """Pass each chunk to `write`; return the address and the size of all chunks together."""
    digest, size_bytes = hashlib.sha256(), 0
    for chunk in chunks:
        digest.update(chunk)
        size_bytes += len(chunk)
        write(chunk)
    return Blob(digest.hexdigest(), size_bytes)


def write_all(file: BinaryIO, chunks: Iterable[bytes]) -> Blob:
    """Write every chunk to an unbuffered file; return the address and the size of what was written."""

    def write(chunk: bytes) -> None:
        left = memoryview(chunk)
        while left:
            left = left[file.write(left) :]

    return digest_of(chunks, write)


@contextmanager
def rewindable(file: BinaryIO, place: str) -> Iterator[BinaryIO]:
    """Yield the content in a file that can be read twice; a pipe is copied to a temporary file."""
    if file.seekable():
        yield file
        return
    try:
        spool = _spooled(file, place)
    except OSError as exc:
        raise ArtifactError(f"{place} can't be spooled in {tempfile.gettempdir()}: {exc.strerror}") from exc
    with spool:
        yield spool


def _spooled(file: BinaryIO, place: str) -> BinaryIO:
    with ExitStack() as undo:
        spool = undo.enter_context(tempfile.TemporaryFile(buffering=0))
        write_all(spool, chunks_of(file, place))
        spool.seek(0)
        undo.pop_all()
    return spool
