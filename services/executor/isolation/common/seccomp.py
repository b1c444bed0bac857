"""A filter that refuses the system calls that get around Landlock.

Landlock decides who may open, create, rename and remove which file.  This filter refuses, by number and
argument, what Landlock does not see.  A filter can't follow a pointer, so it can't tell a path in the temp
directory from any other, and refuses to change the mode, owner or times of any file.

What is refused fails with EPERM, which Python raises as PermissionError.  A call that is newer than this
table fails with ENOSYS, and then programs do what they did before it existed.  So does `clone3`, whose flags
are behind a pointer; programs use `clone` instead.

`separation` is a smaller filter: it only keeps a process from changing the limits and the scheduling of
others, and from the keys that the kernel keeps for its user, for which Landlock has no rules.

The program is classic BPF as in the kernel's Documentation/userspace-api/seccomp_filter.rst.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

_libc = ctypes.CDLL(None, use_errno=True)
PR_SET_SECCOMP = 22
MODE_FILTER = 2

# On x86_64 and on aarch64; None if the machine has no such call.  From 424 on, the numbers are the same.
Numbers = Dict[str, Tuple[Optional[int], Optional[int]]]
# Argument, mask, value: true if the argument's bits under the mask are the value.
Condition = Tuple[int, int, int]
# struct sock_filter: operation, how far to jump if it is true and if it is false, value.
Instruction = Tuple[int, int, int, int]

# Landlock doesn't see these, and they change files outside of the temp directory.
METADATA: Numbers = {
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "lchown": (94, None), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
    "removexattrat": (466, 466), "file_setattr": (469, 469),
}  # fmt: skip

ALWAYS: Numbers = {
    # Access to files without opening a path; watching files elsewhere come and go.
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263), "lookup_dcookie": (212, 18),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "acct": (163, 89),
    "swapon": (167, 224), "swapoff": (168, 225), "uselib": (134, None),
    # Another view of the file system, or rights over one.
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268), "unshare": (272, 97), "open_tree": (428, 428), "open_tree_attr": (467, 467),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "statmount": (457, 457), "listmount": (458, 458),
    # Other processes: their memory, their descriptors, what they share.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_getfd": (438, 438),
    "kcmp": (312, 272), "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "shmdt": (67, 197),
    "semget": (64, 190), "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    # The machine itself.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "syslog": (103, 116),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "sethostname": (170, 161), "setdomainname": (171, 162),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "vhangup": (153, 58),
    "nfsservctl": (180, 42), "lsm_set_self_attr": (460, 460),
}  # fmt: skip

CONDITIONAL: Numbers = {
    "socket": (41, 198), "socketpair": (53, 199), "clone": (56, 220), "clone3": (435, 435),
    "ioctl": (16, 29), "prlimit64": (302, 261), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setparam": (142, 118),
    "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "personality": (135, 92), "open": (2, None), "openat": (257, 56), "openat2": (437, 437),
    "truncate": (76, 45),
}  # fmt: skip
LAST_KNOWN = 469

# They change the limits or the scheduling of any process of the same user.
SEPARATING = (
    "prlimit64", "setpriority", "ioprio_set",
    "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr",
)  # fmt: skip

# All processes of a user, and all that were started in one session, share these keys.
KEYRINGS = ("add_key", "request_key", "keyctl")

# For what `uname -m` prints: the column above, and the kernel's audit name.
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

KILL, ALLOW, ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
EPERM, ENOSYS, SUCCESS = ERRNO | errno.EPERM, ERRNO | errno.ENOSYS, ERRNO
_NUMBER_AT, _MACHINE_AT, _ARGUMENTS_AT = 0, 4, 16
_LOAD, _AND, _RETURN, _JUMP_EQUAL, _JUMP_GREATER = 0x20, 0x54, 0x06, 0x15, 0x25

_ALL = 0xFFFFFFFF
_NAMESPACES = 0x7E020000
_UNIX, _INET, _INET6, _NETLINK, _NETLINK_ROUTE = 1, 2, 10, 16, 0
_STREAM, _SEQPACKET, _SOCKET_KIND = 1, 5, 0xF
_TRUNCATE_READING = (0o1003, 0o1000)
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
# The letters of ioctls that change a file or its file system through a read-only descriptor.
_IOCTL_LETTER, _IOCTL_LETTERS = 0xFF00, (ord("f"), ord("v"), ord("X"), 0x94)


def is_supported(machine: Optional[str] = None) -> bool:
    """Whether a machine's calls are in the table, by default this one's, and the kernel takes filters."""
    if sys.byteorder != "little" or (machine or _machine()) not in MACHINES or sys.maxsize < 2**32:
        return False
    # A kernel that takes filters reports EFAULT for a missing program.
    _libc.prctl(PR_SET_SECCOMP, MODE_FILTER, None, 0, 0)
    return ctypes.get_errno() == errno.EFAULT


def install(*, network: bool, landlock_abi: int, pretends: bool = False) -> None:
    """Filter the calls of this process and of all that it starts, for good.  Raises OSError."""
    _install(program(_machine(), network=network, landlock_abi=landlock_abi, pretends=pretends))


def install_separation() -> None:
    """Keep this process, and all that it starts, from others for good: see `separation`.  Raises OSError."""
    _install(separation(_machine()))


def _install(code: bytes) -> None:
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: how many instructions, and where they are.
    described = struct.pack("=H6xQ", len(code) // 8, ctypes.addressof(buffer))
    if _libc.prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.c_char_p(described), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp: " + os.strerror(ctypes.get_errno()))


def program(machine: str, *, network: bool, landlock_abi: int, pretends: bool = False) -> bytes:
    """The filter's program, as the kernel takes it.

    `landlock_abi` tells what else protects the files: 0 for read-only mounts, otherwise the version of
    Landlock.  Its first two versions don't see truncation.  With `pretends`, calls that would change a file's
    mode, owner or times do nothing and report success, for programs that don't go on without.
    """
    column, audited_as = MACHINES[machine]
    refused = dict(ALWAYS)
    if landlock_abi:
        refused.update(METADATA)
    metadata = SUCCESS if pretends else EPERM
    if not network:
        refused["socket"] = CONDITIONAL["socket"]
    truncates = 0 < landlock_abi < 3
    if truncates:
        refused["truncate"] = CONDITIONAL["truncate"]
    code = _prologue(audited_as)
    for name, numbers in refused.items():
        code += _rule(numbers[column], [_do(_RETURN, metadata if name in METADATA else EPERM)])
    for name in ("clone3", "openat2") if truncates else ("clone3",):
        code += _rule(CONDITIONAL[name][column], [_do(_RETURN, ENOSYS)])
    for name, body in _conditions(truncates).items():
        code += _rule(CONDITIONAL[name][column], body)
    return _assembled(code)


def separation(machine: str) -> bytes:
    """The program of the filter that only keeps a process from others.

    Whether a call passes depends on its number alone, except for `SEPARATING`; the kernel remembers that, and
    doesn't execute the program for other calls.
    """
    column, audited_as = MACHINES[machine]
    conditions = _conditions(truncates=False)
    code = _prologue(audited_as)
    for name in SEPARATING:
        code += _rule(CONDITIONAL[name][column], conditions[name])
    for name in KEYRINGS:
        code += _rule(ALWAYS[name][column], [_do(_RETURN, EPERM)])
    return _assembled(code)


def _conditions(truncates: bool) -> dict[str, List[Instruction]]:
    """The calls that depend on an argument."""
    own = _only_if([(0, _ALL, 0)])
    conditions = {
        # Through a socket in the file system or of a bus, a tool could have others act for it.
        "socket": _only_if(
            [(0, _ALL, _INET)], [(0, _ALL, _INET6)], [(0, _ALL, _NETLINK), (2, _ALL, _NETLINK_ROUTE)]
        ),
        # No datagrams: a pair can send them to any other socket.
        "socketpair": _only_if(
            *([(0, _ALL, _UNIX), (1, _SOCKET_KIND, kind)] for kind in (_STREAM, _SEQPACKET))
        ),
        "clone": _only_if([(0, _NAMESPACES, 0)]),
        "ioctl": _unless(
            *([(1, _IOCTL_LETTER, letter << 8)] for letter in _IOCTL_LETTERS),
            *([(1, _ALL, command)] for command in (_TIOCSTI, _TIOCLINUX)),
        ),
        # Only for this process, named as 0.
        **dict.fromkeys(
            ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr",
             "migrate_pages", "move_pages"), own),
        "setpriority": _only_if([(0, _ALL, 0), (1, _ALL, 0)]),
        "ioprio_set": _only_if([(0, _ALL, 1), (1, _ALL, 0)]),
        "personality": _only_if([(0, _ALL, 0)], [(0, _ALL, _ALL)]),
    }  # fmt: skip
    if truncates:
        conditions["open"] = _unless([(1, *_TRUNCATE_READING)])
        conditions["openat"] = _unless([(2, *_TRUNCATE_READING)])
    return conditions


# -- assembling ------------------------------------------------------------------------


def _assembled(code: List[Instruction]) -> bytes:
    """The program, which allows every call that it doesn't mention."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in [*code, _do(_RETURN, ALLOW)])


