"""Files of an environment that foreign code may have written: read and changed without following a link."""

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


def make_programs_executable(folder: Path) -> None:
    """Let everybody execute the programs in `bin` who may read them.  Only plain files are changed."""
    with contextlib.suppress(OSError), _opened(folder, "bin") as parent:
        for name in directory.names(parent):
            with _plain_file(name, parent) as descriptor:
                if descriptor is not None and os.fstat(descriptor).st_nlink == 1:
                    os.fchmod(descriptor, 0o755)


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
