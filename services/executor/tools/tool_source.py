"""Where tools' code is: in the folder as it is now, or kept as it was."""

import asyncio
import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from services.executor.isolation.calls import Module
from services.executor.tools import bundles
from services.executor.tools.bundles import NAME, Bundle, Bundles
from shared.errors import ArtifactError, ToolError, ToolNotFoundError
from shared.threads import Threads

log = structlog.get_logger()

PINNED = 100
KEPT_AGAIN_SECONDS = 3_600.0
TRIED_AGAIN_SECONDS = 60.0
THREADS = 8
_SETTLED_NS = 100_000_000  # some clocks of files tick that slowly

Stamp = tuple[tuple[int, int, int, int], ...]
"""What the file system says of each file of a tool."""


@dataclass(frozen=True, slots=True)
class Code:
    """A tool's code, and where it can be imported from.

    `is_whole` when nothing beside it can belong to it: a package, or what a reference names.
    """

    module: Module
    bundle: Bundle
    is_whole: bool


class Library:
    """Finds code, and keeps all that is used.

    Args:
        folder: where the modules and packages are.
        kept: where code is kept.
    """

    def __init__(self, folder: Path, kept: Bundles) -> None:
        self._folder = folder.resolve()
        self._kept = kept
        self._threads = Threads(THREADS)
        self._read_last: dict[tuple[str, tuple[str, ...]], tuple[Stamp, Bundle]] = {}
        self._pinned: dict[tuple[str, str], Bundle] = {}
        self._due_again: dict[str, tuple[str, float]] = {}
        self._keeping: set[asyncio.Task[None]] = set()

    def names(self) -> list[str]:
        """The names of all modules and packages that could be tools, sorted."""
        try:
            packages = [entry.parent for entry in self._folder.glob(f"*/{bundles.ENTRY}")]
            paths = [*self._folder.glob("*.py"), *packages]
        except OSError:
            return []
        return sorted({path.stem for path in paths if NAME.fullmatch(path.stem)})

    def find(self, name: str, neighbours: Sequence[str] = ()) -> Module:
        """What `name` is on disk now; a package is not to be imported from there.

        Raises:
            ToolNotFoundError: no such file or package, or not one inside the folder.
            ToolError: it can't be read.
        """
        path = self._path(name)
        return Module(name, path, self._read(name, path, tuple(neighbours)).digest)

    def unchanged(self, name: str, neighbours: tuple[str, ...] = ()) -> Bundle | None:
        """The code of a plain file as it was read last, if it is the same now; None where `code` has to look.

        This is asked before every run: two questions to the file system where `code` has five.
        """
        file = f"{self._folder}/{name}.py"
        known = self._read_last.get((file, neighbours))
        if known is None:
            return None
        try:
            plain = os.lstat(file)
            beside = [os.stat(f"{self._folder}/{one}") for one in neighbours]  # noqa: PTH116
        except OSError:
            return None
        is_same = stat.S_ISREG(plain.st_mode) and _times_and_sizes((plain, *beside)) == known[0]
        is_package = os.access(f"{self._folder}/{name}/{bundles.ENTRY}", os.F_OK)
        return known[1] if is_same and not is_package else None

    async def code(self, name: str, neighbours: Sequence[str] = ()) -> Code:
        """The code of a tool, or what a bundle reference names.

        Args:
            name: a plain name or a reference.
            neighbours: files beside a plain file that belong to it.

        Raises:
            ToolNotFoundError: there is no such code.
            ToolError: it can't be read.
        """
        reference = bundles.parse(name)
        if reference is not None:
            bundle = await self._restored(*reference)
            return Code(await self._laid_out(bundle), bundle, is_whole=True)
        path = self._path(name)
        if path.is_dir():
            bundle = await self._threads.run(self._read, name, path, ())
            return Code(await self._laid_out(bundle), bundle, is_whole=True)
        bundle = self._read(name, path, tuple(neighbours))
        main = bundle.main_digest if bundle.manifest else ""
        return Code(Module(name, path, bundle.digest, main=main), bundle, is_whole=False)

    def keep(self, bundle: Bundle) -> None:
        """Have the code kept, once in a while again: what is in use must not look old to `gc`.

        Nobody waits for it, and a store that can't be reached holds up no run.
        """
        digest, due = self._due_again.get(bundle.name, ("", 0.0))
        if digest == bundle.digest and time.monotonic() < due:
            return
        self._due_again[bundle.name] = (bundle.digest, time.monotonic() + TRIED_AGAIN_SECONDS)
        task = asyncio.get_running_loop().create_task(self._store(bundle), name=f"keep {bundle.reference}")
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)

    async def _store(self, bundle: Bundle) -> None:
        try:
            await self._threads.run(self._kept.keep, bundle)
        except ArtifactError as exc:
            log.warning("tool.not_kept", tool=bundle.name, digest=bundle.digest[:12], error=str(exc))
        else:
            self._due_again[bundle.name] = (bundle.digest, time.monotonic() + KEPT_AGAIN_SECONDS)

    async def _restored(self, name: str, digest: str) -> Bundle:
        known = self._pinned.get((name, digest))
        if known is not None:
            return known
        await self._settled()
        try:
            bundle = await self._threads.run(self._kept.restore, name, digest)
        except ArtifactError as exc:
            raise ToolError(f"{name}@sha256:{digest} can't be read: {exc}") from None
        while len(self._pinned) >= PINNED:
            del self._pinned[next(iter(self._pinned))]
        self._pinned[name, digest] = bundle
        return bundle

    async def _settled(self) -> None:
        """Code that is just being kept may be what is asked for."""
        if self._keeping:
            await asyncio.wait(self._keeping)

    async def _laid_out(self, bundle: Bundle) -> Module:
        try:
            await self._threads.run(self._kept.lay_out, bundle)
        except OSError as exc:
            raise ToolError(f"{bundle.reference} can't be laid out: {exc}") from None
        main = bundle.main_digest if bundle.manifest else ""
        return Module(bundle.name, self._kept.entry(bundle), bundle.digest, main=main)

    def _read(self, name: str, path: Path, neighbours: tuple[str, ...]) -> Bundle:
        try:
            stamp = _stamp(path, neighbours)
            known = self._read_last.get((str(path), neighbours))
            if known is not None and known[0] == stamp:
                return known[1]
            bundle = bundles.read(name, path, neighbours)
        except OSError as exc:
            raise ToolError(f"{path} can't be read: {exc.strerror or exc}") from None
        newest_ns = max(times[1] for times in stamp)
        if time.time_ns() - newest_ns > _SETTLED_NS:  # before that, the next change may leave no trace
            for other in [one for one in self._read_last if one[0] == str(path)]:
                del self._read_last[other]
            self._read_last[str(path), neighbours] = (stamp, bundle)
        return bundle

    def _path(self, name: str) -> Path:
        if not NAME.fullmatch(name):
            raise ToolNotFoundError(name, "a tool's name has letters, digits, '_' and '-' only")
        package = f"{self._folder}/{name}"
        file = f"{package}.py"
        # Strings, not `Path`: this is asked before every run, and making paths takes longer than the answer.
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
    """What changes when any file of the code at `path` does."""
    if path.is_dir():
        stats = [file.lstat() for file in bundles.files_of(path)]
    else:
        beside = (path.parent / one for one in neighbours)
        stats = [file.stat() for file in (path, *(one for one in beside if one.is_file()))]
    return _times_and_sizes(stats)


def _times_and_sizes(stats: Iterable[os.stat_result]) -> Stamp:
    return tuple((one.st_mtime_ns, one.st_ctime_ns, one.st_size, one.st_ino) for one in stats)
