"""Where tools' code comes from: the tools folder as it is now, or the bundles that were kept of it."""

import asyncio
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from services.executor.isolation.calls import Module
from services.executor.tools import bundles
from services.executor.tools.bundles import Bundle, Bundles
from shared.documents import shown
from shared.errors import ArtifactError, ToolError, ToolNotFoundError
from shared.messages import TOOL_NAME
from shared.threads import Threads

log = structlog.get_logger()
K = TypeVar("K")
V = TypeVar("V")

TOOLS_KEPT = 1_000
BUNDLES_KEPT = 100
KEEP_AGAIN_SECONDS = 3_600.0
COMPARE_AGAIN_SECONDS = 60.0
"""How long files that were written for import need not be read while their stamps stay the same."""
RETRY_SECONDS = 60.0
THREADS = 8
_SETTLED_NS = 100_000_000  # some file systems count modification times that coarsely

Stamp = tuple[tuple[int, int, int, int], ...]
"""Times, size and inode of each file of a tool."""


class BoundedDict(OrderedDict[K, V]):
    """A dictionary of at most `size` entries; it drops those that were set the longest ago."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._size:
            self.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Code:
    """A tool's code.

    Attributes:
        module: where it is imported from.
        bundle: its content.
        is_whole: whether no file outside can belong to it, as with a package or a bundle reference.
    """

    module: Module
    bundle: Bundle
    is_whole: bool


class ToolSource:
    """Finds the code of tools, and keeps all code that is used.

    Args:
        folder: the tools folder, with modules and packages; links that lead out of it are refused.
        kept: keeps the code.
    """

    def __init__(self, folder: Path, kept: Bundles) -> None:
        self._folder = folder.resolve()
        self._kept = kept
        self._threads = Threads(THREADS)
        self._read_last: BoundedDict[str, tuple[tuple[str, ...], Stamp, Bundle]] = BoundedDict(TOOLS_KEPT)
        self._restored: BoundedDict[tuple[str, str], Bundle] = BoundedDict(BUNDLES_KEPT)
        self._laid_out_last: BoundedDict[str, tuple[Stamp | None, float]] = BoundedDict(BUNDLES_KEPT)
        self._keep_again: BoundedDict[str, tuple[str, float]] = BoundedDict(TOOLS_KEPT)
        self._keeping: set[asyncio.Task[None]] = set()

    def names(self) -> list[str]:
        """Return the names of all modules and packages in the folder that could be tools, sorted."""
        try:
            packages = [entry.parent for entry in self._folder.glob(f"*/{bundles.ENTRY}")]
            paths = [*self._folder.glob("*.py"), *packages]
        except OSError:
            return []
        return sorted({path.stem for path in paths if TOOL_NAME.fullmatch(path.stem)})

    def find(self, name: str, neighbours: tuple[str, ...] = ()) -> Module:
        """Return the module or package `name` as it is in the folder now.

        A package must not be imported from this path, but from that of `code`.

        Raises:
            ToolNotFoundError: there is no such file or package in the folder.
            ToolError: it can't be read.
        """
        path = self._path(name)
        return Module(name, path, self._read(name, path, neighbours).digest)

    def unchanged(self, name: str, neighbours: tuple[str, ...] = ()) -> Bundle | None:
        """Return the code of a plain file as it was read last if it is the same now, else None.

        This is called before every run, and makes two system calls where `code` makes five.
        """
        file = f"{self._folder}/{name}.py"
        known = self._read_last.get(file)
        if known is None or known[0] != neighbours:
            return None
        try:
            plain = os.lstat(file)
            others = [os.stat(f"{self._folder}/{one}") for one in neighbours]  # noqa: PTH116
        except OSError:
            return None
        is_same = stat.S_ISREG(plain.st_mode) and _times_and_sizes((plain, *others)) == known[1]
        is_package = os.access(f"{self._folder}/{name}/{bundles.ENTRY}", os.F_OK)
        return known[2] if is_same and not is_package else None

    async def code(self, name: str, neighbours: tuple[str, ...] = ()) -> Code:
        """Return the code of a tool.

        Args:
            name: the name of a module or package, or a bundle reference.
            neighbours: other files of the folder that belong to a module.

        Raises:
            ToolNotFoundError: there is no such code.
            ToolError: it can't be read.
        """
        reference = bundles.parse(name)
        if reference is not None:
            bundle = await self._restore(*reference)
            return Code(await self._laid_out(bundle), bundle, is_whole=True)
        path = self._path(name)
        if path.is_dir():
            bundle = await self._threads.run(self._read, name, path, ())
            return Code(await self._laid_out(bundle), bundle, is_whole=True)
        bundle = self._read(name, path, neighbours)
        main = bundle.main_digest if bundle.manifest else ""
        return Code(Module(name, path, bundle.digest, main=main), bundle, is_whole=False)

    def keep(self, bundle: Bundle) -> None:
        """Start to keep the code, unless that was done in the last hour.

        It is kept again each hour, so that garbage collection finds it young.  No run waits for it.
        """
        digest, due = self._keep_again.get(bundle.name, ("", 0.0))
        if digest == bundle.digest and time.monotonic() < due:
            return
        self._keep_again[bundle.name] = (bundle.digest, time.monotonic() + RETRY_SECONDS)
        task = asyncio.get_running_loop().create_task(self._store(bundle), name=f"keep {bundle.reference}")
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def all_kept(self) -> None:
        """Wait until all code is kept that `keep` was called for."""
        if self._keeping:
            await asyncio.wait(self._keeping)

    async def _store(self, bundle: Bundle) -> None:
        try:
            await self._threads.run(self._kept.keep, bundle)
        except ArtifactError as exc:
            log.warning("tool.not_kept", tool=bundle.name, digest=bundle.digest[:12], error=str(exc))
        else:
            self._keep_again[bundle.name] = (bundle.digest, time.monotonic() + KEEP_AGAIN_SECONDS)

    async def _restore(self, name: str, digest: str) -> Bundle:
        known = self._restored.get((name, digest))
        if known is not None:
            return known
        await self.all_kept()  # the code may be among it
        try:
            bundle = await self._threads.run(self._kept.restore, name, digest)
        except ArtifactError as exc:
            raise ToolError(f"{name}@sha256:{digest} can't be read: {exc}") from None
        self._restored[name, digest] = bundle
        return bundle

    async def _laid_out(self, bundle: Bundle) -> Module:
        entry = self._kept.entry(bundle)
        seen, due = self._laid_out_last.get(bundle.reference, (None, 0.0))
        # Comparing the contents takes a thread, which costs more than the call of a short tool.
        if seen is None or time.monotonic() >= due or _stamp_of_copy(entry.parent, bundle) != seen:
            try:
                await self._threads.run(self._kept.lay_out, bundle)
            except OSError as exc:
                raise ToolError(f"{bundle.reference} can't be written for its import: {exc}") from None
            again = time.monotonic() + COMPARE_AGAIN_SECONDS
            self._laid_out_last[bundle.reference] = (_stamp_of_copy(entry.parent, bundle), again)
        main = bundle.main_digest if bundle.manifest else ""
        return Module(bundle.name, entry, bundle.digest, main=main)

    def _read(self, name: str, path: Path, neighbours: tuple[str, ...]) -> Bundle:
        try:
            stamp = _stamp(path, neighbours)
            known = self._read_last.get(str(path))
            if known is not None and known[:2] == (neighbours, stamp):
                return known[2]
            bundle = bundles.read(name, path, neighbours)
        except OSError as exc:
            raise ToolError(f"{path} can't be read: {exc.strerror or exc}") from None
        newest_ns = max(times[1] for times in stamp)
        if time.time_ns() - newest_ns > _SETTLED_NS:  # until then, a change may not show in the times
            self._read_last[str(path)] = (neighbours, stamp, bundle)
        return bundle

    def _path(self, name: str) -> Path:
        if not TOOL_NAME.fullmatch(name):
            raise ToolError(f"{shown(name)} can't be a tool: a name has letters, digits, '_' and '-' only")
        package = f"{self._folder}/{name}"
        file = f"{package}.py"
        # Strings, not `Path`: this is called for every run, and a `Path` takes longer than the system call.
        is_file = os.path.isfile(file)  # noqa: PTH113
        is_package = os.path.isfile(f"{package}/{bundles.ENTRY}")  # noqa: PTH113
        if is_file and is_package:
            raise ToolError(f"{file} and {package} are both called '{name}'; remove or rename one of them")
        if not is_file and not is_package:
            raise ToolNotFoundError(name, f"there is no {file}")
        path = package if is_package else file
        if os.path.islink(path) and Path(path).resolve().parent != self._folder:  # noqa: PTH114
            raise ToolNotFoundError(name, f"{path} leads out of the tools folder")
        return Path(path)


def _stamp(path: Path, neighbours: Sequence[str]) -> Stamp:
    """Return what differs after a change of any file of the code at `path`."""
    if path.is_dir():
        stats = [file.lstat() for file in bundles.files_of(path)]
    else:
        others = (path.parent / one for one in neighbours)
        stats = [file.stat() for file in (path, *(one for one in others if one.is_file()))]
    return _times_and_sizes(stats)


def _stamp_of_copy(root: Path, bundle: Bundle) -> Stamp | None:
    """Return what differs after a change of a written bundle's files or folders; None if one is missing."""
    folders = {"", *(name.rpartition("/")[0] for name in bundle.files)}
    try:
        return _times_and_sizes([os.lstat(f"{root}/{name}") for name in (*folders, *bundle.files)])
    except OSError:
        return None


def _times_and_sizes(stats: Iterable[os.stat_result]) -> Stamp:
    return tuple((one.st_mtime_ns, one.st_ctime_ns, one.st_size, one.st_ino) for one in stats)