def _prologue(audited_as: int) -> List[Instruction]:
    """Kill a process that uses another machine's calls, and refuse calls that the table doesn't know.

    The second test includes x32, whose numbers begin at 2**30.
    """
    return [
        _do(_LOAD, _MACHINE_AT),
        (_JUMP_EQUAL, 1, 0, audited_as),
        _do(_RETURN, KILL),
        _do(_LOAD, _NUMBER_AT),
        (_JUMP_GREATER, 0, 1, LAST_KNOWN),
        _do(_RETURN, ENOSYS),
    ]


def _rule(number: int | None, body: List[Instruction]) -> List[Instruction]:
    """`body` for the call of that number.  It has to return; for others, the number stays loaded."""
    return [] if number is None else [(_JUMP_EQUAL, 0, len(body), number), *body]


def _only_if(*alternatives: Sequence[Condition]) -> List[Instruction]:
    return _judge(alternatives, ALLOW, EPERM)


def _unless(*alternatives: Sequence[Condition]) -> List[Instruction]:
    return _judge(alternatives, EPERM, ALLOW)


def _judge(alternatives: Iterable[Sequence[Condition]], met: int, otherwise: int) -> List[Instruction]:
    """Return `met` if all conditions of one alternative hold."""
    code: List[Instruction] = []
    for conditions in alternatives:
        code += _all_hold(conditions, met)
    return [*code, _do(_RETURN, otherwise)]


def _all_hold(conditions: Sequence[Condition], met: int) -> List[Instruction]:
    code: List[Instruction] = [_do(_RETURN, met)]
    for argument, mask, value in reversed(conditions):
        at = _ARGUMENTS_AT + 8 * argument
        code = [_do(_LOAD, at), _do(_AND, mask), (_JUMP_EQUAL, 0, len(code), value), *code]
    return code


def _do(operation: int, value: int) -> Instruction:
    return operation, 0, 0, value


def _machine() -> str:
    return os.uname().machine
