"""A tool's code, addressed by content: one file, or a package directory.

The digest of a file is its SHA-256.  The digest of a package is the SHA-256 of its
*manifest*, a line `<sha256>  <relative path>` for each of its files, sorted: it
covers contents and paths, not times or permissions.  Manifest and files are kept
as artifacts are, so that `name@sha256:<digest>`, a *bundle reference*, finds the
code as it was.
"""

import hashlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from services.executor.artifacts.blobs import Blobs
from shared.errors import ArtifactNotFoundError, ToolError, ToolNotFoundError

MAX_BYTES = 4_000_000
MAX_FILES = 1_000
ENTRY = "__init__.py"
_REFERENCE = re.compile(r"([^@]+)@sha256:([0-9a-f]{64})")
_MANIFEST_LINE = re.compile(r"([0-9a-f]{64})  (\S.*)")
_LEFT_OUT = ("__pycache__",)


@dataclass(frozen=True)
class Bundle:
    """A tool's code: contents by relative path; a tool of one file has just that."""

    name: str
    files: Mapping[str, bytes]

    @property
    def is_package(self) -> bool:
        """Whether it is a directory with an `__init__.py`."""
        return ENTRY in self.files

    @property
    def main(self) -> bytes:
        """The file that defines the tool."""
        return self.files[ENTRY if self.is_package else f"{self.name}.py"]

    @property
    def manifest(self) -> bytes:
        """A line for each file; empty for a tool of one file, which speaks for itself."""
        lines = [f"{_sha256(content)}  {path}\n" for path, content in sorted(self.files.items())]
        return "".join(lines).encode() if self.is_package else b""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file, or of the package's manifest."""
        return _sha256(self.manifest if self.is_package else self.main)

    @property
    def reference(self) -> str:
        """What finds exactly this code again."""
        return f"{self.name}@sha256:{self.digest}"


def parse(reference: str) -> tuple[str, str] | None:
    """Name and digest in a bundle reference; None if it is a plain name.

    Raises:
        ToolNotFoundError: it has an `@` and is no reference all the same.
    """
    if "@" not in reference:
        return None
    found = _REFERENCE.fullmatch(reference)
    if found is None:
        raise ToolNotFoundError(reference, "a bundle reference is name@sha256:<64 hexadecimal digits>")
    return found[1], found[2]


def read(name: str, path: Path) -> Bundle:
    """The code at `path`, a file or a package directory, as it is on disk now.

    Raises:
        ToolError: it is too large, or holds what is no file.
        OSError: it can't be read.
    """
    if path.is_dir():
        return Bundle(name, _package(path))
    _check_size(path, path.stat().st_size)
    return Bundle(name, {f"{name}.py": path.read_bytes()})


def files_of(package: Path) -> list[Path]:
    """The files of a package that belong to its code, sorted: none that Python wrote or that is hidden."""
    paths = (path for path in package.rglob("*") if not _is_left_out(path.relative_to(package)))
    return sorted(path for path in paths if path.is_symlink() or not path.is_dir())


class Bundles:
    """Every bundle that was run, kept.

    Args:
        blobs: where contents and manifests are kept.
        folder: where packages, and bundles that were asked for by reference, are laid out for import.
    """

    def __init__(self, blobs: Blobs, folder: Path) -> None:
        self._blobs = blobs
        self._folder = folder.absolute()

    def keep(self, bundle: Bundle) -> None:
        """Keep the code for those who ask for it by reference.  Raises `ArtifactError`."""
        for content in bundle.files.values():
            self._blobs.put(content)
        if bundle.is_package:
            self._blobs.put(bundle.manifest)

    def restore(self, name: str, digest: str) -> Bundle:
        """The code that had this digest.

        Raises:
            ToolNotFoundError: it was never kept, or not under this name.
            ArtifactError: what is kept is corrupt, or can't be reached.
        """
        try:
            content = self._blobs.read(digest, MAX_BYTES)
            paths = paths_in(content)
            files = {path: self._blobs.read(sha256, MAX_BYTES) for path, sha256 in paths.items()}
        except ArtifactNotFoundError as exc:
            raise ToolNotFoundError(f"{name}@sha256:{digest}", str(exc)) from None
        return Bundle(name, files or {f"{name}.py": content})

    def entry(self, bundle: Bundle) -> Path:
        """The file to import once the bundle is laid out: nothing else is in its directory."""
        place = self._folder / bundle.digest
        return place / bundle.name / ENTRY if bundle.is_package else place / f"{bundle.name}.py"

    def lay_out(self, bundle: Bundle) -> None:
        """Write the bundle where `entry` says, whole or not at all.  Raises `OSError`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".", dir=self._folder))
        try:
            _write(draft / bundle.name if bundle.is_package else draft, bundle.files)
            draft.chmod(0o755)
            draft.rename(self._folder / bundle.digest)
        except OSError:
            if not self.entry(bundle).exists():  # another worker was first
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def paths_in(content: bytes) -> dict[str, str]:
    """Digests by relative path when `content` is a manifest; nothing when it is anything else."""
    found = [_MANIFEST_LINE.fullmatch(line) for line in content.decode(errors="replace").splitlines()]
    paths = {match[2]: match[1] for match in found if match is not None}
    safe = all(".." not in PurePosixPath(path).parts and not path.startswith("/") for path in paths)
    return paths if ENTRY in paths and len(paths) == len(found) and safe else {}


def _package(path: Path) -> dict[str, bytes]:
    files = files_of(path)
    if len(files) > MAX_FILES:
        raise ToolError(f"{path} has {len(files):,} files; a tool's package may have {MAX_FILES:,}")
    odd = next((file for file in files if file.is_symlink() or not file.is_file()), None)
    if odd is not None:
        raise ToolError(f"{odd} is not a plain file; a tool's package holds nothing else")
    unprintable = next((file for file in files if not str(file).isprintable()), None)
    if unprintable is not None:
        raise ToolError(
            f"{str(unprintable)!a} can't be a file of a tool's package: it has unprintable letters"
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
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o444)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
