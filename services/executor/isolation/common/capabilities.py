"""The capabilities of this process: parts of root's power, as in capabilities(7)."""

from __future__ import annotations

import contextlib
import ctypes
import struct
from typing import Dict, Iterable

from . import kernel

# What a tool can ask for, by its name in capabilities(7).  What opens other processes' memory or the kernel
# is left out, because nothing would keep such a tool from anything.
GRANTABLE: Dict[str, int] = {
    "chown": 0, "dac_override": 1, "fowner": 3, "setgid": 6, "setuid": 7, "net_bind_service": 10,
    "net_admin": 12, "net_raw": 13, "ipc_lock": 14, "sys_nice": 23, "sys_time": 25,
}  # fmt: skip

_PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _PR_CAP_AMBIENT_CLEAR_ALL = 24, 47, 2, 4
_VERSION = 0x20080522
_MOST = 64
_HEADER = struct.pack("=Ii", _VERSION, 0)


def keep_only(names: Iterable[str]) -> None:
    """Give up all capabilities but these, for good, also after an exec.

    Without any, root is a user like any other.  Raises OSError if this process doesn't have one of them, and
    KeyError for an unknown name.
    """
    kept = {GRANTABLE[name] for name in names}
    with contextlib.suppress(OSError):  # without CAP_SETPCAP it is impossible, and an exec gains nothing
        for number in range(_MOST):
            if number not in kept:
                kernel.call("prctl", _PR_CAPBSET_DROP, number, 0, 0, 0)
    with contextlib.suppress(OSError):  # before Linux 4.3 there is none
        kernel.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _set(kept)
    for number in kept:
        kernel.call("prctl", _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number, 0, 0)


def _set(numbers: Iterable[int]) -> None:
    """Have exactly these as effective, permitted and inheritable capabilities."""
    bits = sum(1 << number for number in numbers)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    data = struct.pack("=6I", low, low, low, high, high, high)
    kernel.call("capset", ctypes.c_char_p(_HEADER), ctypes.c_char_p(data))
