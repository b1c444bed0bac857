"""Bundles: the code of a tool, addressed by its content.  It is one file, several files, or a package.

The digest of one file is its SHA-256.  The digest of several files is the SHA-256 of their *manifest*,
which has a line `<sha256>  <relative path>` for each, sorted; it covers contents and paths, but not
times or permissions.  Manifest and files are stored as artifacts, so that the *bundle reference*
`name@sha256:<digest>` finds the code again.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from services.executor.artifacts.blobs import Blobs
from shared.documents import shown
from shared.errors import ArtifactNotFoundError, ToolError, ToolNotFoundError
from shared.messages import TOOL_NAME

MAX_BYTES = 4_000_000
MAX_FILES = 1_000
ENTRY = "__init__.py"
_REFERENCE = re.compile(rf"({TOOL_NAME.pattern})@sha256:([0-9a-f]{{64}})")
_MANIFEST_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_LEFT_OUT = ("__pycache__",)


@dataclass(frozen=True)
class Bundle:
    """The code of a tool.

    Attributes:
        files: contents by path, relative to the package, or to the folder of the file.
    """

    name: str
    files: Mapping[str, bytes]

    @property
    def is_package(self) -> bool:
        """Whether the code is a directory with an `__init__.py`."""
        return ENTRY in self.files

    @property
    def main(self) -> bytes:
        """The content of the file that defines the tool."""
        return self.files[ENTRY if self.is_package else f"{self.name}.py"]

    @property
    def manifest(self) -> bytes:
        """The manifest; empty for a single file."""
        if not self.is_package and len(self.files) == 1:
            return b""
        lines = [f"{_sha256(content)}  {path}\n" for path, content in sorted(self.files.items())]
        return "".join(lines).encode()

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the single file or of the manifest."""
        return _sha256(self.manifest or self.main)

    @cached_property
    def main_digest(self) -> str:
        """The SHA-256 of the file that defines the tool."""
        return _sha256(self.main)

    @property
    def reference(self) -> str:
        """The bundle reference of this code."""
        return f"{self.name}@sha256:{self.digest}"


def parse(reference: str) -> tuple[str, str] | None:
    """Return name and digest in a bundle reference; None for a plain name.

    Raises:
        ToolError: it has an `@` but is not a bundle reference.
    """
    if "@" not in reference:
        return None
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ToolError(
            f"{shown(reference)} is no tool: a bundle reference is name@sha256:<64 hexadecimal digits>"
        )
    return found[1], found[2]


def read(name: str, path: Path, neighbours: Sequence[str] = ()) -> Bundle:
    """Return the code in a file or a package directory as it is now.

    Args:
        name: of the tool.
        path: the file or directory.
        neighbours: other files that belong to the code of a file, relative to its folder; missing ones
            are left out.

    Raises:
        ToolError: the code is too large, or contains something other than regular files.
        OSError: it can't be read.
    """
    if path.is_dir():
        return Bundle(name, _package(path))
    files = {f"{name}.py": path, **{one: path.parent / one for one in neighbours}}
    existing = {one: file for one, file in files.items() if file == path or file.is_file()}
    _check_size(path, sum(file.stat().st_size for file in existing.values()))
    return Bundle(name, {one: file.read_bytes() for one, file in existing.items()})


def files_of(package: Path) -> list[Path]:
    """Return the files of a package, sorted, without hidden files and those that Python writes."""
    paths = (path for path in package.rglob("*") if not _is_left_out(path.relative_to(package)))
    return sorted(path for path in paths if path.is_symlink() or not path.is_dir())


