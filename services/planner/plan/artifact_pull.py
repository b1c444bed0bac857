"""Brings the artifacts of a plan's cases to a directory, from wherever their runs have stored them.

    <directory>/sha256/ab/<64 digits>    contents by their SHA-256, each once: a store of artifacts
    <directory>/cases/<index>/<name>     the same contents by case and name
    <directory>/cases/<index>/result     what the tool returned, if that was too large for its record

A content that is there is verified and not brought again, so that a pull that was cut off goes on.
"""

import functools
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from services.executor.artifacts import (
    CasArtifactLoader,
    CasReference,
    InlineReference,
    LocalBlobs,
    loader_for,
    parse_reference,
)
from services.planner.results import is_stored
from services.planner.tasks import TaskResult
from shared.errors import ArtifactCorruptError, ArtifactError, ArtifactNotFoundError

CASES: Final = "cases"
RESULT: Final = "result"
AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class Wanted:
    """A content that cases of a plan refer to.

    Attributes:
        reference: of the content.
        base, storage_type: of the store that has it; the type is None if only the place is known.
        paths: where it is to be, below the directory: one for each artifact with this content.
    """

    reference: str
    base: str
    storage_type: str | None
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pulled:
    """What became of one content: its size, whether it was there before, or why it is missing."""

    wanted: Wanted
    size_bytes: int = 0
    was_there: bool = False
    problem: str | None = None


def wanted_of(results: Sequence[TaskResult], store: str | None = None) -> list[Wanted]:
    """Return all contents that the cases refer to, each once.

    Args:
        results: of the cases.
        store: where the artifacts are now; None for where the runs have stored them.
    """
    paths: dict[tuple[str, str, str | None], list[str]] = {}
    for result in results:
        execution = result.execution
        if execution is None:
            continue
        named = {f"{CASES}/{result.index}/{_safe(name)}": one for name, one in execution.artifacts.items()}
        if is_stored(result):
            named[f"{CASES}/{result.index}/{RESULT}"] = execution.result or ""
        place = (execution.storage_base, execution.storage_type) if store is None else (store, None)
        for path, reference in named.items():
            paths.setdefault((reference, *place), []).append(path)
    return [Wanted(*key, tuple(found)) for key, found in paths.items()]


def pull(
    wanted: Sequence[Wanted], directory: Path, at_once: int, on_pulled: Callable[[Pulled], None]
) -> None:
    """Bring contents to a directory, several at once.

    Args:
        wanted: the contents.
        directory: where to; it is created.
        at_once: how many contents at once.
        on_pulled: is called for each content, in this thread.

    Raises:
        ArtifactError: a store can't be reached, or the directory can't be written.  What has come
            is kept.
    """
    puller = _Puller(directory)
    with ThreadPoolExecutor(at_once, thread_name_prefix="pull") as threads:
        try:
            for done in as_completed([threads.submit(puller.bring, one) for one in wanted]):
                on_pulled(done.result())
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


class _Puller:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._blobs = LocalBlobs(directory)
        self._loader = functools.cache(loader_for)

    def bring(self, one: Wanted) -> Pulled:
        """Bring one content.  Raises `ArtifactError` if its store or the directory can't be used."""
        try:
            match parse_reference(one.reference):
                case CasReference(sha256):
                    return self._stored(one, sha256)
                case InlineReference() as inline:
                    return self._written(one, inline.decode())
                case _:
                    return self._written(one, self._source(one).load_bytes(one.reference))
        except (ArtifactNotFoundError, ArtifactCorruptError) as exc:
            return Pulled(one, problem=str(exc))
        except OSError as exc:
            raise ArtifactError(f"{exc.filename or self._directory}: {exc.strerror or exc}") from exc

    def _source(self, one: Wanted) -> CasArtifactLoader:
        return self._loader(one.base, one.storage_type)

    def _stored(self, one: Wanted, sha256: str) -> Pulled:
        was_there = self._is_intact(sha256)
        if not was_there:
            with self._source(one).open(one.reference) as chunks, _stream(chunks) as stream:
                self._blobs.put(stream, expected_sha256=sha256)
        blob = Path(self._blobs.place(sha256))
        for path in one.paths:
            self._replace(path, functools.partial(_link, blob), lambda there: there.samefile(blob))
        return Pulled(one, blob.stat().st_size, was_there)

    def _is_intact(self, sha256: str) -> bool:
        with suppress(ArtifactNotFoundError, ArtifactCorruptError):
            self._blobs.verify(sha256)
            return True
        return False

    def _written(self, one: Wanted, content: bytes) -> Pulled:
        """Write content that no store has under its digest."""
        written = [
            self._replace(
                path, lambda draft: draft.write_bytes(content), lambda there: there.read_bytes() == content
            )
            for path in one.paths
        ]
        return Pulled(one, len(content), was_there=not any(written))

    def _replace(self, name: str, write: Callable[[Path], object], is_same: Callable[[Path], bool]) -> bool:
        """Have a file in one step; return whether it was not there before."""
        path = self._directory / name
        with suppress(OSError):
            if not path.is_symlink() and is_same(path):
                return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=path.parent) as folder:
            draft = Path(folder, "draft")
            write(draft)
            draft.replace(path)
        return True


def _link(blob: Path, draft: Path) -> None:
    try:
        os.link(blob, draft)
    except OSError:  # a file system without hard links
        shutil.copyfile(blob, draft)


def _safe(name: str) -> str:
    """Return an artifact's name as a path: as it is, or escaped if it would lead elsewhere."""
    parts = name.split("/")
    is_plain = name.isprintable() and not any(part in ("", ".", "..") or "\\" in part for part in parts)
    return name if is_plain else quote(name, safe="").replace(".", "%2E")


class _Chunks(io.RawIOBase):
    """A stream of the content that is yielded in chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill the buffer as far as the next chunk goes; 0 at the end."""
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


def _stream(chunks: Iterator[bytes]) -> io.BufferedReader:
    return io.BufferedReader(_Chunks(chunks), buffer_size=1 << 20)


def problems_in(pulled: Sequence[Pulled]) -> Mapping[str, str]:
    """Return why contents are missing, by the first of their paths."""
    return {one.wanted.paths[0]: one.problem for one in pulled if one.problem is not None}
