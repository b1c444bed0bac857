"""Measures the memory of processes, with what they share counted once and what they hide in files in memory.

The resident memory of a process has what is mapped.  What a program writes into a file in memory, as those of
`memfd_create` and in /dev/shm, takes memory whether it is mapped or not.
"""

from __future__ import annotations

import os
import sys
from typing import Dict, Iterable, Iterator, List, Optional, Tuple

from . import process_tree

SHM = "/dev/shm"
_IN_MEMORY = ("/memfd:", SHM + "/", "/dev/zero", "/SYSV")
_BLOCK_BYTES, _KILOBYTE = 512, 1024

File = Tuple[int, int]
"""A file by its device and inode."""


def held_bytes(pids: Iterable[int], max_files: int = sys.maxsize) -> int:
    """The bytes that these processes hold together; those that are gone hold none.

    If a process has more than `max_files` open files, these are not looked at.

    A process may let nobody look at it, as after `prctl(PR_SET_DUMPABLE, 0)`.  Then what it shares counts for
    it alone, and what it has in files in memory that it doesn't map can't be seen.
    """
    total = 0
    files: Dict[File, int] = {}
    own_folders: Dict[int, int] = {}
    for pid in pids:
        private, shared = _resident(pid)
        total += private
        mappings = process_tree.read(f"/proc/{pid}/smaps") if shared else b""
        for file, size in _mapped(pid, mappings).items():
            files[file] = max(size, files.get(file, 0))
        if shared and not mappings:  # it hides them, unless it has ended since
            total += _resident(pid)[1]
        for file, size in _open(pid, max_files):
            files[file] = size
        own_folders.update(_own_folder(pid))
    in_folders = sum(own_folders.values())
    return total + in_folders + sum(size for (device, _), size in files.items() if device not in own_folders)


def _resident(pid: int) -> Tuple[int, int]:
    """What is resident of a process, apart from files in memory, and of these."""
    private = shared = 0
    for line in process_tree.read(f"/proc/{pid}/status").splitlines():
        if line.startswith((b"RssAnon:", b"RssFile:")):
            private += int(line.split()[1]) * _KILOBYTE
        elif line.startswith(b"RssShmem:"):
            shared = int(line.split()[1]) * _KILOBYTE
    return private, shared


def _mapped(pid: int, mappings: bytes) -> Dict[File, int]:
    """The files in memory that a process has mapped, by its `smaps`, and what is resident of each."""
    found: Dict[File, int] = {}
    file = None
    for line in mappings.splitlines():
        words = line.split(None, 5)
        if not words[0].endswith(b":"):
            file = _file_of(pid, words)
        elif words[0] == b"Rss:" and file is not None:
            found[file[0]] = found.get(file[0], 0) + int(words[1]) * _KILOBYTE
            if file[1] >= 0:  # all of it, whether it is resident here or not
                found[file[0]] = file[1]
    return found


def _file_of(pid: int, words: List[bytes]) -> Optional[Tuple[File, int]]:
    """The file in memory that a mapping shows, and its size if this process may know it, or -1."""
    if len(words) < 6 or not words[5].decode(errors="replace").startswith(_IN_MEMORY):
        return None
    major, minor = (int(text, 16) for text in words[3].split(b":"))
    try:  # only a process with CAP_SYS_ADMIN may
        size = os.stat(f"/proc/{pid}/map_files/{words[0].decode()}").st_blocks * _BLOCK_BYTES
    except OSError:
        size = -1
    return (os.makedev(major, minor), int(words[4])), size


def _open(pid: int, max_files: int) -> Iterator[Tuple[File, int]]:
    """The files in memory that a process has open, with their sizes; none if it has too many files."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names if len(names) <= max_files else ():
        path = f"/proc/{pid}/fd/{name}"
        try:
            if os.readlink(path).startswith(_IN_MEMORY):
                status = os.stat(path)
                yield (status.st_dev, status.st_ino), status.st_blocks * _BLOCK_BYTES
        except OSError:
            continue


def _own_folder(pid: int) -> Dict[int, int]:
    """The device of the process' own /dev/shm, if it has one, and what is in it."""
    found = _own_space(pid)
    return {} if found is None else {found[0]: (found[1].f_blocks - found[1].f_bfree) * found[1].f_frsize}


def own_files(pid: int) -> int:
    """The number of files and directories in the process' own /dev/shm; 0 if it has none."""
    found = _own_space(pid)
    return 0 if found is None else found[1].f_files - found[1].f_ffree


def _own_space(pid: int) -> Optional[Tuple[int, os.statvfs_result]]:
    """The device of the process' own /dev/shm, if it has one, and how full that is."""
    path = f"/proc/{pid}/root{SHM}"
    try:
        device = os.stat(path).st_dev
        return None if device == os.stat(SHM).st_dev else (device, os.statvfs(path))
    except OSError:
        return None