class Bundles:
    """Keeps bundles, and writes them to disk for import.

    Args:
        blobs: keeps contents and manifests.
        folder: where packages and referenced bundles are written for import.
    """

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder.absolute()

    def keep(self, bundle: Bundle) -> None:
        """Keep the code, so that its reference finds it.  Raises `ArtifactError`."""
        for content in bundle.files.values():
            self._blobs.put(content)
        if bundle.manifest:
            self._blobs.put(bundle.manifest)

    def restore(self, name: str, digest: str) -> Bundle:
        """Return the code with this digest.

        Raises:
            ToolNotFoundError: it was never kept, or it is the code of a tool with another name.
            ArtifactError: it is corrupt or can't be read.
        """
        reference = f"{name}@sha256:{digest}"
        try:
            content = self._blobs.read(digest, MAX_BYTES)
            paths = paths_in(content)
            files = {path: self._blobs.read(sha256, MAX_BYTES) for path, sha256 in paths.items()}
        except ArtifactNotFoundError as exc:
            raise ToolNotFoundError(reference, str(exc)) from None
        files = files or {f"{name}.py": content}
        if ENTRY not in files and f"{name}.py" not in files:
            raise ToolNotFoundError(reference, f"it is the code of another tool: {', '.join(files)[:200]}")
        return Bundle(name, files)

    def entry(self, bundle: Bundle) -> Path:
        """Return the file to import after `lay_out`; its directory contains only the bundle."""
        place = self._place(bundle)
        return place / bundle.name / ENTRY if bundle.is_package else place / f"{bundle.name}.py"

    def lay_out(self, bundle: Bundle) -> None:
        """Write the bundle for import, unless it is there already, unchanged.  Raises `OSError`."""
        place = self._place(bundle)
        if self._is_laid_out(bundle):
            os.utime(place)
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        try:
            _write(draft / bundle.name if bundle.is_package else draft, bundle.files)
            draft.chmod(0o755)
            self._put_in_place(draft, place, bundle)
        except OSError:
            if not self._is_laid_out(bundle):  # else another worker has written it
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def prune(self, unused_seconds: float) -> None:
        """Delete the written bundles that were not used for this long; they can be written again."""
        for place in self._folder.iterdir() if self._folder.is_dir() else ():
            with contextlib.suppress(OSError):
                if time.time() - place.lstat().st_mtime > unused_seconds:
                    shutil.rmtree(place)

    def _place(self, bundle: Bundle) -> Path:
        return self._folder / f"{bundle.name}@{bundle.digest}"

    def _is_laid_out(self, bundle: Bundle) -> bool:
        root = self.entry(bundle).parent
        try:
            found = {file.relative_to(root).as_posix(): file for file in files_of(root)}
            return found.keys() == bundle.files.keys() and all(
                not file.is_symlink() and file.read_bytes() == bundle.files[path]
                for path, file in found.items()
            )
        except OSError:
            return False

    def _put_in_place(self, draft: Path, place: Path, bundle: Bundle) -> None:
        """Rename the draft to its place; a damaged bundle that is there is removed."""
        try:
            draft.rename(place)  # fails if a bundle is there
        except OSError:
            if self._is_laid_out(bundle):  # another thread or worker was faster
                return
            old = Path(tempfile.mkdtemp(prefix=".", dir=place.parent))
            place.rename(old / "old")
            draft.rename(place)
            shutil.rmtree(old, ignore_errors=True)


def paths_in(content: bytes) -> dict[str, str]:
    """Return the digests by relative path in a manifest; empty if `content` is not a manifest."""
    found = [_MANIFEST_LINE.fullmatch(line) for line in content.decode(errors="replace").splitlines()]
    paths = {match[2]: match[1] for match in found if match is not None}
    return paths if paths and len(paths) == len(found) and all(map(_is_inside, paths)) else {}


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return path.isprintable() and not {"", ".", ".."}.intersection(parts)


def _package(path: Path) -> dict[str, bytes]:
    files = files_of(path)
    if len(files) > MAX_FILES:
        raise ToolError(f"{path} has {len(files):,} files; a tool's package may have {MAX_FILES:,}")
    odd = next((file for file in files if file.is_symlink() or not file.is_file()), None)
    if odd is not None:
        raise ToolError(f"{odd} is not a regular file; a tool's package may contain nothing else")
    unprintable = next((file for file in files if not str(file).isprintable()), None)
    if unprintable is not None:
        raise ToolError(
            f"{str(unprintable)!a} can't be a file of a tool's package: it has unprintable characters"
        )
    _check_size(path, sum(file.stat().st_size for file in files))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


def _check_size(path: Path, size_bytes: int) -> None:
    if size_bytes > MAX_BYTES:
        raise ToolError(f"{path} is {size_bytes:,} bytes long; a tool's code may have {MAX_BYTES:,}")


def _is_left_out(path: Path) -> bool:
    return any(part in _LEFT_OUT or part.startswith(".") for part in path.parts) or path.suffix == ".pyc"


def _write(directory: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        if not _is_inside(path):
            raise ToolError(f"{path!a} can't be a file of a tool's code")
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        file.chmod(0o444)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
