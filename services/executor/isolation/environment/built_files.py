"""Files that foreign code may have written where packages were built: read without following a link."""

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from services.executor.isolation.common import directory

ORIGIN_BYTES = 65_536
"""A longer `direct_url.json` is ignored."""

_INFO = ".dist-info"
_MAX_WHEEL_DEPTH = 7
"""The most directories above a wheel in uv's cache."""


def built_wheels(cache: Path, folder: Path) -> dict[str, Path]:
    """The wheels in a cache of uv's that were built for what is installed in `folder`, by their names.

    uv keeps each wheel that it has built as a file, and no other.
    """
    from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

    installed = {line.split(" ")[0].rpartition("-")[::2] for line in installed_in(folder)}
    wanted = {(canonicalize_name(name), version) for name, version in installed}
    found: dict[str, Path] = {}
    cache = cache.resolve()
    for parent, folders, names in os.walk(cache, followlinks=False):
        if len(Path(parent).relative_to(cache).parts) == _MAX_WHEEL_DEPTH:
            folders.clear()
        for path in (Path(parent, name) for name in names if name.endswith(".whl")):
            with contextlib.suppress(InvalidWheelFilename):
                name, version, _, _ = parse_wheel_filename(path.name)
                if (name, str(version)) in wanted and path.is_file() and not path.is_symlink():
                    found[name] = path
    return found


def installed_in(folder: Path) -> list[str]:
    """The packages in an environment: name, version, and where each came from if that was not an index."""
    found: list[str] = []
    for version in _names_in(folder, "lib"):
        for name in _names_in(folder, "lib", version, "site-packages"):
            if name.endswith(_INFO):
                origin = _origin(folder, "lib", version, "site-packages", name)
                found.append(" ".join([name.removesuffix(_INFO), *origin]))
    return sorted(found)


def _names_in(folder: Path, *names: str) -> list[str]:
    with contextlib.suppress(OSError), _opened(folder, *names) as descriptor:
        return directory.names(descriptor)
    return []


def _origin(folder: Path, *names: str) -> list[str]:
    """What identifies the content of a package that was installed from an address."""
    try:
        with _opened(folder, *names) as place, _plain_file("direct_url.json", place) as descriptor:
            members = json.loads(b"" if descriptor is None else _content(descriptor))
    except (OSError, ValueError, RecursionError):
        return []
    if not isinstance(members, dict):
        return []
    return [json.dumps(members.get(name), sort_keys=True) for name in ("vcs_info", "archive_info")]


def _content(descriptor: int) -> bytes:
    with open(descriptor, "rb", closefd=False) as file:
        text = file.read(ORIGIN_BYTES + 1)
    return text if len(text) <= ORIGIN_BYTES else b""


@contextlib.contextmanager
def _opened(folder: Path, *names: str) -> Iterator[int]:
    """The directory that these names lead to, open.  OSError if there is none, or a link on the way."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in names:
            below = directory.open_below(name, descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _plain_file(name: str, parent: int) -> Iterator[int | None]:
    """A plain file, open for reading; None if there is none, or a link, a pipe or a device instead."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        yield None
        return
    try:
        yield descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    finally:
        os.close(descriptor)
